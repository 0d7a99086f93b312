"""Mapping transforms and executions: the choice, donation, compilation, errors."""

import gc
import logging
import weakref
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import cocod_jax as cj
from cocod_jax.execution._distribute import _not_far_ahead
from cocod_jax.execution._flags import (
    EARLY_START,
    NAN_ON_V6E,
    SCHEDULER,
    TPU_FLAGS,
    as_xla_flags,
)
from cocod_jax.execution._in_flight import InFlight
from cocod_jax.execution._map import WorkerMap, _jit
from cocod_jax.execution._split import Split
from tests import problems
from tests.problems import PERIOD, N

COMBINATIONS = [
    (via, execution)
    for via in ("pmap", "shard_map", "vmap")
    for execution in ("fused", "split")
]


def make_round(**options):
    inner = optax.sgd(0.05, momentum=0.9)
    return cj.make_round(
        problems.loss, inner, cj.cocod("workers"), period=PERIOD, **options
    )


def compilations(caplog):
    return [r for r in caplog.records if "Finished XLA compilation" in r.message]


@pytest.mark.parametrize(("via", "execution"), COMBINATIONS)
def test_the_second_call_compiles_nothing(via, execution, caplog):
    round_ = make_round(delay=1)
    run = cj.distribute(round_, via=via, execution=execution)
    state = cj.replicate(round_.init(problems.params()), N)
    batches = problems.round_batches(problems.batches(), 0)
    state, _ = run(state, batches)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state, metrics = run(state, batches)
        jax.block_until_ready((state.params, metrics))
    assert [r.message for r in caplog.records if "ompil" in r.message] == []


@pytest.mark.parametrize("via", ["pmap", "shard_map", "vmap"])
def test_the_fused_execution_donates_the_state(via):
    """The state is held once, and what is kept of it elsewhere is a copy."""
    round_ = make_round()
    run = cj.distribute(round_, via=via, execution="fused")
    state = cj.replicate(round_.init(problems.params()), N)
    batches = problems.round_batches(problems.batches(), 0)
    state, _ = run(state, batches)
    given_away = state.params["w"]
    state, _ = run(state, batches)
    assert given_away.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("via", ["pmap", "shard_map", "vmap"])
def test_the_split_execution_leaves_the_state_as_it_was(via):
    """The snapshot is the state's own parameters: nothing may overwrite them."""
    round_ = make_round()
    run = cj.distribute(round_, via=via, execution="split")
    state = cj.replicate(round_.init(problems.params()), N)
    before = jax.device_get(state)
    first, second = (
        jax.device_get(run(state, problems.round_batches(problems.batches(), 0)))
        for _ in range(2)
    )
    chex.assert_trees_all_equal(jax.device_get(state), before)
    chex.assert_trees_all_equal(first, second)


def test_a_fresh_state_shares_no_buffer_with_the_caller():
    params = jax.tree.map(jax.numpy.asarray, problems.params())
    inner = optax.chain(optax.ema(0.9), optax.sgd(0.1))
    round_ = cj.make_round(problems.loss, inner, cj.cocod("workers"), period=PERIOD)
    key = jax.random.key(0)
    state = round_.init(params, key=key)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, key)))


@pytest.mark.parametrize("weights", [None, problems.WEIGHTS])
def test_a_run_takes_nothing_of_the_state_that_was_replicated(weights):
    rule = cj.cocod("workers", weights)
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), rule, period=PERIOD)
    first = round_.init(problems.params())
    run = cj.distribute(round_, via="vmap", execution="fused")
    run(cj.replicate(first, N), problems.round_batches(problems.batches(), 0))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_a_state_that_a_run_used_up_is_refused():
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), N)
    run = cj.distribute(round_, via="vmap", execution="fused")
    batches = problems.round_batches(problems.batches(), 0)
    after, _ = run(state, batches)
    with pytest.raises(ValueError, match="the state that the run returned"):
        run(state, batches)
    run(after, batches)


def test_what_is_no_state_and_no_round_is_refused():
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), N)
    run = cj.distribute(round_)
    batches = problems.round_batches(problems.batches(), 0)
    for use in (
        lambda state: run(state, batches),
        lambda state: cj.summary(round_, state),
        lambda state: cj.reweight(state, problems.WEIGHTS),
        cj.consensus,
    ):
        use: Any
        with pytest.raises(TypeError, match="state, metrics = run"):
            use((state, None))
        with pytest.raises(TypeError, match=r"must be a RoundState, such as"):
            use(problems.params())
    for wrong in (round_.run, cj.cocod("workers")):
        wrong: Any
        with pytest.raises(TypeError, match=r"round_=.* must be a Round"):
            cj.distribute(wrong)
        with pytest.raises(TypeError, match=r"round_=.* must be a Round"):
            cj.summary(wrong, state)


def test_exchange_devices_get_split_and_all_else_gets_fused():
    """Only the fused execution takes the memory of the state that it is given."""
    devices, exchange_devices = cj.execution.device_pairs()
    pairs = {"devices": devices, "exchange_devices": exchange_devices}
    choices: Any = (({}, True), ({"execution": "split"}, False), (pairs, False))
    for options, donates in choices:
        round_ = make_round()
        run = cj.distribute(round_, **options)
        batches = problems.round_batches(problems.batches(), 0)
        state, _ = run(cj.replicate(round_.init(problems.params()), N), batches)
        run(state, batches)
        assert state.params["w"].is_deleted() is donates


def test_a_cpu_is_never_far_behind():
    """XLA is stuck where it has more programs in flight than its queue has places."""
    in_flight, most = set(), 0

    class Loss:
        def is_deleted(self):
            return False

        def block_until_ready(self):
            in_flight.remove(self)

    def program(state, batches):
        nonlocal most
        loss = Loss()
        in_flight.add(loss)
        most = max(most, len(in_flight))
        return state, SimpleNamespace(loss=loss)

    fake: Any = program
    run: Any = _not_far_ahead(fake)
    for r in range(10):
        run(r, None)
    assert most == 2


def test_a_run_can_be_traced_and_its_metrics_deleted():
    round_ = make_round()
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(problems.params()), N)
    batches = problems.round_batches(problems.batches(), 0)
    traced = jax.jit(lambda state: run(state, batches)[0])
    for _ in range(3):
        state = traced(state)
    for _ in range(3):
        state, metrics = run(state, batches)
        metrics.loss.delete()


def a_device(**attributes):
    """One that is not here."""
    device = Mock(spec=jax.Device)
    device.configure_mock(**attributes)
    return device


def a_gpu(capability):
    return a_device(
        platform="gpu", device_kind="NVIDIA A100", compute_capability=capability
    )


GPU = a_gpu("8.0")


def test_pmap_on_a_gpu_without_the_scheduler_warns(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false")
    with pytest.warns(UserWarning, match="A100 the exchange is not hidden"):
        cj.distribute(make_round(), devices=[GPU])


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("--a --xla_gpu_enable_latency_hiding_scheduler --b", {}),
        ("--xla_gpu_enable_latency_hiding_scheduler=True", {}),
        # The last one counts.
        (" ".join(f"--{SCHEDULER}={value}" for value in (0, 1)), {}),
        ("", {"via": "shard_map"}),
        ("", {"execution": "split"}),
    ],
)
def test_nothing_warns_where_the_scheduler_is_on_or_not_needed(
    flags, kind, monkeypatch
):
    """Warnings are errors here."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    cj.distribute(make_round(), devices=[GPU], **kind)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "12.0", "gfx942"])
def test_from_hopper_on_the_scheduler_is_on(capability, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    cj.distribute(make_round(), devices=[a_gpu(capability)])


HOPPER, AMD = a_gpu("9.0"), a_gpu("gfx942")


def test_a_streamed_round_needs_more_flags_on_every_gpu(monkeypatch):
    """Two, and the scheduler's before Hopper; the warning names what is missing."""
    streamed = make_round(streamed=True)
    for device, others in ((GPU, {SCHEDULER: True}), (HOPPER, {})):
        options = cj.compiler_options(device)
        assert options == EARLY_START | others
        for given in range(len(options) + 1):
            names = list(options)
            flags = as_xla_flags({name: options[name] for name in names[:given]})
            monkeypatch.setenv("XLA_FLAGS", flags)
            if given == len(options):
                cj.distribute(streamed, devices=[device])
                continue
            with pytest.warns(UserWarning, match=f"XLA_FLAGS='--{names[given]}="):
                cj.distribute(streamed, devices=[device])


V4 = a_device(platform="tpu", device_kind="TPU v4")
V5E = a_device(platform="tpu", device_kind="TPU v5 lite")
V6E = a_device(platform="tpu", device_kind="TPU v6 lite")


def test_pmap_on_a_tpu_without_its_flags_warns(monkeypatch):
    """A whole round needs fewer of them."""
    for device in (V5E, V6E):
        monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
        with pytest.warns(UserWarning, match=r"set LIBTPU_INIT_ARGS='--xla") as found:
            cj.distribute(make_round(), devices=[device])
        assert "multiplier" not in str(found[0].message)
        options = cj.compiler_options(device)
        flags = as_xla_flags({n: v for n, v in options.items() if "multip" not in n})
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        cj.distribute(make_round(), devices=[device])  # warnings are errors here
        with pytest.warns(UserWarning, match=r"set LIBTPU_INIT_ARGS='--\S*multiplier"):
            cj.distribute(make_round(streamed=True), devices=[device])
        monkeypatch.setenv("LIBTPU_INIT_ARGS", as_xla_flags(options))
        cj.distribute(make_round(streamed=True), devices=[device])


def test_what_gave_nan_on_v6e_is_warned_of_however_a_round_runs(monkeypatch):
    both = as_xla_flags(dict.fromkeys(NAN_ON_V6E, True))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", both)
    cj.distribute(make_round(), devices=[V5E], via="shard_map")
    with pytest.warns(UserWarning, match="have given NaN on v6e"):
        cj.distribute(make_round(), devices=[V6E], via="shard_map")


@pytest.mark.parametrize("device", [AMD, V4, jax.devices()[0], "cpu", None])
def test_where_no_schedule_was_read_there_are_no_options(device):
    assert cj.compiler_options(device) == {}


def test_the_options_of_a_name_that_is_none_are_refused():
    assert cj.compiler_options("cpu") == {}
    for name in ("h100", "tpu"):
        with pytest.raises(ValueError, match=rf"device='{name}' .* are all 'gpu'"):
            cj.compiler_options(name)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (GPU, EARLY_START | {SCHEDULER: True}),
        (V5E, TPU_FLAGS["v5e"]),
        (V6E, TPU_FLAGS["v6e"]),
        (jax.devices()[0], None),
    ],
)
def test_jit_gets_the_options_of_its_device(device, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(jax, "jit", lambda fn, **options: seen.append(options) or fn)
    _jit(lambda x: x, (), device)
    assert seen[0]["compiler_options"] == expected


def test_a_placed_state_compiles_a_users_own_pmap_once(caplog):
    round_ = make_round()
    run = jax.pmap(round_.run, axis_name="workers", donate_argnums=0)
    devices = jax.devices()[:N]
    state = cj.replicate(round_.init(problems.params()), N, devices=devices)
    batches = problems.round_batches(problems.batches(), 0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            state, _ = run(state, batches)
    assert len(compilations(caplog)) == 1
    with pytest.raises(ValueError, match=r"devices has 4 entries, but workers=3"):
        cj.replicate(problems.params(), 3, devices=devices)


def test_a_state_may_be_placed_for_a_mesh_of_any_name(caplog):
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.05), cj.cocod("data"), period=PERIOD
    )
    devices, spec = jax.devices()[:N], PartitionSpec("data")
    mesh = Mesh(np.array(devices), "data")
    one = lambda *args: jax.tree.map(lambda leaf: leaf[0], args)
    block = lambda *args: jax.tree.map(lambda leaf: leaf[None], round_.run(*one(*args)))
    run = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec))
    state = round_.init(problems.params())
    state = cj.replicate(state, N, devices=devices, axis_name="data")
    batches = problems.round_batches(problems.batches(), 0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            state, _ = run(state, batches)
    assert len(compilations(caplog)) == 1


def test_new_weights_compile_nothing(caplog):
    round_ = make_round()
    run = jax.pmap(round_.run, axis_name="workers", donate_argnums=0)
    state = cj.replicate(round_.init(problems.params()), N, devices=jax.devices()[:N])
    batches = problems.round_batches(problems.batches(), 0)
    state, _ = run(state, batches)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state = cj.reweight(state, range(1, N + 1))
        caplog.clear()
        state, _ = run(state, batches)
    assert compilations(caplog) == []
    np.testing.assert_allclose(state.weight, np.arange(1, N + 1) / sum(range(N + 1)))


def test_workers_run_where_they_are_told_to():
    devices = jax.devices()[4:]
    for via in ("pmap", "shard_map"):
        round_ = make_round()
        run = cj.distribute(round_, via=via, devices=devices)
        state = cj.replicate(round_.init(problems.params()), N)
        state, _ = run(state, problems.round_batches(problems.batches(), 0))
        assert state.params["w"].devices() == set(devices)


@pytest.mark.parametrize("via", ["pmap", "shard_map"])
def test_the_exchange_may_run_on_other_devices(via):
    """The same programs on other devices: the same numbers, in every bit."""
    devices, exchange_devices = cj.execution.device_pairs()
    results = []
    for elsewhere in (None, exchange_devices):
        round_ = make_round(delay=2)
        run = cj.distribute(
            round_,
            via=via,
            execution="split",
            devices=devices,
            exchange_devices=elsewhere,
        )
        state = cj.replicate(round_.init(problems.params()), N)
        for r in range(2):
            state, metrics = run(state, problems.round_batches(problems.batches(), r))
        assert state.params["w"].devices() == set(devices)
        results.append((state.params, metrics))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_mesh_axis_may_have_any_name():
    rule = cj.cocod("replica")
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), rule, period=PERIOD)
    batches = problems.round_batches(problems.batches(workers=2), 0)
    for via in ("pmap", "shard_map", "vmap"):
        for axis_name in (None, "replica"):
            state = cj.replicate(round_.init(problems.params()), 2)
            cj.distribute(round_, axis_name, via=via)(state, batches)
    with pytest.raises(ValueError, match=r"'workers', but the rule .* over 'replica'"):
        cj.distribute(round_, "workers")


def test_only_one_axis_is_mapped():
    rule = cj.cocod(("hosts", "workers"))
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), rule, period=PERIOD)
    with pytest.raises(ValueError, match=r"\('hosts', 'workers'\), but only one"):
        cj.distribute(round_)


def test_a_rule_that_sends_nothing_leaves_the_axis_to_the_caller():
    averaging = cj.mean_gradients("replica")
    round_ = cj.make_round(
        problems.loss,
        optax.chain(averaging, optax.sgd(0.1)),
        cj.independent(),
        period=PERIOD,
    )
    state = cj.replicate(round_.init(problems.params()), 2)
    batches = problems.round_batches(problems.batches(workers=2), 0)
    with pytest.raises(ValueError, match="'replica' is not bound"):
        cj.distribute(round_)(state, batches)
    state, metrics = cj.distribute(round_, "replica")(state, batches)
    cj.workers.check_equal_start(state)
    np.testing.assert_array_equal(metrics.distance, np.zeros(2))


@pytest.mark.parametrize("via", ["pmap", "vmap"])
def test_a_split_run_that_is_let_go_is_gone(via):
    """A sweep makes many runs; each holds programs, and a loss and what that holds."""
    round_ = make_round()
    workers = WorkerMap(via, "workers", None)
    run = Split(round_, workers, workers, near=True)
    state = cj.replicate(round_.init(problems.params()), N)
    run(state, problems.round_batches(problems.batches(), 0))
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


def test_device_arrays_are_as_good_as_numpy_batches():
    round_ = make_round()
    batches = problems.round_batches(problems.batches(), 0)
    on_device = jax.pmap(lambda x: x)(batches)
    for execution in ("fused", "split"):
        results = []
        for given in (batches, on_device):
            state = cj.replicate(round_.init(problems.params()), N)
            state, _ = cj.distribute(round_, execution=execution)(state, given)
            results.append(state.params)
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_bad_choices_are_refused():
    round_ = make_round()
    wrong: Any = "threads", "slow", 3
    via, execution, axis_name = wrong
    with pytest.raises(ValueError, match="via='threads'"):
        cj.distribute(round_, via=via)
    with pytest.raises(ValueError, match="execution='slow'"):
        cj.distribute(round_, execution=execution)
    with pytest.raises(ValueError, match="devices is empty"):
        cj.distribute(round_, devices=[])
    with pytest.raises(ValueError, match="devices have no meaning"):
        cj.distribute(round_, via="vmap", devices=jax.devices())
    with pytest.raises(
        ValueError, match="exchange_devices belong to execution='split'"
    ):
        cj.distribute(round_, execution="fused", exchange_devices=jax.devices())
    two, six = jax.devices()[:2], jax.devices()[2:]
    with pytest.raises(ValueError, match=r"exchange_devices has 6 .* devices has 2"):
        cj.distribute(round_, devices=two, exchange_devices=six)
    with pytest.raises(TypeError, match="axis_name"):
        cj.distribute(round_, axis_name)


@pytest.mark.parametrize("via", ["shard_map", "vmap"])
def test_only_pmap_is_for_several_processes(via, monkeypatch):
    """In one of two processes the shares sum to a half, and so would its mean."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=f"via='{via}' is for one process; use 'pmap'"):
        cj.distribute(make_round(), via=via)


@pytest.mark.parametrize("via", ["pmap", "shard_map", "vmap"])
def test_batches_of_more_workers_are_refused(via):
    """A shard of two rows would be taken for one, and the other lost."""
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), N)
    batches = problems.round_batches(problems.batches(workers=2 * N), 0)
    with pytest.raises(ValueError, match=rf"axis 0 must have length {N}"):
        cj.distribute(round_, via=via)(state, batches)


def test_more_workers_than_devices_are_refused():
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), 9)
    batches = problems.round_batches(problems.batches(workers=9), 0)
    for via in ("pmap", "shard_map"):
        with pytest.raises(ValueError, match="9 workers and 8 devices"):
            cj.distribute(round_, via=via)(state, batches)


def test_more_devices_than_workers_are_refused():
    round_ = make_round()
    state = cj.replicate(round_.init(problems.params()), N)
    batches = problems.round_batches(problems.batches(workers=N), 0)
    run = cj.distribute(round_, devices=jax.devices())
    with pytest.raises(ValueError, match=rf"8 devices; .*devices=devices\[:{N}\]"):
        run(state, batches)


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_rounds_wait_for_earlier_ones(execution, monkeypatch):
    """XLA is stuck on CPUs where more programs are in flight than its queue holds."""
    rooms = []
    monkeypatch.setattr(InFlight, "make_room", lambda self: rooms.append(self))
    round_ = make_round()
    run = cj.distribute(round_, execution=execution)
    state = cj.replicate(round_.init(problems.params()), N)
    for r in range(2):
        state, _ = run(state, problems.round_batches(problems.batches(), r))
    assert len(rooms) == 2 * (PERIOD if execution == "split" else 1)
    assert len(set(map(id, rooms))) == 1
