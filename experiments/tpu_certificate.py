"""What the compiler for TPUs hides, and by which flags: ``docs/overlap.md``'s tables.

    python -m experiments.tpu_certificate

compiles each program for eight chips that need not be there, with and without
``cj.compiler_options``, and again without each of them. It takes minutes.
"""

import platform
from collections.abc import Callable, Mapping
from importlib import metadata

import jax
import jax.numpy as jnp
import optax

import cocod_jax as cj
from cocod_jax._text import human_bytes
from cocod_jax.certify import Certificate, certify
from cocod_jax.certify._plugin import plugin_directory
from cocod_jax.execution._flags import TPU_FLAGS
from experiments.streaming_certificate import (
    PERIOD,
    RULE,
    SGD,
    WORKERS,
    Program,
    cell,
    streamed,
    transformer_step,
)
from experiments.train import certifiable

WIDTH, BATCH = 256, 1024


def loss_fn(params: list[dict[str, jax.Array]], batch: jax.Array) -> jax.Array:
    """Of residual blocks of two layers, as in a transformer."""
    x = batch
    for block in params:
        x = x + jnp.tanh(jax.nn.standardize(x) @ block["in"]) @ block["out"]
    return jnp.mean((x - batch) ** 2)


def mlp_round(*, streamed: bool) -> Program:
    """A round of three blocks, 6.3 MB, on 1,024 rows a worker and step."""
    round_ = cj.make_round(loss_fn, SGD, RULE, period=PERIOD, streamed=streamed)

    def start() -> cj.RoundState:
        wide, narrow = jnp.zeros([WIDTH, 4 * WIDTH]), jnp.zeros([4 * WIDTH, WIDTH])
        params = [{"in": wide, "out": narrow}] * 3
        return cj.replicate(round_.init(params), WORKERS)

    batches = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, WIDTH), jnp.float32)
    return round_, (jax.eval_shape(start), batches)


def shared_round(algorithm: str) -> Program:
    """A round of the language model, by two workers of four chips each."""
    job = "--task text --model mini --context 256 --batch-size 8 --fsdp 4 --algorithm"
    round_, *shapes = certifiable([*job.split(), algorithm], WORKERS)
    return round_, tuple(shapes)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "MLP, whole round": lambda: mlp_round(streamed=False),
    "MLP, streamed round": lambda: mlp_round(streamed=True),
    "transformer, AdamW, streamed every": lambda: transformer_step(
        streamed(optax.adamw(1e-3))
    ),
    "workers of 4 chips, whole round": lambda: shared_round("cocod"),
    "workers of 4 chips, streamed round": lambda: shared_round("streamed"),
}


def certificate(
    program: Program, target: str, options: Mapping[str, float]
) -> Certificate:
    fn, args = program
    return certify(fn, *args, target=target, devices=WORKERS, compiler_options=options)


def beside(certificate: Certificate) -> str:
    """The local steps beside the exchange, or the share of the single step."""
    return certificate.verdict if certificate.schedule.steps else cell(certificate)


def main() -> None:
    """Prints the versions, the options and the tables."""
    print("$ python -m experiments.tpu_certificate")
    (libtpu,) = metadata.distributions(path=[str(plugin_directory("tpu"))])
    versions = f"jax {jax.__version__}, libtpu {libtpu.version}"
    print(f"{versions}, optax {optax.__version__}, Python {platform.python_version()}")
    for target, options in TPU_FLAGS.items():
        print(f"options for {target}: {options}")
    print("\n| program | TPU | bytes | without options | with options |")
    print("|---|---|---|---|---|", flush=True)
    for name, program in PROGRAMS.items():
        for target, options in TPU_FLAGS.items():
            certificates = [certificate(program(), target, o) for o in ({}, options)]
            sent = human_bytes(certificates[0].schedule.collectives[0].bytes)
            cells = [name, target, sent, *map(beside, certificates)]
            print(f"| {' | '.join(cells)} |", flush=True)
    print("\n| TPU | left out | MLP, whole round | MLP, streamed round |")
    print("|---|---|---|---|", flush=True)
    for target, options in TPU_FLAGS.items():
        for left_out in options:
            others = {n: value for n, value in options.items() if n != left_out}
            certificates = [
                certificate(mlp_round(streamed=streamed), target, others)
                for streamed in (False, True)
            ]
            cells = [target, f"`{left_out}`", *map(beside, certificates)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
