"""A step and an exchange of the main job, timed in every process that trains it.

Takes the command line of ``experiments.train``. Process 0 prints what it found for each
kind of numbers, as a line of JSON.
"""

import dataclasses
import json
import sys
from typing import get_args

import jax

import cocod_jax as cj
from experiments import train
from experiments.command import run
from experiments.config import RunConfig, config_type
from experiments.slow_links.config import Numbers

REPEATS = 3
"""How often each is timed."""


def main(config: RunConfig) -> None:
    """Times the exchange in all numbers."""
    layout = train.layout_of(config)
    for numbers in get_args(Numbers):
        sent = None if numbers == "float32" else numbers
        job = train.prepare(dataclasses.replace(config, numbers=sent), layout)
        key = jax.random.key(config.seed)
        state = layout.initial_state(job.main, job.task.init, key)
        (batches,) = job.data.rounds(
            first_step=0, period=config.period, count=1, workers=layout.own_workers
        )
        found = cj.measure(
            job.main,
            state,
            batches,
            repeats=REPEATS,
            devices=layout.devices,
            exchange_devices=layout.exchange_devices,
        )
        if jax.process_index() == 0:
            print(json.dumps({"numbers": numbers, **found._asdict()}), flush=True)


if __name__ == "__main__":
    run(main, config_type(sys.argv[1:]), __doc__)
