"""A round in numbers, against the certificate's own and numbers by hand."""

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import dataflow
from tests import problems

N, PERIOD = 4, 8
PARAMETERS = 3 * 2 + 1 + 2 + 4  # problems.params


def make_round(rule=None, delay=None, streamed=False, trainable=None):
    rule = cj.cocod("workers") if rule is None else rule
    return cj.make_round(
        problems.loss,
        optax.adam(0.1),
        rule,
        period=PERIOD,
        delay=delay,
        streamed=streamed,
        trainable=trainable,
    )


def summarize(round_, params=None, **options):
    params = problems.params() if params is None else params
    return cj.summary(round_, cj.replicate(round_.init(params), N), **options)


def test_the_parameters_of_one_worker_are_counted_and_sent():
    found = summarize(make_round())
    assert (found.workers, found.parameters) == (N, PARAMETERS)
    assert found.sent_bytes == {"float32": 4 * PARAMETERS}


@pytest.mark.parametrize("delay", [0, 3, PERIOD])
def test_the_bytes_are_those_of_the_whole_round(delay):
    round_ = make_round(delay=delay)
    state = cj.replicate(round_.init(problems.params()), N)
    flows = dataflow(round_, state, problems.batches(steps=PERIOD))
    sent = {flow.dtype: flow.bytes for flow in flows}
    assert cj.summary(round_, state).sent_bytes == sent


def test_each_dtype_is_named_and_narrow_ones_travel_as_float32():
    params = {
        "half": jnp.ones(10, jnp.bfloat16),
        "single": jnp.ones(3),
        "complex": jnp.ones(2, jnp.complex64),
        "step": jnp.array(0),  # stays with its worker
    }
    trainable = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    found = summarize(make_round(delay=1, trainable=trainable), params)
    assert found.parameters == 16
    assert found.sent_bytes == {"float32": 4 * 13, "complex64": 8 * 2}
    assert "Each sends 16 B of complex64 and 52 B of float32 in" in str(found)


def test_several_collectives_of_a_dtype_count_together():
    mean = lambda tree: jax.tree.map(lambda x: jax.lax.pmean(x, "workers"), tree)
    send = lambda state, tree, weight=None: (mean(tree), state)
    receive = lambda sent, like: sent
    exchange = cj.mean("workers")._replace(send=send, receive=receive)
    leaf_by_leaf = cj.cocod(exchange)
    assert summarize(make_round(leaf_by_leaf)) == summarize(make_round())


def test_exchanges_per_epoch():
    assert summarize(make_round()).exchanges_per_epoch is None
    found = summarize(make_round(), steps_per_epoch=100)
    assert found.exchanges_per_epoch == 12.5
    assert "round of 8 local steps, 12.5 times in an epoch." in str(found)


@pytest.mark.parametrize(
    ("delay", "sentence"),
    [
        (0, "Nothing hides the exchange"),
        (3, "beside the first 3 of 8 local steps"),
        (8, "beside the first 8 of 8 local steps"),
    ],
)
def test_what_can_hide_the_exchange(delay, sentence):
    assert sentence in str(summarize(make_round(delay=delay)))


def test_memory_is_kept_only_with_a_delay():
    now, later = (summarize(make_round(delay=delay)) for delay in (0, 1))
    assert (now.kept_bytes, later.kept_bytes) == (0, 2 * 4 * PARAMETERS)
    assert "each worker keeps 104 B" in str(later)


def test_narrow_parameters_are_kept_in_both_dtypes():
    params = jnp.ones(10, jnp.bfloat16)
    assert summarize(make_round(), params).kept_bytes == 10 * (2 + 4)


def test_a_streamed_round_sends_and_keeps_a_piece():
    """Of 6, 1, 2 and 4 numbers an eighth, rounded up, is one of each."""
    found = summarize(make_round(streamed=True), steps_per_epoch=100)
    assert (found.streamed, found.delay, found.parameters) == (True, 1, PARAMETERS)
    assert (found.sent_bytes, found.kept_bytes) == ({"float32": 4 * 4}, 2 * 4 * 4)
    assert found.exchanges_per_epoch == 100
    _, sends, beside = str(found).splitlines()
    assert sends == (
        "Each sends 16 B of float32 in every local step (128 B in 8), 100 times in an "
        "epoch."
    )
    assert beside == (
        "The exchange can run beside that step, for which each worker keeps 32 B: the "
        "piece and what is in flight."
    )


def test_the_bytes_of_a_piece_are_those_of_every_step():
    params = {"half": jnp.ones(10, jnp.bfloat16), "single": jnp.ones(3)}
    loss = lambda p, b: sum(x.sum().astype(jnp.float32) * b for x in p.values())
    round_ = cj.make_round(
        loss, optax.sgd(0.1), cj.cocod("workers"), period=4, streamed=True
    )
    state = cj.replicate(round_.init(params), N)
    found = cj.summary(round_, state)
    # bfloat16 travels as float32, and is kept in both.
    assert found.sent_bytes == {"float32": 4 * (3 + 1)}
    assert found.kept_bytes == 2 * 3 + 4 * 1 + 4 * (3 + 1)
    (flow,) = dataflow(round_, state, jnp.ones([N, 4]))
    assert flow.bytes == 4 * (3 + 1)


def test_what_is_not_trained_is_not_kept():
    trainable = {"w": True, "frozen": False}
    params = {"w": jnp.ones(3), "frozen": jnp.ones(100)}
    loss = lambda p, b: (p["w"].sum() + p["frozen"].sum()) * b
    for streamed, numbers in ((False, 3), (True, 1)):
        round_ = cj.make_round(
            loss,
            optax.sgd(0.1),
            cj.cocod("workers"),
            period=3,
            streamed=streamed,
            trainable=trainable,
        )
        found = summarize(round_, params)
        assert (found.parameters, found.kept_bytes) == (103, 2 * 4 * numbers)


def test_independent_workers_exchange_nothing():
    found = summarize(make_round(cj.independent(), delay=0), steps_per_epoch=16)
    assert (found.sent_bytes, found.exchanges_per_epoch) == ({}, 0)
    assert "exchanges nothing" in str(found)
    assert "hide" not in str(found)


def test_shapes_are_enough_and_placed_states_are_the_same():
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), N, devices=jax.devices()[:N])
    shapes = jax.eval_shape(lambda: state)
    assert cj.summary(round_, state) == cj.summary(round_, shapes)


def test_workers_of_other_processes_count(monkeypatch):
    """Two processes of two workers each, with a weight for each of the four."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    round_ = make_round(cj.cocod("workers", (1, 2, 3, 4)))
    state = cj.replicate(round_.init(problems.params()), 2)
    assert cj.summary(round_, state).workers == 4


def test_a_state_without_workers_is_refused():
    round_ = make_round()
    with pytest.raises(ValueError, match=r"no axis of workers.*cj\.replicate"):
        cj.summary(round_, round_.init(problems.params()))


def test_an_epoch_has_a_step():
    with pytest.raises(ValueError, match="steps_per_epoch=0 must be an integer"):
        summarize(make_round(), steps_per_epoch=0)


def test_the_axis_is_the_rules():
    assert summarize(make_round(cj.cocod("devices"))) == summarize(make_round())
    with pytest.raises(ValueError, match="but only one is mapped"):
        summarize(make_round(cj.cocod(("hosts", "devices"))))
