"""The main job on links fifty times slower: ``python -m experiments.slow_links``.

S-SGD trains on fast links. Streamed CoCoD-SGD with few bits a number trains on slow
ones, with the period that :func:`cocod_jax.advise` chooses by a step and an exchange
that are timed there first. Every worker is a process on a core of its own, in a network
namespace of its own: it needs Linux, root and iproute2. Arguments after ``--`` go to
every run, and say what is trained:

    python -m experiments.slow_links -- --model cnn --epochs 2

A run whose log says that it finished is not repeated.
"""

import dataclasses
import sys
from typing import Any

import cocod_jax as cj
from cocod_jax.measurement import Measurement
from cocod_jax.observe.loggers import Logbook
from experiments import command, logbook, progress
from experiments.cluster.network import Network, free_port, links_of
from experiments.cluster.processes import machine, run_workers
from experiments.config import RunConfig, parse
from experiments.processes import rendezvous
from experiments.slow_links import report
from experiments.slow_links.config import SlowLinksConfig
from experiments.sweep import finished, options

HOURS = 6
"""How long the processes of a run have."""


def main(config: SlowLinksConfig, train_arguments: list[str]) -> None:
    """Measures, trains what has not been trained, and leaves a table and a figure."""
    job = job_of(config, train_arguments)
    path = config.out / "slow_links.jsonl"
    with (
        progress.report() as show,
        logbook.opened(path, config, machine=machine()) as log,
    ):
        measured = measure(config, job, log, show)
        for seed in config.seeds:
            own = dataclasses.replace(job, seed=seed)
            for run, rate in plan(config, own, measured):
                if not finished(run):
                    show.line(f"{run.log.stem} on {links_of(rate)}")
                    train(run, Network(config.workers, rate), show)
                log.write("trained", rate=rate, log=run.log.name)
    text = report.table(path)
    (config.out / "table.md").write_text(text)
    report.draw(path, config.out / "loss.png")
    print(text)


def job_of(config: SlowLinksConfig, train_arguments: list[str]) -> RunConfig:
    """What is trained, by two processes or more that exchange beside their steps."""
    own = ["--workers", str(config.workers), "--execution", "split"]
    return parse([*train_arguments, *own, "--out", str(config.out)])


def plan(
    config: SlowLinksConfig, job: RunConfig, measured: dict[str, Measurement]
) -> list[tuple[RunConfig, str]]:
    """The runs of a seed, and the links that each has."""
    runs = [(dataclasses.replace(job, algorithm="ssgd"), config.fast)]
    for numbers in config.numbers:
        own = dataclasses.replace(
            job,
            algorithm="streamed",
            epochs=type(job.epochs)(config.longer * job.epochs),
            numbers=None if numbers == "float32" else numbers,
            period=cj.advise(measured[numbers]).period,
        )
        runs.append((own, config.slow))
    return runs


def measure(
    config: SlowLinksConfig, job: RunConfig, log: Logbook, show: progress.Reporter
) -> dict[str, Measurement]:
    """A step and an exchange on the slow links, by what travels; logged."""
    run = dataclasses.replace(job, algorithm="streamed")
    words = f"timing a step and an exchange on {links_of(config.slow)}"
    records = start(
        ["experiments.slow_links.measure", *options(run)],
        Network(config.workers, config.slow),
        lambda **_: show.now(words),
    )
    found = {}
    for record in records:
        if (numbers := record.get("numbers")) is not None:
            fields = {name: record[name] for name in Measurement._fields}
            found[numbers] = Measurement(**fields)
            chosen = cj.advise(found[numbers]).period
            log.write("measured", rate=config.slow, chosen=chosen, **record)
            show.line(f"{numbers}: {found[numbers]}")
    return found


def train(run: RunConfig, network: Network, show: progress.Reporter) -> None:
    """One run of the main job, all of its processes."""
    words = f"training on {links_of(network.rate or 'none')}"
    start(["experiments.train", *options(run)], network, lambda **_: show.now(words))


def start(words: list[str], network: Network, show: Any) -> list[dict[str, Any]]:
    """Runs a module in a process for each worker; what they print as JSON."""
    with network:
        meeting = f"{rendezvous.ADDRESS}={network.address(0)}:{free_port()}"
        number = f"{rendezvous.NUMBER}={network.workers}"
        return run_workers(
            network,
            lambda i: [
                *("env", meeting, number, f"{rendezvous.INDEX}={i}"),
                *(sys.executable, "-m", *words),
            ],
            timeout=3600 * HOURS,
            show=show,
        )


if __name__ == "__main__":
    own, of_runs = command.divided(sys.argv[1:])
    command.run(lambda config: main(config, of_runs), SlowLinksConfig, __doc__, own)
