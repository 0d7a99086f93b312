"""What the compiler puts beside a streamed exchange: ``docs/overlap.md``'s table.

    python -m experiments.streaming_certificate

compiles each program for eight GPUs that need not be there, with and without
``cj.compiler_options``, and prints one line for each. It takes minutes.
"""

import platform
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import cocod_jax as cj
from cocod_jax._text import human_bytes
from cocod_jax.certify import Certificate, certify
from experiments import tasks
from experiments.config import TrainConfig

WORKERS, PERIOD = 8, 8
RULE = cj.cocod("workers")
SGD = optax.sgd(0.1, momentum=0.9, nesterov=True)
Program = tuple[Any, tuple[Any, ...]]
Model = Literal["resnet18", "vgg16"]


def task_of(model: Model) -> tasks.Task:
    """32 images of CIFAR-10 a worker and step, a network at full width."""
    config = TrainConfig(model=model, width=64, data="cifar10", batch_size=32)
    return tasks.task_of(config)


def streamed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    return cj.every(PERIOD, inner, RULE, streamed=True)


def image_step(optimizer: Any, model: Model = "resnet18") -> Program:
    """A user's step of one worker."""
    task = task_of(model)

    def step(params: Any, model_state: Any, state: Any, batch: Any) -> Any:
        grad = jax.value_and_grad(task.loss_fn, has_aux=True)
        (loss, model_state), gradients = grad(params, model_state, batch, None)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), model_state, state, loss

    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.eval_shape(optimizer.init, params)
    first = lambda x: x.update(shape=(x.shape[0], *x.shape[2:]))
    batch = jax.tree.map(first, task.batch_shapes(WORKERS, PERIOD))
    return step, (*of_all((params, model_state, state)), batch)


def image_round(model: Model = "resnet18") -> Program:
    """The library's streamed round of the same network."""
    task = task_of(model)
    round_ = cj.make_round(
        task.loss_fn, SGD, RULE, period=PERIOD, streamed=True, stateful=True
    )
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: cj.replicate(round_.init(*task.init(key)), WORKERS))
    return round_, (state, task.batch_shapes(WORKERS, PERIOD))


def transformer_step(optimizer: Any) -> Program:
    """Four blocks of a decoder, 512 wide, on 8 texts of 256 tokens: 25 MB."""
    width, heads, vocabulary, tokens = 512, 8, 4096, (8, 256)
    block = {"qkv": (width, 3 * width), "out": (width, width)}
    block |= {"up": (width, 4 * width), "down": (4 * width, width)}
    array = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {
        "blocks": [jax.tree.map(array, block, is_leaf=_is_shape)] * 4,
        "embedding": array((vocabulary, width)),
    }

    def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
        x = params["embedding"][batch]
        for block in params["blocks"]:
            y = jax.nn.standardize(x) @ block["qkv"]
            qkv = y.reshape(*batch.shape, 3, heads, width // heads)
            y = jax.nn.dot_product_attention(
                qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True
            )
            x = x + y.reshape(x.shape) @ block["out"]
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ block["up"]) @ block["down"]
        logits = (x @ params["embedding"].T)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return losses.mean()

    def step(params: Any, state: Any, batch: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = jax.eval_shape(optimizer.init, params)
    batch = jax.ShapeDtypeStruct(tokens, jnp.int32)
    return step, of_all((params, state, batch))


PROGRAMS: dict[str, Callable[[], Program]] = {
    "ResNet-18, streamed round": image_round,
    "ResNet-18, streamed every": lambda: image_step(streamed(SGD)),
    "ResNet-18, clip in front of it": lambda: image_step(
        optax.chain(optax.clip_by_global_norm(1.0), streamed(SGD))
    ),
    "ResNet-18, Pipe-SGD": lambda: image_step(
        optax.chain(cj.stale_mean_gradients("workers"), SGD)
    ),
    "VGG-16, streamed every": lambda: image_step(streamed(SGD), "vgg16"),
    "transformer, AdamW, streamed every": lambda: transformer_step(
        streamed(optax.adamw(1e-3))
    ),
}


def of_all(tree: Any) -> Any:
    """The shapes of one worker's tree, for all workers."""
    shape = lambda x: jax.ShapeDtypeStruct((WORKERS, *x.shape), x.dtype)
    return jax.tree.map(shape, tree)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def cell(certificate: Certificate) -> str:
    """The share of the work beside the exchange, and the operations; or why none is."""
    (exchange,) = certificate.schedule.collectives
    if not exchange.beside.operations:
        return ", ".join(reason.id for reason in certificate.reasons)
    beside = exchange.beside
    return f"{beside.work:.0%}, {beside.operations} of {beside.of}"


def main() -> None:
    """Prints the versions, the options and the table."""
    print("$ python -m experiments.streaming_certificate")
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    print(f"{versions}, Python {platform.python_version()}")
    options = cj.compiler_options("gpu")
    print(f"options: {options}\n")
    print("| program | GPU | bytes a step | without options | with options |")
    print("|---|---|---|---|---|", flush=True)
    for name, program in PROGRAMS.items():
        fn, args = program()
        for target in ("h100", "a100"):
            certificates = [
                certify(
                    fn, *args, target=target, devices=WORKERS, compiler_options=given
                )
                for given in (None, options)
            ]
            sent = human_bytes(certificates[0].schedule.collectives[0].bytes)
            cells = [name, target, sent, *map(cell, certificates)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
