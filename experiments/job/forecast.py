"""What a run will send, and how fast it ought to be: known before it begins."""

import dataclasses

import jax
import optax

import cocod_jax as cj
from cocod_jax.timeline import Compute, simulate
from experiments.algorithms import RECIPES, exchange_of, make_rounds
from experiments.command import UsageError
from experiments.config import RunConfig
from experiments.job.layout import Layout
from experiments.tasks import Data, Task

REPEATS = 5


def sent_bytes(config: RunConfig, round_: cj.Round, state: cj.RoundState) -> int:
    """What a worker puts into exchanges in a round, by its rule or of gradients."""
    if RECIPES[config.algorithm].gradients is None:
        exchanges = round_.period if round_.streamed else 1
        return exchanges * _of_all_devices(cj.summary(round_, state))
    # Gradients travel as the parameters of another rule would, in every step.
    exchange = exchange_of(config)
    rule, plain = cj.cocod(exchange), optax.identity()
    step = cj.make_round(lambda params, batch: batch, plain, rule, period=1)
    own = jax.eval_shape(jax.vmap(exchange.init), state.params)
    found = cj.summary(step, state._replace(exchange_state=own))
    return round_.period * _of_all_devices(found)


def _of_all_devices(found: cj.observe.Summary) -> int:
    """The bytes of an exchange that a worker sends, of which a device sends a share."""
    return found.devices * sum(found.sent_bytes.values())


def forecast(config: RunConfig, layout: Layout, task: Task, data: Data) -> dict:
    """What ``cj.advise`` makes of a step and an exchange, measured here and now.

    Compiling what is measured takes about as long as compiling the run does.

    Returns:
      The record "forecast" of a log.

    Raises:
      UsageError: when there is a single worker.
    """
    if layout.workers == 1:
        raise UsageError("forecast: a single worker has nothing to exchange.")
    # Its exchange is that of all parameters, as large as one of gradients.
    whole = dataclasses.replace(config, algorithm="local_sgd")
    optimizer = task.optimizer(layout.workers, data.steps_per_epoch)
    _, round_ = make_rounds(whole, task.loss_fn, optimizer)
    state = layout.initial_state(round_, task.init, jax.random.key(config.seed))
    (batches,) = data.rounds(
        first_step=0, period=round_.period, count=1, workers=layout.own_workers
    )
    times = cj.measure(
        round_,
        state,
        batches,
        repeats=REPEATS,
        via=config.via,
        devices=layout.devices,
        exchange_devices=layout.exchange_devices,
    )
    advice = cj.advise(times, period=config.period)
    recipe = RECIPES[config.algorithm]
    delay = config.period if config.delay is None else config.delay
    timeline = simulate(
        recipe.clock(config.period, delay),
        Compute(times.tc, 1),
        times.tm,
        latency=times.latency,
        steps=config.period,
    )
    return {
        "seconds_per_step": timeline.seconds_per_step,
        "measured": times._asdict(),
        "advice": list(advice.sentences),
    }
