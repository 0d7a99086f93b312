"""Workers of unequal speed: measured, gathered, and given their proportions."""

import itertools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from experiments.cluster.network import Network, free_port
from experiments.cluster.processes import run_workers

capabilities = st.lists(
    st.floats(1e-3, 1e6) | st.integers(1, 5), min_size=1, max_size=8
)


@settings(max_examples=200, deadline=None)
@given(capabilities, st.integers(1, 10), st.integers(0, 10**6))
def test_proportions(capabilities, minimum, more):
    total = len(capabilities) * minimum + more
    shares = cj.workers.batch_shares(capabilities, total, minimum=minimum)
    assert sum(shares) == total
    assert min(shares) >= minimum
    assert all(isinstance(share, int) for share in shares)
    in_order = sorted(zip(capabilities, shares, strict=True))
    for (slow, fewer), (fast, more) in itertools.pairwise(in_order):
        assert fewer <= more if slow < fast else abs(fewer - more) <= 1
    # No power of two changes a float's digits.
    scaled = [c * 2.0**20 for c in capabilities]
    assert cj.workers.batch_shares(scaled, total, minimum=minimum) == shares


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1, 100), min_size=1, max_size=8), st.integers(800, 10**4))
def test_nobody_is_a_whole_sample_off(capabilities, total):
    shares = cj.workers.batch_shares(
        capabilities, total
    )  # enough for the minimum to be idle
    for capability, share in zip(capabilities, shares, strict=True):
        assert abs(share - total * capability / sum(capabilities)) < 1 + 1e-6


@pytest.mark.parametrize(
    ("capabilities", "total", "minimum", "expected"),
    [
        ([1, 1, 1, 1], 8, 1, (2, 2, 2, 2)),
        ([1, 1, 1, 1], 10, 1, (3, 3, 2, 2)),  # the first ones where all are equal
        ([2, 1], 3, 1, (2, 1)),
        ([1000, 1, 1], 10, 1, (8, 1, 1)),
        ([1000, 1, 30], 100, 5, (90, 5, 5)),
        ([0.1, 0.2, 0.3], 600, 1, (100, 200, 300)),
        ([1, 2], 10**17 + 3, 1, (33333333333333334, 66666666666666669)),
        ([5], 7, 1, (7,)),
        (np.array([3.0, 1.0]), 8, 1, (6, 2)),
    ],
)
def test_proportions_by_hand(capabilities, total, minimum, expected):
    assert cj.workers.batch_shares(capabilities, total, minimum=minimum) == expected


@settings(max_examples=100, deadline=None)
@given(capabilities, st.integers(1, 1000), st.integers(1, 50))
def test_epochs_end_together(capabilities, more, passes):
    """Every shard has the steps of an epoch, and none has two more."""
    batches = cj.workers.batch_shares(capabilities, len(capabilities) + more)
    for extra in (0, 1, sum(batches) - 1):
        examples = passes * sum(batches) + extra
        shards = cj.workers.batch_shares(batches, examples)
        steps = [d // m for d, m in zip(shards, batches, strict=True)]
        assert min(steps) == passes
        assert max(steps) <= passes + 1


@pytest.mark.parametrize(
    ("capabilities", "total", "options", "message"),
    [
        ([1, 1, 1], 2, {}, "total=2 cannot be divided among 3 workers .* minimum=1"),
        ([1, 1], 8, {"minimum": 5}, "total=8 cannot be .* 2 workers .* minimum=5"),
        ([], 2, {}, "among 0 workers"),
        ([1, 0], 2, {}, r"capabilities\[1\]=0 must be a finite number above 0"),
        ([1, -1], 2, {}, r"capabilities\[1\]=-1"),
        ([np.nan, 1], 2, {}, r"capabilities\[0\]=nan"),
        ([1, np.inf], 2, {}, r"capabilities\[1\]=inf"),
        ([1, "fast"], 2, {}, r"capabilities\[1\]='fast'"),
        ([1, 1], 2.5, {}, "total=2.5 must be an integer"),
        ([1, 1], 4, {"minimum": 0}, "minimum=0 must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(capabilities, total, options, message):
    with pytest.raises(ValueError, match=message):
        cj.workers.batch_shares(capabilities, total, **options)


def test_the_median_step_without_its_compilation_is_measured():
    pauses = iter([0.5, 0.01, 0.6])
    step = lambda: time.sleep(next(pauses, 0.01))
    assert 10 < cj.workers.measure_capability(step, seconds=0.1) <= 100
    start = time.perf_counter()
    assert 10 < cj.workers.measure_capability(step, seconds=0.2) <= 100
    assert time.perf_counter() - start > 0.2
    with pytest.raises(ValueError, match="seconds=0"):
        cj.workers.measure_capability(step, seconds=0)


def test_a_measurement_waits_for_the_results():
    """JAX returns before it has computed."""
    work = jax.jit(
        lambda x: jax.lax.fori_loop(0, 20, lambda _, x: jax.numpy.tanh(x @ x), x)
    )
    x = np.zeros([256, 256], np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        np.asarray(work(x))
        seconds.append(time.perf_counter() - start)
    capability = cj.workers.measure_capability(lambda: work(x), seconds=0.05)
    assert capability < 5 / min(seconds)


def test_one_process_gathers_its_own():
    assert cj.workers.gather_capabilities(2.5) == (2.5,)
    assert cj.workers.gather_capabilities([2, 3.5]) == (2.0, 3.5)


# Worker i is i + 1 times as fast; each takes its share of four micro-batches.
PROGRAM = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
rank, processes, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, processes, rank)
import numpy as np
import cocod_jax as cj
from tests.test_capability import micro_batch_round
gathered = cj.workers.gather_capabilities(2.0 * rank + 1)
counts = cj.workers.batch_shares(gathered, 4)
devices, exchange_devices = cj.execution.device_pairs()
own = slice(rank, rank + 1)
state = micro_batch_round(
    counts, own, devices=devices, exchange_devices=exchange_devices
)
one = lambda leaf: np.asarray(leaf.addressable_shards[0].data).item()
print(json.dumps({
    "gathered": gathered, "w": one(state.params), "taken": one(state.model_state)
}))
jax.distributed.shutdown()
"""


def micro_batch_round(counts, own, **devices: Any):
    """Two rounds of the workers ``own``; their states count micro-batches."""

    def loss(w, taken, batch, key):
        return 0.5 * ((w - batch) ** 2).mean(), taken + 1

    round_ = cj.make_round(
        loss, optax.sgd(0.3), cj.cocod("workers", counts), period=2, stateful=True
    )
    data = np.random.default_rng(0).normal(size=(2, 2, 3, 5)).astype(np.float32)
    batches = cj.MicroBatches(data, np.repeat(np.array(counts)[:, None], 2, axis=1))
    batches = jax.tree.map(lambda leaf: leaf[own], batches)
    workers = batches.count.shape[0]
    state = cj.replicate(round_.init(np.float32(0), 0), workers)
    run = cj.distribute(round_, execution="split", **devices)
    for _ in range(2):
        state, _ = run(state, batches)
    return state


def test_processes_gather_and_share_the_work():
    """Each process runs its own micro-batches only, and all agree with one process."""
    address = f"127.0.0.1:{free_port()}"
    records = run_workers(
        Network(2, None),
        lambda rank: [sys.executable, "-c", PROGRAM, str(rank), "2", address],
        timeout=300,
    )
    assert [record["gathered"] for record in records] == [[1.0, 3.0]] * 2
    assert [record["taken"] for record in records] == [4, 12]
    alone = micro_batch_round((1, 3), slice(None))
    assert [record["w"] for record in records] == np.asarray(alone.params).tolist()


def test_tokens_count_by_quantity_and_quality():
    """Equal batches leave the steps, equal steps the squared batch."""
    weigh = cj.workers.token_weights
    assert weigh((30, 10), (3, 1)) == (300.0, 100.0)
    assert weigh((30, 10), (2, 2)) == (450.0, 50.0)
    rule, state = cj.cocod("workers"), jnp.array([1.0, 3.0])
    round_ = cj.make_round(
        lambda w, batch: 0 * w, optax.sgd(0.1), rule, period=1, delay=0
    )
    start = cj.replicate(round_.init(jnp.array(0.0)), 2)._replace(params=state)
    start = cj.reweight(start, weigh((3, 1), steps=(1, 1)))
    after, _ = cj.distribute(round_, via="vmap")(start, np.zeros([2, 1], np.float32))
    np.testing.assert_allclose(after.params, [1.2, 1.2])


@pytest.mark.parametrize(
    ("tokens", "steps", "message"),
    [
        ((-1, 1), (1, 1), r"tokens\[0\]=-1 must be a finite number, 0 or more"),
        ((1, 1), (1, 0), r"steps\[1\]=0 must be an integer of at least 1"),
        ((1, 1, 1), (1, 1), "tokens are of 3 workers, but steps of 2"),
    ],
)
def test_what_no_worker_has_learnt_from_has_no_weight(tokens, steps, message):
    with pytest.raises(ValueError, match=message):
        cj.workers.token_weights(tokens, steps)
