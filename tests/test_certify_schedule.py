"""What the compiler does: rounds compiled for GPUs that are not there."""

import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import (
    ExposedError,
    certify,
    dataflow,
    install_command,
)
from cocod_jax.certify.__main__ import main
from cocod_jax.execution._flags import COST_MODEL
from tests.marks import needs_compiler
from tests.test_certify_dataflow import (
    BATCHES,
    WORKERS,
    W,
    average_after,
    cocod,
    in_a_conditional,
    just_in_time,
    local_sgd,
    mean,
    several_rounds,
    shard_mapped,
    step,
    synchronous_sgd,
    with_reduced_loss,
)

ON = cj.compiler_options("gpu")
OFF = {COST_MODEL: False}  # which turns the scheduler on, from Hopper on


def reasons(certificate):
    return [reason.id for reason in certificate.reasons]


def library_round(inner=None, dtype=jnp.float32, workers=WORKERS, period=8, delay=None):
    """A round of the library on a two-layer network, and its shapes."""
    loss = lambda w, batch: jnp.mean((jnp.tanh(batch @ w["in"]) @ w["out"]) ** 2)
    inner = optax.sgd(0.1, momentum=0.9) if inner is None else inner
    rule = cj.cocod("workers")
    round_ = cj.make_round(loss, inner, rule, period=period, delay=delay)
    params = {"in": jnp.ones([32, 64], dtype), "out": jnp.ones([64, 8], dtype)}
    replicate = lambda params: cj.replicate(round_.init(params), workers)
    batches = jax.ShapeDtypeStruct((workers, period, 16, 32), dtype)
    return round_, jax.eval_shape(replicate, params), batches


@needs_compiler
def test_a_second_certificate_is_the_same_without_a_word():
    """Also with JAX's cache of programs, which conftest.py turns on."""
    first, second = (certify(*library_round()) for _ in range(2))
    assert second == first


@needs_compiler
@pytest.mark.parametrize(
    ("options", "behind"),
    [
        ({}, 8),
        ({"delay": 5}, 5),
        ({"delay": 1}, 1),
        ({"period": 1}, 1),
        ({"inner": optax.adamw(1e-3)}, 8),
        ({"dtype": jnp.bfloat16}, 8),
        ({"inner": optax.adamw(1e-3), "dtype": jnp.bfloat16, "delay": 2}, 2),
    ],
)
def test_cocod_is_hidden_behind_its_delay(options, behind):
    certificate = certify(*library_round(**options), target="h100").check()
    period = options.get("period", 8)
    assert certificate.verdict == f"hidden behind {behind} of {period} local steps"


@needs_compiler
@pytest.mark.parametrize(
    ("target", "devices", "hosts"),
    [("h100", 2, 1), ("h100", 16, 2), ("h200", 64, 8)],
)
def test_any_number_of_devices_and_hosts(target, devices, hosts):
    certificate = certify(
        *library_round(), target=target, devices=devices, hosts=hosts
    ).check()
    assert (certificate.devices, certificate.hosts) == (devices, hosts)


@needs_compiler
@pytest.mark.parametrize("target", ["a100", "v100"])
def test_older_gpus_need_the_latency_hiding_scheduler(target):
    round_ = library_round()
    exposed = certify(*round_, target=target)
    assert reasons(exposed) == ["scheduler-off"]
    certify(*round_, target=target, compiler_options=ON).check()


@needs_compiler
def test_without_the_scheduler_a_new_gpu_is_exposed_too():
    exposed = certify(*library_round(), target="h100", compiler_options=OFF)
    assert reasons(exposed) == ["scheduler-off"]


@needs_compiler
@pytest.mark.parametrize(
    "run",
    [
        cocod,
        jax.pmap(cocod, axis_name="workers", donate_argnums=0),
        shard_mapped(cocod, check_vma=True),
        shard_mapped(cocod, check_vma=False),
    ],
    ids=["worker", "pmap", "shard_map", "shard_map without vma"],
)
def test_every_mapping_transform(run):
    certificate = certify(run, W, BATCHES, target="h100").check()
    assert certificate.devices == WORKERS
    (collective,) = certificate.schedule.collectives
    assert collective[:4] == ("all-reduce", "f32", 16 * 16 * 4, True)


@needs_compiler
def test_fragments_are_hidden_each_behind_its_own_steps():
    """The first behind six, and the second behind the two that it may run beside."""

    def fragments(w, batches):
        first = mean(w[:8])
        x, _ = lax.scan(step, w, batches[:6])
        x = x.at[:8].add(first - w[:8])
        second = mean(x[8:])
        y, _ = lax.scan(step, x, batches[6:])
        return y.at[8:].add(second - x[8:])

    certificate = certify(fragments, W, BATCHES, target="h100").check()
    assert [c.steps for c in certificate.schedule.collectives] == [6, 2]


@needs_compiler
def test_collectives_that_only_the_partitioner_writes_are_seen():
    """Data parallelism by sharding: the program names no collective at all."""
    mesh = jax.make_mesh(
        (WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spread = lambda x, *axes: x.update(
        sharding=NamedSharding(mesh, PartitionSpec(*axes))
    )
    w = spread(W.update(shape=(16, 16)))
    batches = spread(BATCHES.update(shape=(8, 4 * WORKERS, 16)), None, "data")
    run = jax.jit(lambda w, batches: lax.scan(step, w, batches))
    certificate = certify(run, w, batches, target="h100")
    assert certificate.flows == ()
    assert {c.kind for c in certificate.schedule.collectives} == {"all-reduce"}
    assert reasons(certificate) == ["in-loop"]


@needs_compiler
def test_what_jit_was_told_of_its_inputs_is_kept():
    """The mesh and the specs are in ``in_shardings``, and the shapes are bare."""
    mesh = jax.make_mesh(
        (WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    on = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    run = jax.jit(
        lambda w, batches: lax.scan(step, w, batches),
        in_shardings=(on(), on(None, "data")),
    )
    w, batches = W.update(shape=(16, 16)), BATCHES.update(shape=(8, 4 * WORKERS, 16))
    certificate = certify(run, w, batches, target="h100")
    assert certificate.devices == WORKERS
    assert reasons(certificate) == ["in-loop"]


@needs_compiler
def test_one_device_sends_nothing():
    certificate = certify(*library_round(workers=1), target="h100")
    assert reasons(certificate) == ["nothing-sent"]
    assert "nothing-sent" in str(certificate)


@needs_compiler
@pytest.mark.parametrize("via", ["pmap", "shard_map"])
def test_a_distributed_round_is_hidden(via):
    round_, state, batches = library_round()
    run = cj.distribute(round_, via=via, execution="fused")
    certificate = certify(jax.jit(run), state, batches, target="h100").check()
    assert certificate.schedule.collectives[0].steps == 8


@needs_compiler
def test_a_loop_over_rounds_hides_each_of_them():
    # Not for Hopper: there the compiler of JAX 0.12 sends after the steps of a round.
    certificate = certify(
        several_rounds, W, BATCHES, target="a100", compiler_options=ON
    ).check()
    (collective,) = certificate.schedule.collectives
    assert (collective.place, collective.steps) == ("loop", 8)


def per_step_optimizer(w, batches):
    """``every`` decides in each step whether to send: a conditional in the loop."""
    tx = cj.every(8, optax.sgd(0.1), cj.cocod("workers"))

    def one(carry, batch):
        w, state = carry
        updates, state = tx.update(jax.grad(loss_of)(w, batch), state, w)
        return (optax.apply_updates(w, updates), state), None

    return lax.scan(one, (w, tx.init(w)), batches)


def loss_of(w, batch):
    return step(w, batch)[1]


def with_synchronised_statistics(w, batches):
    """CoCoD-SGD whose steps normalise by the statistics of all workers."""

    def one(x, batch):
        return step(x, batch - mean(batch.mean()))

    x, losses = lax.scan(one, w, batches)
    return mean(w) + (x - w), losses


@needs_compiler
@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (local_sgd, ["steps-wait"]),
        (average_after, ["waits-for-steps"]),
        (synchronous_sgd, ["in-loop"]),
        (with_synchronised_statistics, ["in-loop"]),
        (per_step_optimizer, ["conditional", "in-loop"]),
        (in_a_conditional, ["conditional"]),
        (with_reduced_loss, ["reduced-metric"]),
        (lambda w, batches: mean(w), ["no-steps"]),
        (lambda w, batches: lax.scan(step, w, batches), ["nothing-sent"]),
    ],
)
def test_what_is_exposed_is_reported_with_its_reason(broken, expected):
    certificate = certify(broken, W, BATCHES, target="h100")
    assert reasons(certificate) == expected
    with pytest.raises(ExposedError, match=expected[0]):
        certificate.check()


@needs_compiler
def test_more_than_30_mib_in_separate_leaves_is_exposed():
    """40 MB in five leaves become several all-reduces; one buffer is hidden."""
    loss = lambda w, batch: sum(jnp.mean((batch @ leaf) ** 2) for leaf in w)
    sgd_step = lambda w, batch: (
        jax.tree.map(lambda x, g: x - 0.1 * g, w, jax.grad(loss)(w, batch)),
        None,
    )

    def leaf_by_leaf(w, batches):
        m = mean(w)
        x, _ = lax.scan(sgd_step, w, batches)
        return jax.tree.map(lambda m, x, s: m + (x - s), m, x, w)

    w = [jax.ShapeDtypeStruct((2, 1000, 2000), jnp.float32)] * 5
    batches = jax.ShapeDtypeStruct((2, 8, 8, 1000), jnp.float32)
    certificate = certify(leaf_by_leaf, w, batches, target="h100")
    assert reasons(certificate) == ["many-buffers"]
    assert "all-reduce" in str(certificate)

    round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=8)
    params = [x.update(shape=x.shape[1:]) for x in w]
    state = jax.eval_shape(lambda p: cj.replicate(round_.init(p), 2), params)
    certify(round_, state, batches, target="h100").check()


@needs_compiler
def test_what_breaks_the_library_s_round_is_found():
    """Three edits by hand, each of which would lose the overlap in silence."""
    round_, state, batches = library_round()

    def waits(state, batches):
        after, metrics = lax.scan(round_.step, state, batches)
        sent, _ = round_.send(after)
        return round_.merge(after, state.params, sent), metrics

    def reduces_metrics(state, batches):
        state, metrics = round_.run(state, batches)
        return state, mean(metrics.loss)

    def merges_first(state, batches):
        sent, _ = round_.send(state)
        state, _ = round_.merge(state, state.params, sent)
        return lax.scan(round_.step, state, batches)

    for broken, expected in [
        (waits, "waits-for-steps"),
        (reduces_metrics, "reduced-metric"),
        (merges_first, "steps-wait"),
    ]:
        assert reasons(certify(broken, state, batches, target="h100")) == [expected]


@needs_compiler
@pytest.mark.parametrize("delay", [8, 4])
def test_the_overlap_costs_two_copies_of_the_parameters(delay):
    """The snapshot, and what is in flight."""
    round_, state, batches = library_round(delay=delay)
    certificate = certify(round_, state, batches, target="h100")
    copy = sum(x.size * 4 for x in jax.tree.leaves(state.params)) // WORKERS
    assert certificate.overlap_bytes == 2 * copy < certificate.temp_bytes


@needs_compiler
def test_the_picture_shows_what_runs_beside_what():
    certificate = certify(just_in_time, W, BATCHES, target="h100")
    compute, sent = str(certificate).splitlines()[1:3]
    assert re.search(r"\[ 3 local steps \]\[ merge \]\[ 5 local steps \]", compute)
    steps = range(compute.index("[ 3"), compute.index("[ merge"))
    assert [i for i, mark in enumerate(sent) if mark == "="] == list(steps)
    assert "synchronous" not in sent


@needs_compiler
def test_the_picture_tells_what_nothing_can_run_beside():
    certificate = certify(cocod, W, BATCHES, target="h100", compiler_options=OFF)
    assert str(certificate).splitlines()[2].endswith("=  synchronous")


@needs_compiler
def test_the_plot_has_a_row_that_computes_and_one_that_sends():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ax = certify(cocod, W, BATCHES, target="h100").plot()
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == ["compute", "all-reduce f32 1.02 kB"]
    assert ax.get_title() == "4 x h100: hidden behind 8 of 8 local steps"
    matplotlib.pyplot.close(ax.figure)


@needs_compiler
@pytest.mark.parametrize(("delay", "status"), [(8, 0), (3, 0), (0, 1)])
def test_the_command_line_reports_by_its_exit_status(
    delay, status, monkeypatch, capsys
):

    def certifiable(argv, devices):
        assert argv[0] == "--delay"
        return library_round(delay=int(argv[1]), workers=devices)

    study = types.SimpleNamespace(certifiable=certifiable)
    monkeypatch.setitem(sys.modules, "a_study", study)
    argv = ["a_study", "--target", "h100", "--devices", "2", "--delay", str(delay)]
    assert main(argv) == status
    assert capsys.readouterr().out.startswith(["hidden", "exposed"][status])


def test_the_command_line_says_how_to_name_a_module(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "a_study", types.SimpleNamespace())
    for module, message in (
        ("a_study", "a_study has no function certifiable(argv, devices)"),
        ("a_study.py", "name the module, as python -m does: a_study"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([module])
        assert message in capsys.readouterr().err


@needs_compiler
def test_the_compiler_stays_out_of_sight():
    """Installed or in use, it changes neither the devices nor what is printed."""
    program = (
        "import jax, jax.numpy as jnp; before = jax.devices();"
        "from cocod_jax.certify import certify;"
        "x = jax.ShapeDtypeStruct((2, 3), jnp.float32);"
        "certify(lambda x: jax.lax.psum(x, 'workers'), x, target='h100');"
        "assert jax.devices() == before and jax.default_backend() == 'cpu';"
        "print(jax.jit(lambda x: x + 1)(1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_without_the_compiler_the_command_that_installs_it_is_printed(monkeypatch):
    from cocod_jax.certify import _plugin

    monkeypatch.setattr(_plugin, "compiler_available", lambda kind: False)
    with pytest.raises(ImportError, match=f"jax-cuda12-pjrt=={jax.__version__}"):
        _plugin.load_compiler()
    with pytest.raises(
        ImportError, match=r"certify --install tpu(.|\n)*libtpu==0\.0\."
    ):
        certify(cocod, W, BATCHES, target="v5e")
    assert f"jax-cuda12-plugin=={jax.__version__}" in install_command()


def test_a_compiler_that_is_there_is_not_installed_again(monkeypatch, capsys):
    from cocod_jax.certify import __main__ as command

    calls = []
    call = lambda argv: calls.append(argv) or 0
    monkeypatch.setattr(command.subprocess, "call", call)
    for there in (False, True):
        monkeypatch.setattr(command, "installed", lambda kind, there=there: there)
        assert main(["--install"]) == main(["--install", "tpu"]) == 0
    assert calls == [install_command("gpu"), install_command("tpu")]
    assert capsys.readouterr().out.count("the compiler is there") == 2


def test_half_a_compiler_is_none(monkeypatch, tmp_path):
    from cocod_jax.certify import _plugin

    monkeypatch.setattr(_plugin, "plugin_directory", lambda kind: tmp_path)
    for name in _plugin.COMPILERS["gpu"].wheels:
        assert not _plugin.installed()
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    assert _plugin.installed()


def test_amd_s_compiler_is_refused_by_name(monkeypatch):
    client = types.SimpleNamespace(platform_version="PJRT C API\nrocm 60300")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(client=client)])
    with pytest.raises(NotImplementedError, match="this machine has AMD's"):
        certify(cocod, W, BATCHES)


@needs_compiler
@pytest.mark.parametrize(
    ("flags", "scheduler"),
    [
        ("", True),
        ("--xla_gpu_enable_analytical_sol_latency_estimator=false", False),
        (
            "--xla_gpu_enable_analytical_sol_latency_estimator=false "
            "--xla_gpu_enable_latency_hiding_scheduler",
            True,
        ),
    ],
)
def test_flags_may_turn_a_new_gpu_s_scheduler_off(flags, scheduler, monkeypatch):
    """They are read where the reason is found; the compiler read its own before."""
    from cocod_jax.certify import _certify

    monkeypatch.setenv("XLA_FLAGS", flags)
    seen = []
    compile_program = _certify.compile_program
    monkeypatch.setattr(
        _certify,
        "compile_program",
        lambda *a, **k: seen.append(compile_program(*a, **k)) or seen[-1],
    )
    certify(cocod, W, BATCHES, target="h100")
    assert [compiled.flags.missing is None for compiled in seen] == [scheduler]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tpu"}, "target='tpu' must be one of h100"),
        ({"target": "h100", "hosts": 3}, "hosts=3 cannot share 4 devices"),
        ({"target": "h100", "hosts": 1.0}, "hosts=1.0 must be an integer"),
        ({"target": "h100", "devices": 0}, "devices=0 must be an integer"),
    ],
)
def test_what_cannot_be_compiled_for_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        certify(cocod, W, BATCHES, **options)


def test_more_workers_than_gpus_need_a_target(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    w, batches = (jnp.zeros([16, *array.shape[1:]]) for array in (W, BATCHES))
    with pytest.raises(ValueError, match="16 devices, and this machine has 8;"):
        certify(cocod, w, batches)
    with pytest.raises(ValueError, match="hosts=2 needs a target"):
        certify(cocod, W, BATCHES, hosts=2)


@pytest.mark.parametrize("ask", [dataflow, certify])
def test_what_cannot_be_looked_into_is_refused(ask):
    round_, state, batches = library_round()
    with pytest.raises(TypeError, match=r"what cj\.distribute returned.*round it"):
        ask(cj.distribute(round_), state, batches)
    run = jax.jit(jax.pmap(cocod, axis_name="workers"), compiler_options={"x": True})
    with pytest.raises(ValueError, match=r"options to certify"):
        ask(run, W, BATCHES)


def test_a_pmapped_function_brings_its_own_devices():
    run = jax.pmap(cocod, axis_name="workers")
    with pytest.raises(ValueError, match="made for 4 devices"):
        certify(run, W, BATCHES, target="h100", devices=8)
