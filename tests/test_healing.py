"""Runs in which numbers are not finite end where the others do, or say whose it was."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import cocod_jax as cj

N, PERIOD, ROUNDS, BROKEN, SEEDS = 4, 4, 80, 10, 5
IMAGES, LABELS = map(np.asarray, load_digits(return_X_y=True))
IMAGES = (IMAGES / 16).astype(np.float32)
FINE = np.zeros([N, PERIOD, 2], np.float32)


def network(params, image, mean, variance):
    hidden = (image @ params["a"] - mean[None]) * jax.lax.rsqrt(variance[None] + 1e-3)
    return jnp.tanh(hidden) @ params["b"]


def entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def loss_fn(params, statistics, batch, key):
    """With batch norm. Each step's poison is for the gradient and for statistics."""
    image, label, poison = batch
    hidden = image @ params["a"]
    own = {"mean": hidden.mean(axis=0), "variance": hidden.var(axis=0)}
    mix = lambda old, new: 0.9 * old + 0.1 * jax.lax.stop_gradient(new) + poison[1]
    loss = entropy(network(params, image, own["mean"], own["variance"]), label)
    return loss * (1 + poison[0]), jax.tree.map(mix, statistics, own)


@functools.cache
def trainer(exchange, streamed=False):
    rule = cj.cocod(getattr(cj.exchanges, exchange)("workers"))
    rate = optax.cosine_decay_schedule(0.1, ROUNDS * PERIOD)
    inner = optax.sgd(rate, momentum=0.9)
    round_ = cj.make_round(
        loss_fn, inner, rule, period=PERIOD, stateful=True, streamed=streamed
    )
    return round_, cj.distribute(round_, via="vmap", execution="fused")


def train(trainer, seed, where=None, workers=(), rounds=ROUNDS):
    """The state of a run, and the alarms' sentences by their round."""
    round_, run = trainer
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
    statistics = {"mean": jnp.zeros(32), "variance": jnp.ones(32)}
    first = round_.init({"a": draw(64, 32), "b": draw(32, 10)}, statistics)
    state, alarm, sentences = cj.replicate(first, N), cj.DriftAlarm(), {}
    for r in range(rounds):
        chosen, poison = rng.integers(len(LABELS), size=(N, PERIOD, 16)), FINE.copy()
        if r == BROKEN and where in KINDS:
            poison[list(workers), 1, KINDS.index(where)] = np.nan
        elif r == BROKEN and where == "parameters":
            break_ = lambda x: x.at[jnp.array(workers)].set(jnp.inf)
            state = state._replace(params=jax.tree.map(break_, state.params))
        state, metrics = run(state, (IMAGES[chosen], LABELS[chosen], poison))
        if sentence := alarm(metrics):
            sentences[r] = sentence
    return state, sentences


KINDS = ("gradients", "statistics")


@jax.jit
def evaluated(params, statistics):
    logits = network(params, IMAGES, statistics["mean"], statistics["variance"])
    return entropy(logits, LABELS)


def losses(trainer, *disturbance):
    """Of the consensus of each seed's run."""
    found = []
    for seed in range(SEEDS):
        state, sentences = train(trainer, seed, *disturbance)
        assert [*sentences] == [BROKEN] * bool(disturbance)
        assert np.isfinite(jax.tree.leaves(jax.tree.map(jnp.sum, state[:2]))).all()
        found.append(evaluated(cj.consensus(state), cj.consensus_model_state(state)))
    return np.array(found)


@functools.cache
def undisturbed(streamed):
    return losses(trainer("finite", streamed))


CASES = {
    ("gradients", (2,)),
    ("gradients", (0, 1, 2, 3)),
    ("statistics", (0, 1, 3)),
    ("parameters", (2,)),
    ("parameters", (0, 1, 3)),
}


@pytest.mark.parametrize(
    "streamed", [False, pytest.param(True, marks=pytest.mark.matrix)]
)
@pytest.mark.parametrize(("where", "workers"), sorted(CASES))
def test_a_run_heals_and_ends_where_it_would_have(where, workers, streamed):
    """No farther from there than another seed may take it."""
    usual = undisturbed(streamed)
    if streamed and len(workers) == N:
        pytest.skip("nobody is left: each piece is merged while all have given up")
    found = losses(trainer("finite", streamed), where, workers)
    assert abs(found.mean() - usual.mean()) < 3 * usual.std(ddof=1)


@pytest.mark.parametrize(("where", "workers"), sorted(CASES))
def test_without_healing_the_alarm_says_whose_it_was(where, workers):
    """In the round in which it happens; what the others sent is broken by then."""
    _, sentences = train(trainer("mean"), 0, where, workers, rounds=BROKEN + 1)
    names = ", ".join(map(str, workers))
    assert re.search(rf"grad_norm of worker {names}( and|\.)", sentences[BROKEN])
