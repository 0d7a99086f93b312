"""DiLoCo on Tiny Shakespeare, as smol_diloco trains it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook
from experiments.algorithms import AXIS
from experiments.conformance import gpt
from experiments.conformance.config import TextRun
from experiments.data import text
from experiments.iterations.trainer import trainer
from experiments.models.model import Model

LOOKS = 4
"""Validation losses of a run before its last, evenly spaced."""


def optimizer(run: TextRun) -> optax.GradientTransformation:
    """DiLoCo with the outer step of smol_diloco.

    It calls v <- mu v + d, p <- p + rate (1 + mu) v Nesterov's; with the mean way d
    of the workers that is heavy-ball momentum at 1 + mu times the rate.
    """
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(run.inner_rate, b2=0.95, weight_decay=run.weight_decay),
    )
    if run.reset:
        inner = cj.per_step.reset_every(run.period, inner, delay=0)
    mu = run.outer_momentum
    rule = cj.rules.diloco(AXIS, optax.sgd((1 + mu) * run.outer_rate, momentum=mu))
    return cj.every(run.period, inner, rule, delay=0)


def batches(run: TextRun, tokens: int) -> np.ndarray:
    """Where each sequence of each batch begins, [LOOKS, steps, 1, N, batch].

    Workers have every N-th position, and no sequence twice.
    """
    places = np.arange(tokens - run.context - 1)
    shape = LOOKS, run.steps // LOOKS, 1, run.batch_size
    count = run.steps * run.batch_size
    own = [
        np.random.default_rng((run.seed, worker))
        .permutation(places[worker :: run.workers])[:count]
        .reshape(shape)
        for worker in range(run.workers)
    ]
    return np.stack(own, axis=3)


def batch_loss(
    model: Model, tokens: jax.Array, context: int
) -> Callable[[Any, jax.Array], jax.Array]:
    """The mean cross-entropy of the sequences that begin at some places."""

    def loss(params: Any, places: jax.Array) -> jax.Array:
        chosen = tokens[places[:, None] + jnp.arange(context + 1)[None]]
        logits, _ = model.apply(params, {}, chosen[:, :-1], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, chosen[:, 1:])
        return losses.mean()

    return loss


def train(run: TextRun, data_file: Path, log: Logbook) -> None:
    """One run; its validation losses go into the log."""
    corpus = text.load(data_file, "characters")
    end = int(0.95 * len(corpus.tokens))
    train_on, test_on = (
        jnp.asarray(part, jnp.int32) for part in np.split(corpus.tokens, [end])
    )
    model = gpt.build(corpus.tokenizer.size, run.context)
    # Neighbouring sequences, each one character after the last: smol_diloco's.
    places = jnp.arange(run.test_batches * run.batch_size).reshape(run.test_batches, -1)
    test_loss = batch_loss(model, test_on, run.context)

    def validate(params: Any) -> jax.Array:
        consensus = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
        return jax.lax.map(lambda batch: test_loss(consensus, batch), places).mean()

    each = trainer(
        lambda _: optimizer(run), batch_loss(model, train_on, run.context), validate
    )
    params, _ = model.init(jax.random.key(run.seed))
    spread = lambda leaf: jnp.broadcast_to(leaf, (1, run.workers, *leaf.shape))
    params = jax.tree.map(spread, params)
    chosen = batches(run, len(train_on))
    (params, _), losses = each.advance(params, each.init(params), 0.0, chosen)
    last = jax.jit(jax.vmap(validate))(params)
    log.write("text", digest=corpus.digest, vocabulary=corpus.tokenizer.size)
    log.write("result", validation_losses=[float(x) for x in (*losses[:, 0], last[0])])
