"""What one training run is: its configuration, on the command line or in Python.

``python -m experiments.train`` is the main job: it takes the defaults, 2 to 6 minutes
on 2 CPU cores. Expected: a test accuracy near 98 % after 10 epochs; the last
digit depends on the processor, and on how the merge rounds.

``python -m experiments.train --task text`` trains a language model, and has options of
its own.
"""

import argparse
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from cocod_jax._checks import check_period
from experiments.options import (
    Count,
    NonNegative,
    Options,
    Partition,
    Positive,
    Seed,
    Whole,
)

Algorithm = Literal["ssgd", "pipe_sgd", "local_sgd", "cocod", "streamed"]
"""What is trained; CoCoD-SGD at any delay."""
Measured = Literal[Algorithm, "just_in_time"]
"""What is timed: the delay just in time is an algorithm of its own there."""
Model = Literal["resnet18", "vgg16", "cnn"]
Size = Literal["tiny", "mini", "10m", "125m", "350m"]
"""How large a transformer is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """What the runs of all tasks have in common."""

    task: str
    """What is learnt."""
    model: str
    """The network."""

    algorithm: Algorithm = "cocod"
    """What workers exchange, and when."""
    workers: Count | None = None
    """Number of workers; None takes all GPUs, or 4 CPU devices."""
    micro_batches: tuple[Count, ...] | None = None
    """For unequal workers: micro-batches in a local step of each, in proportion to its
    speed. Each has batch_size examples; data and weights follow. Default: one each."""
    period: Count = 4
    """k, local steps in a round."""
    delay: int | None = None
    """d, local steps that the exchange of cocod may take; default: the period."""
    numbers: Literal["bf16", "fp8", "int8", "int4"] | None = None
    """What travels in an exchange: numbers of so few bits, whose rounding is made up
    for in the next one. Default: as the parameters are."""
    warmup_rounds: Whole = 0
    """Rounds of one synchronous step each, before the others."""

    epochs: Positive
    """Passes over the training data."""
    batch_size: Count
    """Examples in one local batch of one worker, or in one of its micro-batches."""

    seed: Seed = 0
    """Draws the initial model, the order of the data and the augmentation."""
    via: Literal["pmap", "shard_map"] = "pmap"
    """What maps the round over the devices."""
    execution: Literal["fused", "split"] | None = None
    """One program per round, which is the default, or one per step; on CPUs the
    exchange then has devices of its own, and runs beside the steps."""
    out: Path = Path("runs")
    """Folder for the log, the figure, the checkpoints and the model."""
    save_rounds: Count | None = None
    """Rounds from one checkpoint to the next; default: one after every epoch."""
    keep: Count = 2
    """How many of the last checkpoints stay; the best one does anyway."""
    slow: Positive = 30.0
    """Seconds after which a process that the others wait for is named."""
    writers: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ()
    """What else gets the numbers of the log; each but csv is an extra to install."""
    forecast: bool = False
    """Whether to measure a step and an exchange before, for the page of the run."""
    resume: bool = False
    """Whether to go on from the last checkpoint of this run, if there is one."""

    def __post_init__(self):
        super().__post_init__()
        check_period(self.period, self.delay)
        if self.numbers and self.algorithm == "streamed" and self.warmup_rounds:
            raise ValueError(
                f"warmup_rounds={self.warmup_rounds} exchange the whole model, and "
                f"numbers={self.numbers!r} with algorithm='streamed' remember what "
                "came of each piece; leave one of them out."
            )

    @property
    def subject(self) -> str:
        """What the data are called."""
        raise NotImplementedError

    @property
    def content(self) -> str | None:
        """Of data in a file, a short digest: others may have the same name."""
        return None

    @property
    def sharing(self) -> tuple[int, int]:
        """How many devices share a worker's model, by "fsdp" and by "tensor"."""
        return 1, 1

    @property
    def log(self) -> Path:
        """The log of this run; the figure is beside it.

        Its name has every option that influences the run and differs from its default,
        so that runs that differ do not share a log: ``digits-cnn-ssgd-period=8-seed0``.
        Of a text in a file it has the content, wherever the file is.
        """
        return self.out / f"{self._name()}.jsonl"

    @property
    def folder(self) -> Path:
        """Where checkpoints and the model are."""
        return self.log.with_suffix("")

    def _name(self) -> str:
        first = (self.subject, self.model, self.algorithm)
        named = {"task", "data", "data_file", "model", "algorithm", "seed"}
        named |= {*WITHOUT_INFLUENCE}
        options = [
            f"{field.name}={_word(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name not in named and getattr(self, field.name) != field.default
        ]
        if self.content is not None:
            options.append(f"content={self.content}")
        words = "-".join([*map(_word, first), *options])
        if len(words) > LONGEST_NAME:
            rest = hashlib.sha256(words.encode()).hexdigest()[:12]
            words = f"{words[:LONGEST_NAME]}-{rest}"
        return f"{words}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One run on images; the defaults take 2 to 6 minutes on 2 CPU cores."""

    task: Literal["images"] = "images"
    """What is learnt: `--task text --help` has the options of a language model."""
    model: Model = "resnet18"
    """The network."""
    width: Count | None = 12
    """Channels of its first stage; None is the width in the literature."""

    data: Literal["mnist5k", "digits", "cifar10", "cifar100"] = "mnist5k"
    """The data set; mnist5k and digits need no download."""
    data_dir: Path | None = None
    """Where the CIFAR archives are; for cifar10 and cifar100 only."""
    partition: Partition = "iid"
    """How the training data are split: iid, by_class, or dirichlet:ALPHA (skewed)."""

    epochs: Count = 10
    """Passes over the training data."""
    batch_size: Count = 25
    """Examples in one local batch of one worker, or in one of its micro-batches."""
    learning_rate: Positive = 0.2
    """The rate for a total batch of 256; it grows linearly with the total batch."""
    warmup_epochs: NonNegative = 1.0
    """The learning rate grows linearly from one worker's to all workers'."""
    decay: Literal["cosine", "step"] = "cosine"
    """How the rate falls after the warm-up: to zero, or by 10 after 50 % and 75 %."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The local optimizer."""
    momentum: NonNegative = 0.9
    """That of sgd; its buffers stay with their worker."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    weight_decay: NonNegative = 5e-4
    """Decays kernels, in adamw besides the gradient; leaves biases and batch norm
    alone."""

    def __post_init__(self):
        super().__post_init__()
        if self.data_dir is not None and not self.data.startswith("cifar"):
            raise ValueError(
                f"data_dir={str(self.data_dir)!r} is for data='cifar10' or 'cifar100', "
                f"not for {self.data!r}, which needs no files; choose one of them, or "
                "leave it out."
            )

    @property
    def subject(self) -> str:
        """The name of the data set."""
        return self.data


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """One run of a language model; the defaults take minutes on 2 CPU cores."""

    task: Literal["text"] = "text"
    """What is learnt: to write on. `--help` alone has the options of images."""
    model: Size = "tiny"
    """The transformer; tiny is for CPUs, the others are named by their parameters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; its parameters are float32."""
    remat: bool = False
    """Whether the backward pass computes each block again, for less memory."""
    fsdp: Count = 1
    """Devices of each worker, which share its model and its batches."""
    tensor: Count = 1
    """For each of these, so many devices, which share heads and hidden channels."""

    data_file: Path | None = None
    """A UTF-8 text; default: the language reference that comes with Python, as pydoc
    shows it."""
    tokenizer: Literal["bytes", "characters"] = "bytes"
    """What a token is; characters are those of the text."""
    context: Count = 128
    """Tokens in a sequence."""

    epochs: Positive = 6.0
    """Passes over the training text; the last may be a part of one."""
    batch_size: Count = 4
    """Sequences in one local batch of one worker, or in one of its micro-batches."""
    learning_rate: Positive = 5e-3
    """The highest rate of AdamW; no number of workers changes it."""
    warmup_epochs: NonNegative = 0.2
    """The rate grows linearly from zero, and then falls to a tenth as a cosine."""
    weight_decay: NonNegative = 0.1
    """Decays matrices, besides the gradient."""
    temperature: NonNegative = 0.8
    """Of the sample at the end; 0 takes the likeliest token each time."""

    def __post_init__(self):
        super().__post_init__()
        if self.sharing != (1, 1):
            self._check_shared()

    @property
    def sharing(self) -> tuple[int, int]:
        """How many devices share a worker's model, by "fsdp" and by "tensor"."""
        return self.fsdp, self.tensor

    def _check_shared(self) -> None:
        if self.batch_size % self.fsdp:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of fsdp={self.fsdp}, "
                "the devices that share a worker's batch."
            )
        other = {
            "micro_batches": self.micro_batches,
            "execution": self.execution,
            "numbers": self.numbers,
            "forecast": self.forecast or None,
        }
        for name, value in other.items():
            if value not in (None, "fused"):
                raise ValueError(
                    f"{name}={value!r} is for workers of one device, not for fsdp="
                    f"{self.fsdp} and tensor={self.tensor}; leave one of them out."
                )

    @property
    def subject(self) -> str:
        """The name of the text."""
        return "pydoc" if self.data_file is None else self.data_file.stem

    @functools.cached_property
    def content(self) -> str | None:
        """The beginning of the text's SHA-256; None where there is no file to read."""
        if self.data_file is None or not self.data_file.is_file():
            return None
        with self.data_file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]


CONFIGS: dict[str, type[RunConfig]] = {"images": TrainConfig, "text": TextConfig}
"""By task, what its runs are configured by."""
WITHOUT_INFLUENCE = (
    *("data_dir", "out", "save_rounds", "keep", "slow", "resume"),
    *("writers", "forecast"),
)
"""Options that say where files are, and what stays: the run is the same without."""
LONGEST_NAME = 160
"""Characters before a name is cut; file systems allow 255."""


def parse(args: Sequence[str]) -> RunConfig:
    """The configuration of a command line.

    Raises:
      SystemExit: when the command line is wrong, after saying why.
    """
    return tyro.cli(config_type(args), args=args)


def from_plain(plain: Mapping[str, Any]) -> RunConfig:
    """The configuration that a log or a model holds, as it came from JSON.

    Raises:
      ValueError: when it is that of no task, or a value is none of its option.
    """
    if plain.get("task") not in CONFIGS:
        raise ValueError(
            f"task={plain.get('task')!r} of the configuration must be one of "
            f"{[*CONFIGS]}."
        )
    own = CONFIGS[plain["task"]]
    values: dict[str, Any] = {name: plain[name] for name in _fields(own) & plain.keys()}
    for name, value in values.items():
        if name in ("out", "data_dir", "data_file") and value is not None:
            values[name] = Path(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return own(**values)


def config_type(args: Sequence[str]) -> type[RunConfig]:
    """What a command line is to be read as, by its ``--task``; images by default.

    Raises:
      SystemExit: when there is no such task, or an option belongs to another one.
    """
    parser = argparse.ArgumentParser(
        "experiments.train", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--task", choices=CONFIGS, default="images")
    given, others = parser.parse_known_args(args)
    own = CONFIGS[given.task]
    for word in others:
        option = word.partition("=")[0]
        name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
        for task, config in CONFIGS.items():
            if option.startswith("--") and name in _fields(config) - _fields(own):
                parser.error(
                    f"{option} belongs to --task {task}, not to --task {given.task}; "
                    "leave it out, or say which task you mean."
                )
    return own


def _fields(config: type[RunConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _word(value: object) -> str:
    """The value of an option as a part of a file's name."""
    if isinstance(value, tuple):
        return "+".join(map(_word, value))
    return re.sub(r"[^\w.+-]", "_", str(value))
