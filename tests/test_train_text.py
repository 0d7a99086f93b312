"""The main job on text: from the command line to a log, a figure and a sample."""

import dataclasses
import hashlib
import math
import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from cocod_jax.certify.__main__ import main as certify_main
from cocod_jax.observe.loggers import read_jsonl
from docs.generate import DOCS
from experiments import command, logbook, sweep, train
from experiments.algorithms import make_rounds
from experiments.config import TextConfig, TrainConfig, config_type, parse
from experiments.job import forecast, layout
from experiments.job.layout import Layout
from experiments.job.peaks import peak
from experiments.models import transformer
from experiments.tasks import task_of, text
from tests.marks import needs_compiler

TEXT = "".join(f"{i} and {i + 1} are {2 * i + 1}.\n" for i in range(400))
SMALL = ["--task=text", "--workers=2", "--context=16", "--batch-size=8"]


@pytest.fixture
def small(tmp_path):
    """A command line for seconds."""
    file = tmp_path / "sums.txt"
    file.write_text(TEXT)
    return [*SMALL, f"--data-file={file}", f"--out={tmp_path}", "--epochs=2"]


@pytest.fixture
def run_here(monkeypatch):
    """The main job in this process, by its command line."""
    monkeypatch.setattr(
        train,
        "start_devices",
        lambda n, each, processes, cpus: jax.devices()[: n * each * cpus : cpus],
    )
    monkeypatch.setenv("COLUMNS", "300")

    def run(arguments, status=0):
        # The default generator takes the compiler seconds for each shape.
        with jax.default_prng_impl("rbg"), pytest.raises(SystemExit) as end:
            command.run(train.main, config_type(arguments), "", arguments)
        assert end.value.code == status

    return run


# ------------------------------------------------------------------ whole programs


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("cocod", "--temperature 0"),
        pytest.param(
            "streamed", "--via shard_map --epochs 2.4", marks=pytest.mark.matrix
        ),
        ("streamed", "--fsdp 4"),
    ],
)
def test_it_learns_and_leaves_a_log_a_figure_and_a_sample(
    algorithm, options, run_here, small, capsys, monkeypatch
):
    if algorithm == "streamed":  # on devices whose peak is known
        monkeypatch.setattr(layout, "peak", lambda device: 2e9)
    # What is the same in both is compiled once.
    both = ["--tokenizer=characters", "--dtype=bfloat16"]
    arguments = [*small, *both, "--algorithm", algorithm, *options.split()]
    config = parse(arguments)
    run_here(arguments)
    out = capsys.readouterr().out
    records = read_jsonl(config.log)
    assert [*records] == ["run", "data", "round", "workers", "epoch", "sample", "end"]
    assert records["end"] == [{"status": "finished"}]
    assert records["run"][0]["config"] == logbook.plain(config)

    epochs = records["epoch"]
    steps = records["round"][-1]["step"]
    per_epoch = 28  # 457 sequences for two workers
    assert [epoch["epoch"] for epoch in epochs[:2]] == [1, 2]
    if len(epochs) > 2:
        assert epochs[2]["epoch"] == pytest.approx(steps / per_epoch)
        assert steps == 4 * math.ceil(2.4 * per_epoch / 4)
    last = epochs[-1]
    assert last["test_loss"] < epochs[0]["test_loss"]
    assert last["test_loss"] < last["unigram_entropy"]
    assert last["test_perplexity"] == pytest.approx(math.exp(last["test_loss"]))
    # In each of 28 steps two workers with 8 sequences of 16 tokens.
    seconds = records["round"][6]["seconds"]
    assert epochs[0]["tokens_per_second"] == pytest.approx(28 * 256 / seconds)
    assert (" tokens/s   MFU " in out) == (algorithm == "streamed")
    if algorithm == "streamed":
        devices = 2 * math.prod(config.sharing)
        vocabulary = len(set(TEXT))
        flops = transformer.flops("tiny", vocabulary=vocabulary, context=16)
        share = epochs[0]["tokens_per_second"] * flops / (devices * 2e9)
        assert epochs[0]["model_flops_utilisation"] == pytest.approx(share)

    # All devices of a worker together; each has small leaves of its own.
    parameters = records["run"][0]["parameters"]
    for record in records["round"]:
        assert record["sent_bytes"] == pytest.approx(4 * parameters, rel=0.01)

    for note in records["data"][0]["notes"]:
        assert note in out
    assert f"by {last['unigram_entropy']:.4f} nats a token" in out
    assert re.search(r"^epoch   1/[\d.]+   .* test [\d.]+, loss .* tokens/s", out, re.M)
    sample = records["sample"][0]["text"]
    assert sample.startswith(TEXT[-(len(TEXT) // 10) :][:17])
    assert len(sample.encode()) >= 17 + 200
    assert sample.splitlines()[0] in out
    assert config.log.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_evaluation_is_the_mean_over_all_sequences(small):
    """Also where the last batch is not full."""
    config: Any = parse(small)
    task = text.task(config)
    load = task.load(2)
    params, _ = jax.jit(task.init)(jax.random.key(0, impl="rbg"))
    (batches,) = load.rounds(first_step=0, period=1, count=1)
    windows = batches["tokens"][0, 0]
    loss, _ = jax.jit(task.loss_fn)(params, {}, {"tokens": windows[:5]}, None)
    corpus = text.text.load(config.data_file, config.tokenizer)
    model = text.transformer.build("tiny", vocabulary=corpus.tokenizer.size)
    evaluate = text.evaluator(model, windows[:5], batch_size=3)
    # Sums in another order.
    assert evaluate(params, {})["test_loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data-file nowhere.txt", "data_file='nowhere.txt' cannot be read: No such"),
        ("--context 4000", "tokens, too few for context=4000: its last tenth must be"),
        (
            "--batch-size 4000",
            "batch_size=4000 is more than the 229 examples of",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_one_line(
    options, message, run_here, small, capsys
):
    run_here([*small, *options.split()], status=2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# --------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task text --width 4", "--width belongs to --task images, not to --task te"),
        ("--no-nesterov --task=text", "--no-nesterov belongs to --task images, not to"),
        ("--data-file=a.txt", "--data-file belongs to --task text, not to --task imag"),
        ("--task speech", "argument --task: invalid choice: 'speech' (choose from"),
    ],
)
def test_options_of_another_task_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(arguments.split())
    assert message in capsys.readouterr().err


def test_a_command_line_is_of_its_task():
    assert parse([]) == TrainConfig()
    assert parse(["--task=images", "--width=4"]) == TrainConfig(width=4)
    assert parse(["--remat", "--task", "text"]) == TextConfig(remat=True)
    for run in (TrainConfig(), TextConfig(delay=2, remat=True, epochs=1.5)):
        assert parse(sweep.options(run)) == run


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0.0), ("learning_rate", -1.0), ("context", 0), ("temperature", -0.1)],
)
def test_a_wrong_number_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        dataclasses.replace(TextConfig(), **{name: value})


def test_runs_have_logs_by_their_texts_and_options(tmp_path):
    assert TextConfig().log.name == "pydoc-tiny-cocod-seed0.jsonl"
    run = TextConfig(data_file=tmp_path / "a b.txt", context=64, seed=1)
    assert run.log.name == "a_b-tiny-cocod-context=64-seed1.jsonl"


def test_texts_of_one_name_have_runs_of_their_own(tmp_path):
    """Another text, and the first one at another place."""
    logs = []
    for folder, words in (("a", "one"), ("b", "another"), ("moved", "one")):
        file = tmp_path / folder / "book.txt"
        file.parent.mkdir()
        file.write_text(words)
        run = TextConfig(data_file=file)
        assert run.subject == "book"
        logs.append(run.log.name)
    digest = hashlib.sha256(b"one").hexdigest()[:8]
    assert logs[0] == logs[2] == f"book-tiny-cocod-content={digest}-seed0.jsonl"
    assert logs[1] != logs[0]


def test_a_study_compares_losses(small, tmp_path):
    def log(seed, loss):
        run = dataclasses.replace(parse(small), algorithm="ssgd", seed=seed)
        with cj.loggers.to_jsonl(run.log) as log:
            log.write("run", config=logbook.plain(run), workers=2)
            log.write("epoch", epoch=1, train_loss=2.0, test_loss=loss)
        return run.log

    table = sweep.table([log(0, 1.5), log(1, 1.6)])
    assert "| S-SGD | 1.5500 ± 0.0707 | 1.5000, 1.6000 |" in table


# ------------------------------------------------------------- what is certified


@pytest.mark.parametrize(
    "options", ["", "--micro-batches 3 1 --remat", "--fsdp 2 --algorithm streamed"]
)
def test_the_job_that_is_certified_is_the_one_that_runs(options, small, monkeypatch):
    monkeypatch.setattr(
        train,
        "start_devices",
        lambda n, each, processes, cpus: jax.devices()[: n * each * cpus : cpus],
    )
    arguments = [*small, *options.split()]
    config = parse(arguments)
    job = train.prepare(config, train.layout_of(config))
    (batches,) = job.data.rounds(first_step=0, period=job.main.period, count=1)
    with jax.default_prng_impl("rbg"):
        state = job.layout.initial_state(
            job.main, job.task.init, jax.random.key(job.config.seed)
        )
        devices = len(job.layout.devices)
        certified, *shapes = train.certifiable(arguments, devices)
    assert (certified.period, certified.delay) == (job.main.period, job.main.delay)
    real = jax.eval_shape(lambda: (state, batches))
    assert jax.tree.structure(tuple(shapes)) == jax.tree.structure(real)
    of = lambda leaf: (leaf.shape, leaf.dtype)
    assert [*map(of, jax.tree.leaves(shapes))] == [*map(of, jax.tree.leaves(real))]


@pytest.mark.parametrize("algorithm", ["cocod", "streamed", "ssgd"])
def test_a_worker_sends_what_all_its_devices_send(algorithm, small):
    def sent(options):
        arguments = [*small, "--algorithm", algorithm, *options.split()]
        config = parse(arguments)
        devices = 2 * math.prod(config.sharing)
        round_, state, _ = train.certifiable(arguments, devices)
        return forecast.sent_bytes(config, round_, state)

    alone = sent("")
    for options in ("--fsdp 4", "--fsdp 2 --tensor 2"):
        # Small leaves have a copy on every device.
        assert alone <= sent(options) < 1.01 * alone


@needs_compiler
def test_cocod_is_hidden_on_h100(small):
    program = train.certifiable([*small[:1], *small[2:], "--dtype=bfloat16"], 8)
    certificate = certify(*program, target="h100").check()
    assert certificate.verdict == "hidden behind 4 of 4 local steps"


@pytest.mark.parametrize(
    "shared_by",
    [
        "--fsdp 2 --tensor 2",
        pytest.param("--fsdp 2", marks=pytest.mark.matrix),
        pytest.param("--tensor 2", marks=pytest.mark.matrix),
    ],
)
def test_devices_that_share_a_worker_train_the_same_model(shared_by, small):
    arguments = [*small, "--algorithm", "cocod", "--workers", "2"]
    found = []
    for options in ("", shared_by):
        config = parse([*arguments, *options.split()])
        each = math.prod(config.sharing)
        shared = Layout(jax.devices()[: 2 * each], *config.sharing)
        task = task_of(config)
        data = task.load(shared.workers)
        _, round_ = make_rounds(config, task.loss_fn, task.optimizer(2, 10))
        state = shared.initial_state(round_, task.init, jax.random.key(0))
        for path, leaf in jax.tree.leaves_with_path((state.params, state.opt_state)):
            if "gate" in jax.tree_util.keystr(path):  # Adam's moments as well
                parts = {shard.data.size for shard in leaf.addressable_shards}
                assert each == 1 or parts == {leaf.size // (2 * each)}
        run = shared.distribute(round_, lambda metrics: None)
        metrics: Any = None
        for batches in data.rounds(first_step=0, period=round_.period, count=2):
            state, metrics = run(state, batches)
        found.append((metrics.loss, cj.consensus(state, jax.devices()[0])))
    alone, *others = map(jax.tree.leaves, found)
    for own in others:
        for leaf, expected in zip(own, alone, strict=True):
            # Adam divides gradients by their size, small ones of rounding as well.
            np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--fsdp 3", "batch_size=8 must be a multiple of fsdp=3"),
        ("--fsdp 2 --micro-batches 1 1", "is for workers of one device"),
        ("--fsdp 2 --execution split", "is for workers of one device"),
        ("--tensor 2 --execution split", "is for workers of one device"),
        ("--fsdp 0", "fsdp=0"),
    ],
)
def test_what_shared_workers_cannot_do_is_said(options, message, small, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        parse([*small, *options.split()])
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tensor 3", "tensor=3 does not divide the 4 heads of model='tiny'"),
        ("--fsdp 3 --batch-size 9", "fsdp times tensor=3 does not divide the 64 chan"),
    ],
)
def test_what_devices_cannot_share_is_said(options, message, small):
    with pytest.raises(ValueError, match=message):
        task_of(parse([*small, *options.split()]))


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_kind(kind, rate):
    assert peak(SimpleNamespace(device_kind=kind)) == rate


def shown_certificate(page):
    """The command line of the certificate of shared workers, and what it prints."""
    found = re.findall(
        r"-m cocod_jax.certify (experiments[^\n]*--fsdp.*?)\n```\n\n"
        r"```text\n(hidden beside.*?)```",
        page.read_text(),
        re.S,
    )
    (shown,) = found
    return shown


def test_the_readme_shows_the_same_certificate():
    page = DOCS / "how-to" / "language-model.md"
    assert shown_certificate(DOCS.parent / "README.md") == shown_certificate(page)


@needs_compiler
@pytest.mark.matrix
def test_the_page_prints_the_certificate_of_shared_workers(capsys):
    command_line, printed = shown_certificate(DOCS / "how-to" / "language-model.md")
    assert certify_main(command_line.split()) == 0
    assert capsys.readouterr().out == printed
