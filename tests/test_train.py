"""The main job: from the command line to a log and a figure."""

import dataclasses
import itertools
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

import cocod_jax as cj
from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from cocod_jax.style import ALGORITHMS
from experiments import command, data, figures, logbook, tasks, train
from experiments.algorithms import AXIS, RECIPES, local_optimizer, make_rounds
from experiments.config import WITHOUT_INFLUENCE, Algorithm, Measured, TrainConfig
from experiments.data.cifar import CIFAR10
from experiments.job.layout import Layout
from experiments.tasks import Data, Task

ROOT = Path(__file__).parent.parent
# Every program of the experiments, by its module.
COMMANDS = sorted(
    path.parent.name if path.stem == "__main__" else path.stem
    for pattern in ("*.py", "*/__main__.py")
    for path in (ROOT / "experiments").glob(pattern)
    if re.search(r"^ +command\.run\(", path.read_text(), re.M)
)
SMALL = ["--model=cnn", "--width=4", "--data=digits", "--batch-size=16", "--workers=2"]


def start(module, *arguments):
    """A program of the experiments, whose warnings are errors of ours."""
    # Wide enough for a path of pytest on one line.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "300"}
    # The default generator takes the compiler seconds for each shape.
    env["JAX_DEFAULT_PRNG_IMPL"] = "rbg"
    # Tests in the background of a shell ignore Ctrl-C, and programs inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-m", module, *arguments],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, inherited)


def finish(process, timeout=120):
    """(exit status, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def kinds(log):
    return [json.loads(line)["kind"] for line in log.read_text().splitlines()]


@pytest.fixture
def run_here(monkeypatch):
    """The main job in this process, by its command line: its configuration."""
    monkeypatch.setattr(
        train,
        "start_devices",
        lambda n, each, processes, cpus: jax.devices()[: n * each * cpus : cpus],
    )
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments, status=0):
        config = tyro.cli(TrainConfig, args=arguments)
        with jax.default_prng_impl("rbg"), pytest.raises(SystemExit) as end:
            command.run(train.main, TrainConfig, "", arguments)
        assert end.value.code == status
        return config

    return run


# ------------------------------------------------------------------ whole programs


def check_log(config):
    """What a finished run of one epoch leaves."""
    log = config.log
    order = kinds(log)
    assert order[0] == "run"
    assert order[-1] == "end"
    records = read_jsonl(log)
    assert records["end"] == [{"status": "finished"}]
    (run,) = records["run"]
    assert run["config"] == logbook.plain(config)
    assert {"python", "jax", "jaxlib", "flax", "optax", "cocod-jax"} <= set(
        run["versions"]
    )
    assert run["workers"] == config.workers

    # Every step once, rounds of one step first, and an epoch when it is complete.
    warm = config.warmup_rounds
    steps = [record["step"] for record in records["round"]]
    assert steps[:warm] == [*range(1, warm + 1)]
    assert set(np.diff(steps[warm:])) == {4}
    names = {*cj.RoundMetrics._fields} - {"aux"}
    for record in records["round"]:
        assert np.isfinite([record[name] for name in names]).all()
    assert "alarm" not in records
    (epoch,) = records["epoch"]
    assert epoch["epoch"] == 1
    assert 0 <= epoch["test_accuracy"] <= 1
    # The mean over local steps: a round of the warm-up has one, the others four.
    losses = [record["loss"] for record in records["round"]]
    lengths = np.diff([0, *steps])
    assert epoch["train_loss"] == pytest.approx(np.average(losses, weights=lengths))
    assert log.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def check_lines(out):
    """What it says outside of a terminal."""
    assert "\x1b" not in out, "control codes outside of a terminal"
    compiling, epoch = (
        next(line for line in out.splitlines() if line.startswith(word))
        for word in ("Compiling; ", "epoch ")
    )
    assert out.index(compiling) < out.index(epoch)
    assert out.index("loading digits") < out.index(compiling)
    assert re.match(r"epoch   1/\d+   round \d+/\d+   loss .* images/s   ETA ", epoch)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("ssgd", "--warmup-rounds 3"),
        ("pipe_sgd", "--warmup-rounds 3 --decay step"),
        ("local_sgd", "--partition dirichlet:1.0 --batch-size 8"),
        ("cocod", "--via shard_map --execution fused"),
        ("streamed", "--optimizer adamw --learning-rate 0.02 --partition by_class"),
        ("streamed", "--execution split --numbers int8"),
    ],
)
def test_every_algorithm_leaves_a_log_and_a_figure(
    algorithm, options, run_here, tmp_path, capsys
):
    arguments = [*SMALL, "--epochs", "1", "--algorithm", algorithm, *options.split()]
    config = run_here(*arguments, "--out", str(tmp_path))
    out = capsys.readouterr().out
    check_lines(out)
    assert "images/s   ETA 0 s" in out
    check_log(config)


def test_a_run_that_diverges_says_so_once(run_here, tmp_path, capsys):
    steps = ["--learning-rate", "100", "--warmup-epochs", "0", "--epochs", "1"]
    config = run_here(*SMALL, *steps, "--out", str(tmp_path))
    out = capsys.readouterr().out
    alarms = read_jsonl(config.log)["alarm"]
    sentences = [alarm["sentence"] for alarm in alarms]
    assert len({sentence[:12] for sentence in sentences}) == len(sentences)
    for sentence in sentences:
        assert out.count(sentence) == 1


def test_ctrl_c_leaves_a_log_and_says_where(tmp_path):
    arguments = [*SMALL, "--epochs", "10000", "--out", str(tmp_path)]
    process = start("experiments.train", *arguments)
    log = tyro.cli(TrainConfig, args=arguments).log
    try:
        for _ in range(1000):
            if process.poll() is not None or (
                log.exists() and '"kind": "epoch"' in log.read_text()
            ):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    finally:
        status, out, err = finish(process)
    assert (status, err) == (128 + signal.SIGINT, ""), err
    check_lines(out)
    assert "Interrupted" in out
    assert log.name in out
    records = read_jsonl(log)
    assert records["end"] == [{"status": "interrupted"}]
    assert kinds(log)[-1] == "end"
    assert log.with_suffix(".png").exists()
    (run,) = records["run"]
    command_line = ["python", "-m", "experiments.train", *arguments]
    assert run["command"] == shlex.join(command_line)
    assert run["devices"] == ["cpu", "cpu", 2]


def numbers(config):
    """A task without images: to predict a number."""

    def loss_fn(params, model_state, batch, key):
        return jnp.mean((params - batch) ** 2), model_state

    def rounds(*, first_step, period, count, workers):
        return iter(np.ones([count, 2, period, 3], np.float32))

    return Task(
        init=lambda key: (jnp.zeros([]), {}),
        loss_fn=loss_fn,
        optimizer=lambda workers, steps_per_epoch: optax.sgd(0.05),
        load=lambda workers: Data(
            steps_per_epoch=8,
            per_step=6,
            rounds=rounds,
            evaluate=lambda params, model_state: {
                "test_loss": float((1 - params) ** 2)
            },
            digest="",
        ),
        batch_shapes=lambda workers, period: None,
        unit="numbers",
        result=lambda record: ("test loss", f"{record['test_loss']:.3f}"),
    )


def test_another_task_is_trained_the_same_way(run_here, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    options = ["--epochs=3", f"--out={tmp_path}"]
    config = run_here(*SMALL, *options)
    out = capsys.readouterr().out
    epochs = read_jsonl(config.log)["epoch"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert 0 < epochs[2]["test_loss"] < epochs[0]["test_loss"] < 1
    assert epochs[2]["numbers_per_second"] > 0
    assert f"test {epochs[2]['test_loss']:.3f}   " in out
    assert "numbers/s" in out
    assert "images" not in out
    assert config.log.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), "interrupted"),
        (lambda: 1 / 0, "failed"),
    ],
)
def test_what_was_dispatched_is_logged_when_it_stops(
    stop, status, run_here, tmp_path, monkeypatch
):
    """The last round's metrics are on the devices when the next batches are drawn."""
    rounds = data.Pipeline.rounds

    def four_rounds(*args, count, **options):
        yield from itertools.islice(rounds(*args, count=count, **options), 4)
        if count:  # there is no warm-up
            stop()

    monkeypatch.setattr(data.Pipeline, "rounds", four_rounds)
    arguments = [*SMALL, "--epochs", "9", "--period", "2", "--out", str(tmp_path)]
    if status == "failed":
        with jax.default_prng_impl("rbg"), pytest.raises(ZeroDivisionError):
            command.run(train.main, TrainConfig, "", arguments)
    else:
        run_here(*arguments, status=128 + signal.SIGTERM)
    log = tyro.cli(TrainConfig, args=arguments).log
    records = read_jsonl(log)
    assert [record["step"] for record in records["round"]] == [2, 4, 6, 8]
    assert records["end"] == [{"status": status}]


def test_a_round_is_dispatched_before_the_last_ones_metrics_are_fetched(
    run_here, tmp_path, monkeypatch
):
    happened = []
    distribute, fetch = cj.distribute, jax.device_get

    def spied(*args, **options):
        run = distribute(*args, **options)
        return lambda *round_: (happened.append("dispatch"), run(*round_))[1]

    def fetched(tree):
        if isinstance(tree, cj.RoundMetrics) and isinstance(tree.loss, jax.Array):
            happened.append("fetch")
        return fetch(tree)

    monkeypatch.setattr(cj, "distribute", spied)
    monkeypatch.setattr(jax, "device_get", fetched)
    config = run_here(*SMALL, "--epochs=1", "--batch-size=80", "--out", str(tmp_path))
    rounds = len(read_jsonl(config.log)["round"])
    between = ["dispatch", "fetch"] * (rounds - 1)
    assert rounds > 1
    assert happened == ["dispatch", *between, "fetch"]


@pytest.mark.parametrize("module", COMMANDS)
def test_the_help_says_how_it_is_stopped(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, f"experiments.{module}", raising=False)
    monkeypatch.delitem(sys.modules, f"experiments.{module}.__main__", raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
    out = capsys.readouterr().out
    assert "`kill PID`" in out
    assert "in the background" in out


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("algorithm", ["ssgd", "pipe_sgd", "local_sgd", "cocod"]),
        ("model", ["resnet18", "vgg16", "cnn"]),
        ("data", ["mnist5k", "digits", "cifar10", "cifar100"]),
        ("via", ["pmap", "shard_map"]),
    ],
)
def test_a_wrong_option_names_the_choices(option, choices, capsys):
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(TrainConfig, args=[f"--{option}", "wrong"])
    message = capsys.readouterr().err
    for choice in choices:
        assert choice in message


def test_a_folder_of_archives_is_for_cifar(tmp_path, capsys, monkeypatch):
    """It would be ignored otherwise, and digits would pass for CIFAR."""
    monkeypatch.setenv("COLUMNS", "300")  # a narrow terminal would break the sentence
    for cifar in ("cifar10", "cifar100"):
        assert TrainConfig(data=cifar, data_dir=tmp_path).data == cifar
    with pytest.raises(ValueError, match=r"data_dir=.* not for 'mnist5k'"):
        TrainConfig(data_dir=tmp_path)
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(TrainConfig, args=["--data-dir", str(tmp_path)])
    assert "is for data='cifar10'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data cifar10 --data-dir {}", "data_batch_1.bin has 3 bytes instead of"),
        ("--data digits --partition by_class --micro-batches 2 1", "its own sizes"),
        ("--seed 99999999999999999999", "must be below 2**32"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "layout_of", lambda config: Layout(jax.devices()[:2]))
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / "cifar" / CIFAR10.folder
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(b"cut")
    words = f"--workers 2 --out {tmp_path / 'runs'} {options}"
    arguments = words.format(folder.parent).split()
    with pytest.raises(SystemExit, match="2"):
        command.run(train.main, TrainConfig, "", arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ names of logs


def test_runs_that_differ_have_logs_that_differ():
    """A sweep of any option into one folder keeps all of its logs."""
    others: dict[str, Any] = {
        "algorithm": "ssgd",
        "workers": 2,
        "micro_batches": (3, 1),
        "period": 8,
        "delay": 2,
        "warmup_rounds": 1,
        "model": "cnn",
        "width": None,
        "data": "digits",
        "partition": "dirichlet:0.5",
        "epochs": 2,
        "batch_size": 5,
        "learning_rate": 1e-5,
        "warmup_epochs": 0.5,
        "decay": "step",
        "optimizer": "adamw",
        "momentum": 0.5,
        "nesterov": False,
        "weight_decay": 0.0,
        "seed": 1,
        "via": "shard_map",
        "execution": "fused",
        "numbers": "int8",
    }
    without = {"task", *WITHOUT_INFLUENCE}
    assert set(others) == {f.name for f in dataclasses.fields(TrainConfig)} - without
    runs = [TrainConfig(**{name: value}) for name, value in others.items()]
    runs += [TrainConfig(), TrainConfig(**others), TrainConfig(**others | {"seed": 2})]
    names = [run.log.name for run in runs]
    assert len(set(names)) == len(runs)
    assert TrainConfig().log.name == "mnist5k-resnet18-cocod-seed0.jsonl"
    sweep = TrainConfig(period=8, delay=2, width=None, seed=3)
    expected = "mnist5k-resnet18-cocod-period=8-delay=2-width=None-seed3.jsonl"
    assert sweep.log.name == expected
    for name in names:
        assert re.fullmatch(r"[\w.+=-]{1,200}", name)


# ------------------------------------------------------------- what is certified


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--micro-batches 3 1",
        "--micro-batches 2 1 --algorithm pipe_sgd --period 3 --warmup-rounds 2",
        "--algorithm ssgd --seed 1 --decay step --no-nesterov",
    ],
)
def test_the_job_that_is_certified_is_the_one_that_runs(options, monkeypatch):
    monkeypatch.setattr(
        train,
        "start_devices",
        lambda n, each, processes, cpus: jax.devices()[: n * each * cpus : cpus],
    )
    arguments = [*SMALL, *options.split()]
    config = tyro.cli(TrainConfig, args=arguments)
    job = train.prepare(config, train.layout_of(config))
    period = job.main.period
    (batches,) = job.data.rounds(first_step=0, period=period, count=1)
    with jax.default_prng_impl("rbg"):
        state = job.layout.initial_state(
            job.main, job.task.init, jax.random.key(job.config.seed)
        )
        certified, *shapes = train.certifiable(arguments, 2)
    assert (certified.period, certified.delay) == (period, job.main.delay)
    real = jax.eval_shape(lambda: (state, batches))
    assert jax.tree.structure(tuple(shapes)) == jax.tree.structure(real)
    of = lambda leaf: (leaf.shape, leaf.dtype)
    assert [*map(of, jax.tree.leaves(shapes))] == [*map(of, jax.tree.leaves(real))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--workers 4",
            r"workers=4, .* the certificate is for devices=2",
        ),
        ("--execution split", r"execution='split' .* certify the fused round"),
        ("--micro-batches 3 1 1", r"micro_batches=\(3, 1, 1\) .* each of 2 workers"),
    ],
)
def test_a_job_that_cannot_be_certified_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train.certifiable([*SMALL, *options.split()], 2)


def test_the_pmap_script_is_short_and_learns():
    script = ROOT / "experiments" / "minimal_pmap.py"
    assert len(script.read_text().splitlines()) < 60
    status, out, err = finish(start("experiments.minimal_pmap"))
    assert (status, err) == (0, ""), err
    accuracy = out.splitlines()[-1].removeprefix("test accuracy of the consensus: ")
    assert float(accuracy.removesuffix("%")) > 90


# ------------------------------------------------------------- the local optimizer


def learning_rates(config, workers, steps_per_epoch, steps):
    """The rate of each step, by what it does to a gradient of one."""
    optimizer = local_optimizer(config, workers, steps_per_epoch)
    params: Any = jnp.zeros([])

    def step(state, _):
        updates, state = optimizer.update(jnp.ones([]), state, params)
        return state, optax.tree.scale(-1, updates)

    return np.asarray(jax.lax.scan(step, optimizer.init(params), length=steps)[1])


def plain(**options):
    """Settings whose updates are the learning rate times the gradient."""
    return TrainConfig(momentum=0.0, weight_decay=0.0, **options)


# Rates are computed in float32 from a count of steps.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def test_the_rate_grows_from_one_workers_to_all_workers():
    config = plain(learning_rate=0.4, batch_size=32, epochs=10, warmup_epochs=2)
    rates = learning_rates(config, workers=8, steps_per_epoch=5, steps=50)
    single, peak = 0.4 * 32 / 256, 0.4 * 8 * 32 / 256
    np.testing.assert_allclose(rates[:11], np.linspace(single, peak, 11), **CLOSE)
    half_wave = (1 + np.cos(np.pi * np.arange(40) / 40)) / 2
    np.testing.assert_allclose(rates[10:], peak * half_wave, **CLOSE)


def test_step_decay_divides_by_10_after_half_and_three_quarters():
    config = plain(
        learning_rate=0.5, batch_size=64, epochs=8, warmup_epochs=1, decay="step"
    )
    rates = learning_rates(config, workers=4, steps_per_epoch=10, steps=80)
    np.testing.assert_allclose(rates[10:40], 0.5, **CLOSE)
    np.testing.assert_allclose(rates[40:60], 0.05, **CLOSE)
    np.testing.assert_allclose(rates[60:], 0.005, **CLOSE)


@pytest.mark.parametrize("decay", ["cosine", "step"])
def test_a_warmup_longer_than_the_run_is_cut(decay):
    config = plain(epochs=1, warmup_epochs=3.0, decay=decay)
    rates = learning_rates(config, workers=4, steps_per_epoch=6, steps=6)
    peak = 0.2 * 100 / 256
    np.testing.assert_allclose(rates[:5], np.linspace(peak / 4, peak, 6)[:5], **CLOSE)
    assert np.isfinite(rates).all()


def test_one_worker_has_no_warmup():
    config = plain(batch_size=256, epochs=4, decay="step")
    rates = learning_rates(config, workers=1, steps_per_epoch=5, steps=10)
    np.testing.assert_allclose(rates, 0.2, **CLOSE)


def test_weight_decay_is_for_kernels_only():
    config = TrainConfig(momentum=0.0, weight_decay=0.1, warmup_epochs=0)
    optimizer = local_optimizer(config, workers=2, steps_per_epoch=5)
    params: Any = {
        "conv": {"kernel": jnp.ones([3, 3, 2, 4]), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "head": {"kernel": jnp.ones([4, 2])},
    }
    zeros = optax.tree.zeros_like(params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    decayed = jax.tree.map(lambda update: bool((update != 0).all()), updates)
    assert decayed == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "head": {"kernel": True},
    }


def test_momentum_is_nesterovs():
    config = TrainConfig(weight_decay=0.0, warmup_epochs=0, decay="step", epochs=100)
    rates = learning_rates(config, workers=1, steps_per_epoch=5, steps=3)
    rate = 0.2 * 25 / 256
    # g + 0.9 (g + 0.9 (g + ...)): a step ahead of heavy ball.
    np.testing.assert_allclose(rates / rate, [1.9, 2.71, 3.439], **CLOSE)


# ------------------------------------------------------------------ the algorithms


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({"algorithm": "ssgd", "delay": 2}, 0),
        ({"algorithm": "pipe_sgd"}, 0),
        ({"algorithm": "local_sgd", "delay": 2}, 0),
        ({"algorithm": "cocod"}, 5),
        ({"algorithm": "cocod", "delay": 2}, 2),
    ],
)
def test_periods_and_delays(options, delay):
    config = TrainConfig(period=5, **options)
    warm, main = make_rounds(config, quadratic, optax.sgd(0.1))
    assert (warm.period, warm.delay) == (1, 0)
    assert (main.period, main.delay) == (5, delay)


WORKERS, PERIOD, RATE = 2, 3, 0.1


def quadratic(params, model_state, batch, key):
    del key
    return 0.5 * (params - batch) ** 2, model_state


def gradient_descent(algorithm, x, targets, warmup):
    """What the algorithm makes of x [workers], one step a column, in plain NumPy."""
    x, pending = np.full(WORKERS, x), np.zeros(WORKERS)
    snapshot = x
    for t in range(targets.shape[1]):
        in_warmup = t < warmup
        if (t - warmup) % PERIOD == 0 or in_warmup:
            # Delay 0 merges at the start of a round, as the rounds here do.
            snapshot = x
            late = algorithm in ("cocod", "streamed")
            if algorithm == "local_sgd" or (late and in_warmup):
                x = np.full(WORKERS, x.mean())
        gradient = x - targets[:, t]
        match algorithm:
            case "ssgd":
                gradient = np.full(WORKERS, gradient.mean())
            case "pipe_sgd" if in_warmup:
                gradient = np.full(WORKERS, gradient.mean())
            case "pipe_sgd":
                gradient, pending = np.full(WORKERS, pending.mean()), gradient
        before, x = x, x - RATE * gradient
        # One number has one piece, the first of the period.
        if algorithm == "streamed" and not in_warmup and t % PERIOD == 0:
            x = before.mean() + (x - before)
        if algorithm == "cocod" and not in_warmup and (t - warmup) % PERIOD == 2:
            x = snapshot.mean() + (x - snapshot)
    return x


def test_every_algorithm_has_a_recipe_a_name_and_a_colour():
    assert set(RECIPES) == set(ALGORITHMS) == set(get_args(Measured))
    assert set(get_args(Algorithm)) == set(ALGORITHMS) - {"just_in_time"}
    assert len(set(ALGORITHMS.values())) == len(ALGORITHMS)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_the_rounds_are_the_algorithms(algorithm):
    warmup, rounds = 2, 3
    config = TrainConfig(algorithm=algorithm, period=PERIOD, warmup_rounds=warmup)
    warm, main = make_rounds(config, quadratic, optax.sgd(RATE))
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(WORKERS, warmup + rounds * PERIOD))
    state = cj.replicate(main.init(jnp.array(3.0)), WORKERS)
    step = 0
    for round_, count in ((warm, warmup), (main, rounds)):
        run = cj.distribute(round_, AXIS, via="vmap", execution="fused")
        for _ in range(count):
            batches = jnp.asarray(targets[:, step : step + round_.period], jnp.float32)
            state, _ = run(state, batches)
            step += round_.period
    expected = gradient_descent(algorithm, 3.0, targets, warmup)
    # Eleven float32 steps of numbers around 1.
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)


# --------------------------------------------------------------- logs and figures


def write_log(path, *, algorithm="cocod", seed=0, epochs=3, level=0.9):
    with to_jsonl(path) as log:
        config = {"algorithm": algorithm, "seed": seed, "model": "cnn", "width": 4}
        config |= {"data": "digits", "period": 4}
        log.write("run", config=config, workers=2)
        for epoch in range(1, epochs + 1):
            log.write(
                "epoch",
                epoch=epoch,
                train_loss=1 / (epoch + seed),
                test_accuracy=level - 0.1 / epoch,
            )
        log.write("end", status="finished")
    return path


def test_circumstances_can_be_written(tmp_path):
    config = TrainConfig(data="cifar10", data_dir=tmp_path)
    path = tmp_path / "log.jsonl"
    with to_jsonl(path) as log:
        log.write("run", **logbook.circumstances(config))
    (run,) = read_jsonl(path)["run"]
    assert run["config"]["data_dir"] == str(tmp_path)
    assert run["versions"]["jax"] == jax.__version__
    assert run["devices"] == ["cpu", "cpu", jax.device_count()]
    assert run["processor"]["model"]
    assert run["processor"]["cores"] == os.cpu_count()


def test_the_commit_of_a_run_is_known_in_a_checkout_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(logbook, "__file__", str(tmp_path / "logbook.py"))
    assert logbook.circumstances(TrainConfig())["commit"] is None
    for git in ("init", "-c user.name=a -c user.email=b commit --allow-empty -m c"):
        subprocess.run(["git", *git.split()], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{12}", logbook.circumstances(TrainConfig())["commit"])


def test_the_commit_of_a_run_is_dirty_when_its_code_is(monkeypatch, tmp_path):
    """A result is no code: a run may be replacing its own earlier log."""
    monkeypatch.setattr(logbook, "__file__", str(tmp_path / "logbook.py"))
    (tmp_path / "experiments/results").mkdir(parents=True)
    files = [tmp_path / "experiments/results/log.jsonl", tmp_path / "code.py"]
    for file in files:
        file.write_text("before")
    for git in ("init", "add .", "-c user.name=a -c user.email=b commit -m c"):
        subprocess.run(["git", *git.split()], cwd=tmp_path, check=True)
    for file, ending in zip(files, ("", "-dirty"), strict=True):
        file.write_text("after")
        commit = logbook.circumstances(TrainConfig())["commit"]
        assert re.fullmatch("[0-9a-f]{12}" + ending, commit)


def test_a_log_without_an_epoch_cannot_be_drawn(tmp_path):
    path = write_log(tmp_path / "log.jsonl", epochs=0)
    with pytest.raises(ValueError, match=r"log\.jsonl has no finished epoch"):
        figures.training_curves([path], tmp_path / "curves.png")


def test_seeds_become_a_mean_and_a_band(tmp_path, monkeypatch):
    drawn = []
    # The figure is looked at in the moment in which it would be closed.
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    logs = [
        write_log(tmp_path / "a.jsonl", seed=0, level=0.9, epochs=4),
        write_log(tmp_path / "b.jsonl", seed=1, level=0.8),
        write_log(tmp_path / "c.jsonl", algorithm="ssgd", level=0.95),
    ]
    out = tmp_path / "curves.png"
    figures.training_curves(logs, out)
    monkeypatch.undo()
    (figure,) = drawn
    loss, accuracy = figure.axes
    assert [line.get_label() for line in accuracy.get_lines()] == [
        "S-SGD",
        "CoCoD-SGD",
    ]
    x, y = accuracy.get_lines()[1].get_data()
    # As many epochs as the shortest of the runs.
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_allclose(y, 100 * (0.85 - 0.1 / np.arange(1, 4)))
    (band,) = accuracy.collections
    vertices = band.get_paths()[0].vertices
    assert vertices[:, 1].min() == pytest.approx(100 * (0.8 - 0.1))
    assert vertices[:, 1].max() == pytest.approx(100 * (0.9 - 0.1 / 3))
    assert loss.get_yscale() == "log"
    assert "2 seeds" in figure.get_suptitle()
    assert out.read_bytes().startswith(b"\x89PNG")
    figures.plt.close(figure)
