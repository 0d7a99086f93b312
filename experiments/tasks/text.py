"""Text to be written on: a transformer that predicts the next token."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from experiments import data
from experiments.algorithms import clipped_adamw
from experiments.command import UsageError
from experiments.config import TextConfig
from experiments.data import text
from experiments.models import Model, transformer
from experiments.models.sampling import sample
from experiments.tasks.task import Data, Task

SAMPLE = 200
"""Tokens that the trained model writes."""
PROMPT = 20
"""Tokens of the text that is held out, with which it begins."""


def task(config: TextConfig) -> Task:
    """The transformer of a configuration on its text."""
    _check_shared(config)
    corpus = text.load(config.data_file, config.tokenizer)
    model = transformer.build(
        config.model,
        vocabulary=corpus.tokenizer.size,
        dtype=config.dtype,
        remat=config.remat,
    )

    def batch_shapes(workers: int, period: int) -> Any:
        example = text.example(config.context)
        return data.batch_shapes(
            example, workers, period, config.batch_size, config.micro_batches
        )

    def loss_fn(params, model_state, batch, key):
        del key  # the model draws nothing
        return losses(model, params, batch["tokens"]).mean(), model_state

    return Task(
        init=model.init,
        loss_fn=loss_fn,
        optimizer=lambda workers, steps: clipped_adamw(config, steps),
        load=lambda workers: load(config, model, corpus, workers),
        batch_shapes=batch_shapes,
        unit="tokens",
        result=result,
        flops=transformer.flops(
            config.model, vocabulary=corpus.tokenizer.size, context=config.context
        ),
    )


def _check_shared(config: TextConfig) -> None:
    """Raises UsageError unless the devices of a worker can divide its model."""
    shape = transformer.SIZES[config.model]
    both, tensor = config.fsdp * config.tensor, config.tensor
    for name, parts, what, size in (
        ("tensor", tensor, "heads", shape.heads),
        ("tensor", tensor, "hidden channels", shape.hidden),
        ("fsdp times tensor", both, "channels", shape.width),
    ):
        if size % parts:
            raise UsageError(
                f"{name}={parts} does not divide the {size} {what} of "
                f"model={config.model!r}; take a divisor of them."
            )


def load(config: TextConfig, model: Model, corpus: text.Corpus, workers: int) -> Data:
    """Cuts the text, divides it between the workers and prepares the evaluation."""
    train, test = text.split(corpus.tokens, config.context)
    shards = data.partition(
        np.zeros(len(train.windows)), workers, "iid", config.seed, config.micro_batches
    )
    pipeline = data.Pipeline(
        train,
        shards,
        batch_size=config.batch_size,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    entropy = text.unigram_entropy(test.windows[:, 1:].ravel())
    note = (
        f"Held out are the last {test.windows[:, 1:].size:,} tokens; without those "
        f"before, no model predicts them better than by {entropy:.4f} nats a token, "
        "their unigram entropy."
    )
    evaluate = evaluator(model, test.windows)
    return Data(
        steps_per_epoch=pipeline.steps_per_epoch,
        per_step=pipeline.examples_per_step * config.context,
        rounds=pipeline.rounds,
        evaluate=lambda *trained: evaluate(*trained) | {"unigram_entropy": entropy},
        digest=corpus.digest,
        notes=(*corpus.notes, note),
        sample=writer(config, model, corpus, test.windows[0, :PROMPT]),
    )


def losses(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of every token but the first: [batch, length - 1]."""
    logits, _ = model.apply(params, {}, tokens[:, :-1], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def evaluator(
    model: Model, windows: np.ndarray, batch_size: int = 64
) -> Callable[[Any, Any], dict[str, float]]:
    """The mean loss of one model on all sequences, and its perplexity."""
    mean_losses = jax.jit(lambda params, tokens: losses(model, params, tokens).mean(1))
    # The last batch is filled up, so that one program does for all of them.
    missing = -len(windows) % batch_size
    padded = np.pad(windows.astype(np.int32), ((0, missing), (0, 0)))
    batches = padded.reshape(-1, batch_size, windows.shape[1])

    def evaluate(params: Any, model_state: Any) -> dict[str, float]:
        del model_state
        parts = [mean_losses(params, batch) for batch in batches]
        loss = float(np.concatenate(jax.device_get(parts))[: len(windows)].mean())
        return {"test_loss": loss, "test_perplexity": math.exp(min(loss, 700.0))}

    return evaluate


def writer(
    config: TextConfig, model: Model, corpus: text.Corpus, prompt: np.ndarray
) -> Callable[[Any, Any], str]:
    """What a model writes after a few tokens that it has not seen."""
    logits_of = lambda params, tokens: model.apply(params, {}, tokens, train=False)[0]

    def write(params: Any, model_state: Any) -> str:
        del model_state
        written = sample(
            logits_of,
            params,
            prompt,
            jax.random.key(config.seed),
            config.temperature,
            length=SAMPLE,
            context=config.context,
        )
        decode = corpus.tokenizer.decode
        return decode(np.concatenate([prompt, jax.device_get(written)]))

    return write


def result(record: Mapping[str, float]) -> tuple[str, str]:
    """The perplexity, for people."""
    value = f"{record['test_perplexity']:.2f}, loss {record['test_loss']:.4f}"
    entropy = f"unigram entropy {record['unigram_entropy']:.4f}"
    return "perplexity of held-out text", f"{value}, {entropy}"
