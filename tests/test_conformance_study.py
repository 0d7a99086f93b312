"""The comparisons with published results, on a small scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments import progress, sweep
from experiments.command import UsageError
from experiments.conformance import __main__ as study
from experiments.conformance import gpt, labels, lenet, published, text, utilisation
from experiments.conformance.config import ConformanceConfig, LabelsRun, TextRun
from experiments.logbook import opened
from experiments.models.model import parameter_count

SENTENCE = "to be, or not to be: that is the question. "


@pytest.fixture
def text_run(tmp_path):
    """A small run on text."""
    return TextRun(
        period=2,
        outer_rate=0.3,
        reset=False,
        seed=0,
        out=tmp_path,
        workers=2,
        steps=24,
        batch_size=4,
        context=8,
        test_batches=2,
    )


@pytest.fixture
def labels_run(tmp_path):
    """A small run on digits."""
    return LabelsRun(
        seed=0,
        out=tmp_path,
        algorithms=("vrl_sgd",),
        workers=4,
        rate=0.05,
        batch_size=8,
        start_accuracy=0.0,
        epoch=20,
        epochs=1,
    )


@pytest.mark.matrix
def test_text_is_learnt(text_run, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE * 60)
    with opened(text_run.log, text_run) as log:
        text.train(text_run, file, log)
    assert sweep.finished(text_run)
    (result,) = read_jsonl(text_run.log)["result"]
    first, *_, last = result["validation_losses"]
    assert len(result["validation_losses"]) == text.LOOKS + 1
    assert last < 0.9 * first


@pytest.mark.matrix
def test_digits_are_learnt(labels_run, monkeypatch):
    few = {name: (x[::40], y[::40]) for name, (x, y) in labels.digits().items()}
    monkeypatch.setattr(labels, "digits", lambda: few)
    monkeypatch.setattr(labels, "EVALUATED", 25)
    with opened(labels_run.log, labels_run) as log, progress.report() as show:
        labels.train(labels_run, log, show)
    assert sweep.finished(labels_run)
    found = read_jsonl(labels_run.log)
    # Any accuracy is enough for a start at once.
    assert found["start"] == [{"steps": 0}]
    (result,) = found["result"]
    first, last = result["train_loss"]
    assert last < first


def test_runs_on_text_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ConformanceConfig, "labels_runs", lambda self: [])
    with pytest.raises(UsageError, match="--data-file"):
        study.main(ConformanceConfig(out=tmp_path))


@pytest.mark.parametrize("reset", [False, True])
def test_the_outer_step_is_that_of_smol_diloco(text_run, reset):
    """v <- mu v + d, p <- p + rate (1 + mu) v, in NumPy around optax's AdamW."""
    run = dataclasses.replace(text_run, period=3, reset=reset, inner_rate=0.1)
    targets = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)  # of each worker
    gradient = lambda params, target: 2 * (params - target)
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(run.inner_rate, b2=0.95, weight_decay=run.weight_decay),
    )
    server = v = np.zeros(2)
    states = [inner.init(jnp.zeros(2)) for _ in targets]
    for _ in range(3):
        ways = []
        for worker, target in enumerate(targets):
            params = jnp.asarray(server, jnp.float32)
            state = inner.init(params) if reset else states[worker]
            for _ in range(run.period):
                updates, state = inner.update(gradient(params, target), state, params)
                params = optax.apply_updates(params, updates)
            states[worker] = state
            ways.append(np.asarray(params, float) - server)
        v = run.outer_momentum * v + np.mean(ways, axis=0)
        server = server + run.outer_rate * (1 + run.outer_momentum) * v

    optimizer = text.optimizer(run)

    def step(params, state, target):
        updates, state = optimizer.update(gradient(params, target), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros([2, 2])
    state = jax.vmap(optimizer.init)(params)
    workers = jax.jit(jax.vmap(step, axis_name="workers"))
    for _ in range(3 * run.period):
        params, state = workers(params, state, targets)
    np.testing.assert_allclose(params, [server, server], rtol=1e-5)


def test_workers_have_other_sequences(text_run):
    chosen = text.batches(text_run, tokens=1000)
    assert chosen.shape == (text.LOOKS, 6, 1, 2, 4)
    for worker in range(2):
        own = chosen[..., worker, :].ravel()
        assert (own % 2 == worker).all()
        assert len(np.unique(own)) == len(own)
        assert own.max() + text_run.context + 1 < 1000


def test_workers_have_few_labels(labels_run):
    chosen = labels.batches(labels_run, steps=250, stream=0)
    assert chosen.shape == (250, 1, 4, 8)
    for worker in range(4):
        own = chosen[:, 0, worker]
        assert len(np.unique(labels.digits()["train"][1][own])) <= 4
        # A shard of 1,000 has 125 batches, and is then drawn anew.
        for once in (own[:125], own[125:]):
            assert len(np.unique(once)) == 1000
    assert len(np.unique(chosen[:125])) == 4000


def test_the_transformer_is_as_large_as_published():
    assert parameter_count(gpt.build(65, 128).init) == 428_800


def test_attention_is_that_of_jax():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 7, 8))
    heads_third = lambda x: jnp.swapaxes(x, 1, 2)
    expected = jax.nn.dot_product_attention(
        *map(heads_third, (q, k, v)), is_causal=True
    )
    np.testing.assert_allclose(gpt.attention(q, k, v), expected, atol=1e-6)


def test_convolutions_are_those_of_xla():
    params = lenet.init(0)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    expected = images
    for name in ("first", "second"):
        bias = params[name]["bias"][None, None, None]
        weights = params[name]["weights"].reshape(5, 5, expected.shape[-1], -1)
        expected = jax.lax.conv_general_dilated(
            expected,
            weights,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        expected = jax.nn.relu(expected + bias)
        expected = jax.lax.reduce_window(
            expected, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    x = expected.reshape(2, -1)
    for name in ("third", "fourth", "last"):
        x = x @ params[name]["weights"] + params[name]["bias"][None]
        x = x if name == "last" else jax.nn.relu(x)
    np.testing.assert_allclose(lenet.logits(params, images), x, atol=1e-5)


@pytest.mark.parametrize(("period", "exchanges"), [(1, 90), (8, 17), (32, 4), (128, 1)])
def test_the_clock_counts_the_exchanges_of_the_window(period, exchanges):
    first, last = published.WINDOWS[period]
    step = published.STEP_SECONDS["diloco"]
    # A ring of four sends three quarters of the bytes, twice.
    exchange = 1.5 * 4 * published.PARAMETERS / (200e6 / 8)
    computing = (last - first) * step
    expected = 100 * computing / (computing + exchanges * exchange)
    assert utilisation.predicted("diloco", period, 200) == pytest.approx(expected)
