"""Alarms are silent while a run is healthy, and ring early when it is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import cocod_jax as cj

N = 4
IMAGES, LABELS = load_digits(return_X_y=True)


def network(params, image):
    hidden = jnp.tanh(jnp.tanh(image @ params["a"]) @ params["b"])
    return hidden @ params["c"]


def digits_loss(params, batch):
    image, label = batch
    logits = network(params, image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def linear_loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


def digits(rng, period, *, sorted_labels=False):
    """Batches of 8x8 digits; with sorted labels each worker sees a few of them."""
    order = (
        np.argsort(LABELS, kind="stable") if sorted_labels else rng.permutation(1797)
    )
    parts = np.array_split(order, N)
    while True:
        chosen = np.stack([rng.choice(part, (period, 16)) for part in parts])
        yield (IMAGES[chosen] / 16).astype(np.float32), LABELS[chosen]


def regression(rng, period):
    """Batches of a linear problem whose noise has the variance 0.09."""
    while True:
        x = rng.normal(size=(N, period, 16, 3))
        y = x @ [1, -2, 3] + 0.3 * rng.normal(size=(N, period, 16))
        yield x.astype(np.float32), y.astype(np.float32)


def rings(inner, rounds, *, problem="digits", period=8, delay=None, **options):
    """(round, first words) of each alarm of a run, and its losses."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
    if problem == "digits":
        params = {"a": draw(64, 64), "b": draw(64, 64), "c": jnp.zeros([64, 10])}
        loss, batches = digits_loss, digits(rng, period, **options)
    else:
        params = jnp.zeros(3)
        loss, batches = linear_loss, regression(rng, period)
    round_ = cj.make_round(loss, inner, cj.cocod("workers"), period=period, delay=delay)
    run = cj.distribute(round_, via="vmap", execution="fused")
    state = cj.replicate(round_.init(params), N)
    alarm, found, losses = cj.DriftAlarm(), [], []
    for r in range(rounds):
        state, metrics = run(state, next(batches))
        losses.append(float(metrics.loss.mean()))
        if sentence := alarm(metrics):
            found.append((r, sentence.partition(":")[0]))
    return found, losses


def momentum(learning_rate):
    return optax.sgd(learning_rate, momentum=0.9)


WARMED_UP = optax.join_schedules(
    [optax.linear_schedule(0.01, 0.1, 100), optax.cosine_decay_schedule(0.1, 700)],
    [100],
)


@pytest.mark.parametrize(
    ("inner", "options"),
    [
        # The workers' own steps go 70 % of the way to the mean, for 30 rounds.
        (optax.sgd(0.2), {}),
        # The distance grows fivefold, while the loss falls.
        (momentum(0.1), {}),
        (momentum(WARMED_UP), {}),
        # The alignment falls below -0.8.
        (momentum(0.05), {"sorted_labels": True}),
        (momentum(0.05), {"period": 2}),
        (momentum(0.05), {"delay": 3}),
        (optax.adam(0.01), {}),
        (momentum(0.01), {"problem": "regression"}),
    ],
)
def test_healthy_runs_are_silent(inner, options):
    found, losses = rings(inner, rounds=100, **options)
    assert np.mean(losses[-10:]) < 0.1 * losses[0]
    assert found == []


@pytest.mark.parametrize("delay", [8, 3])
def test_too_large_steps_ring_while_the_loss_is_finite(delay):
    found, losses = rings(momentum(0.5), rounds=20, delay=delay)
    assert found == [(4, "The workers move apart")]
    assert np.isfinite(losses).all()


def test_a_period_too_long_rings_where_a_fresh_mean_would_do():
    options = {"problem": "regression", "rounds": 30}
    found, losses = rings(momentum(0.05), **options)
    assert losses[-1] > 1e6
    kinds = {kind: r for r, kind in found}
    assert kinds.keys() == {"The workers move apart", "The merge over-corrects"}
    assert max(kinds.values()) <= 10
    found, losses = rings(momentum(0.05), delay=0, **options)
    assert np.mean(losses[-10:]) < 0.2
    assert found == []


def test_an_over_correction_rings_before_the_loss_has_risen():
    found, losses = rings(optax.sgd(0.3), rounds=60, problem="regression")
    assert [kind for _, kind in found] == ["The merge over-corrects"]
    # It costs: the loss of the solution is 0.09.
    assert np.mean(losses[-10:]) > 0.13
    assert np.max(losses[1:]) < losses[0]


# ------------------------------------------------------------- by the numbers


def metrics(loss=1.0, distance=1.0, **fields):
    """A round's metrics, of two workers and three local steps."""
    values: dict[str, Any] = {
        "loss": np.full([2, 3], loss),
        "grad_norm": np.ones([2, 3]),
        "distance": np.full(2, distance),
        "progress_norm": np.ones(2),
        "alignment": np.zeros(2),
    }
    return cj.RoundMetrics(**(values | fields))


def ring(rounds):
    """The sentence of each round, empty when there is none."""
    alarm = cj.DriftAlarm()
    return [alarm(each) or "" for each in rounds]


def test_distance_alone_is_no_alarm_and_loss_alone_is_none():
    far = metrics(loss=0.5, distance=100.0)
    assert not any(ring(2 * [metrics()] + 5 * [far]))
    bad = metrics(loss=100.0, distance=1.5)
    assert not any(ring(2 * [metrics()] + 5 * [bad]))
    # Synchronous SGD diverges without a distance.
    start, bad = metrics(distance=0.0), metrics(loss=100.0, distance=0.0)
    assert not any(ring([start] + 5 * [bad]))


def test_the_first_round_begins_with_equal_workers_and_sets_no_distance():
    start, rise = metrics(distance=0.0), metrics(loss=1.6, distance=1.0)
    assert not any(ring([start, metrics(distance=5.0), *5 * [rise]]))
    assert any(ring([start, metrics(distance=0.4), *5 * [rise]]))
    # A rate of 0 in the first round leaves them equal in the second.
    assert not any(ring([start, start, metrics(distance=5.0), *5 * [rise]]))


@pytest.mark.parametrize(
    ("first", "later", "alarming"),
    [(1.0, 1.6, True), (1.0, 1.4, False), (-2.0, -0.9, True), (-2.0, -2.5, False)],
)
def test_a_loss_has_risen_when_it_is_half_again_the_first(first, later, alarming):
    rounds = 2 * [metrics(first)] + 3 * [metrics(later, distance=3.0)]
    assert bool(ring(rounds)[-1]) == alarming


def test_workers_that_move_apart_count_by_their_weights():
    far = metrics(loss=np.array([[1.0], [4.0]]), distance=np.array([1.0, 6.0]))
    rounds = 2 * [metrics()] + 3 * [far]
    alarms = {share: cj.DriftAlarm((1 - share, share)) for share in (0.1, 0.5)}
    rings = {share: any(map(alarm, rounds)) for share, alarm in alarms.items()}
    assert rings == {0.1: False, 0.5: True}


def test_three_rounds_in_a_row_ring_once():
    good, bad = metrics(), metrics(loss=2.0, distance=2.5)
    *before, sentence, after = ring([good, good, bad, bad, good, *4 * [bad]])
    assert "from 1 to 2.5, and the loss from 1 to 2" in sentence
    assert "cocod_jax.testing.check_inner" in sentence
    assert not any([*before, after])


@pytest.mark.parametrize(
    ("alignment", "progress_norm", "alarming"),
    [
        ([1, 1], 1.1, True),
        ([1, 1], 0.9, False),
        # The worker that is farther from the mean counts more.
        ([1, -1], 1.9, True),
        ([-1, 1], 1.9, False),
        ([-1, -1], 10.0, False),
    ],
)
def test_the_merge_over_corrects_when_steps_went_all_of_the_way(
    alignment, progress_norm, alarming
):
    distance = np.array([4.0, 1.0])
    each = metrics(
        distance=distance,
        alignment=np.array(alignment),
        progress_norm=progress_norm * distance,
    )
    sentences = ring(12 * [each])
    expected = 9 * [False] + [alarming] + 2 * [False]
    assert list(map(bool, sentences)) == expected
    if alarming:
        assert f"had gone {110 if min(alignment) > 0 else 168}% of" in sentences[9]


def test_what_all_workers_have_in_common_is_no_correction():
    """Workers at 4 and 0, with shares of 3/4 and 1/4, and all of them go 10 further."""
    each = metrics(
        distance=np.array([1.0, 3.0]),
        alignment=np.array([-1, 1]),
        progress_norm=np.array([10, 10]),
    )
    alarm, unweighted = cj.DriftAlarm(weights=(3, 1)), cj.DriftAlarm()
    rounds = 12 * [each]
    assert not any(map(alarm, rounds))
    assert any(map(unweighted, rounds))
    with pytest.raises(ValueError, match="3 entries, but the metrics are those of 2"):
        cj.DriftAlarm(weights=(1, 1, 1))(each)


def test_what_is_not_finite_rings_at_once_and_says_whose():
    loss, distance = np.ones([2, 3]), np.ones(2)
    loss[1, 2] = np.nan
    distance[:] = np.inf
    sentence, *others = ring(3 * [metrics(loss=loss, distance=distance)])
    expected = "Not finite: loss of worker 1 and distance of worker 0, 1. "
    assert sentence.startswith(expected)
    assert not any(others)


def test_metrics_on_devices_of_low_precision_are_fine():
    low = lambda values: jnp.asarray(values, jnp.bfloat16)
    far = metrics(loss=2.0, distance=1e20)  # whose square is too large for float32
    rounds = [jax.tree.map(low, each) for each in 2 * [metrics()] + 3 * [far]]
    assert "The workers move apart" in ring(rounds)[-1]
