"""What the compiler puts beside the exchange of workers that are FSDP meshes.

    python -m experiments.mesh_certificate

compiles each program for two hosts of eight GPUs, a worker on each, with and without
the options that let exchanges start early, and prints one line for each.
"""

import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import cocod_jax as cj
from cocod_jax._text import human_bytes
from cocod_jax.certify import certify
from experiments.streaming_certificate import cell

HOSTS, DEVICES, PERIOD = 2, 8, 4
WIDTH, BLOCKS = 512, 4
MESH = AbstractMesh(
    (HOSTS, DEVICES), ("workers", "fsdp"), axis_types=(AxisType.Auto,) * 2
)
RULE = cj.cocod("workers")
ADAMW = optax.adamw(1e-3)
P = PartitionSpec
SPECS = P("fsdp")
LIMIT = "xla_gpu_experimental_parallel_collective_overlap_limit"
OPTIONS = {"none": None, "early start": cj.compiler_options("gpu")} | {
    f"early start, limit {limit}": cj.compiler_options("gpu") | {LIMIT: limit}
    for limit in (2, 3, 8)
}
Program = tuple[Any, tuple[Any, ...]]


def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    for up, down in params:
        batch = batch + jax.nn.gelu(batch @ up) @ down
    return jnp.mean(batch**2)


def params() -> Any:
    """Residual blocks, of one worker."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return [(array(WIDTH, 4 * WIDTH), array(4 * WIDTH, WIDTH)) for _ in range(BLOCKS)]


def on(spec: PartitionSpec, *shape: int) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(MESH, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def of_all(make: Callable[[Any], Any]) -> Any:
    """What is made of the parameters, for all workers; devices share the matrices."""

    def spread(x: Any) -> jax.ShapeDtypeStruct:
        spec = P("workers", "fsdp") if x.ndim == 3 else P("workers")
        return x.update(sharding=NamedSharding(MESH, spec))

    replicated = lambda tree: cj.replicate(make(tree), HOSTS)
    return jax.tree.map(spread, jax.eval_shape(replicated, params()))


def round_of(tokens: int, streamed: bool) -> Program:
    round_ = cj.make_round(loss_fn, ADAMW, RULE, period=PERIOD, streamed=streamed)
    state = of_all(round_.init)
    batches = on(P("workers", None, "fsdp"), HOSTS, PERIOD, tokens, WIDTH)
    return round_, (state, batches)


def step_of(tokens: int, streamed: bool) -> Program:
    """A user's step of one worker: not streamed, its exchange is in a conditional."""
    optimizer = cj.every(PERIOD, ADAMW, RULE, streamed=streamed, specs=SPECS)

    def step(params: Any, state: Any, batch: jax.Array) -> Any:
        gradients = jax.grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = of_all(optimizer.init)
    batch = on(P("workers", "fsdp"), HOSTS, tokens, WIDTH)
    return step, (of_all(lambda tree: tree), state, batch)


PROGRAMS = {
    "round, streamed": lambda tokens: round_of(tokens, True),
    "every, streamed": lambda tokens: step_of(tokens, True),
    "round, whole": lambda tokens: round_of(tokens, False),
    "every, whole": lambda tokens: step_of(tokens, False),
}


def verdict(certificate: cj.certify.Certificate) -> str:
    """The local steps beside the exchange, or its share of one; or why none is."""
    (exchange,) = certificate.schedule.collectives
    if exchange.hidden and exchange.steps:
        return f"{exchange.steps:g} of {certificate.schedule.steps} steps"
    if certificate.schedule.steps:
        return ", ".join(reason.id for reason in certificate.reasons)
    return cell(certificate)


def main() -> None:
    """Prints the versions and the table."""
    print("$ python -m experiments.mesh_certificate")
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    print(f"{versions}, Python {platform.python_version()}\n")
    heads = ["program", "tokens a worker", "GPU", "bytes a device", *OPTIONS]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name, program in PROGRAMS.items():
        for tokens in (128, 4096):
            fn, args = program(tokens)
            for target in ("h100", "a100"):
                certificates = [
                    certify(
                        fn, *args, target=target, hosts=HOSTS, compiler_options=given
                    )
                    for given in OPTIONS.values()
                ]
                sent = certificates[0].schedule.collectives[0].bytes
                cells = [name, str(tokens), target, human_bytes(sent)]
                print(f"| {' | '.join([*cells, *map(verdict, certificates)])} |")


if __name__ == "__main__":
    main()
