"""The algorithms, made of the library's parts: one row each, for every study.

A new algorithm is a row here, its name and colour in ``cocod_jax.style.ALGORITHMS``,
and, to train with it, a choice in :mod:`experiments.config`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import cocod_jax as cj
from cocod_jax import timeline
from experiments.config import Measured, RunConfig, TextConfig, TrainConfig

AXIS = "workers"


class Recipe(NamedTuple):
    """How an algorithm is made.

    Attributes:
      clock: ``(period, delay) -> algorithm`` on the clock of ``cocod_jax.timeline``.
      rule: ``(exchange) -> rule`` of its rounds; by default they exchange nothing.
      gradients: ``(exchange, warmup_steps) -> transform`` before the local optimizer,
        of algorithms that exchange gradients; None for the others.
      delay: d, if the algorithm fixes it; None takes the configuration's.
      streamed: whether it exchanges a piece in every step; the exchange then tells d.
    """

    clock: Callable[[int, int], timeline.Algorithm]
    rule: Callable[[cj.Exchange], cj.MergeRule] = lambda exchange: cj.independent(
        exchange.weights
    )
    gradients: Callable[[cj.Exchange, int], optax.GradientTransformation] | None = None
    delay: int | None = None
    streamed: bool = False


RECIPES: dict[Measured, Recipe] = {
    "ssgd": Recipe(
        clock=lambda period, delay: timeline.SSGD(),
        gradients=lambda exchange, warmup_steps: cj.mean_gradients(exchange),
        delay=0,
    ),
    "pipe_sgd": Recipe(
        clock=lambda period, delay: timeline.PipeSGD(),
        gradients=lambda exchange, warmup_steps: cj.stale_mean_gradients(
            exchange, warmup_steps=warmup_steps
        ),
        delay=0,
    ),
    "local_sgd": Recipe(
        clock=lambda period, delay: timeline.LocalSGD(period), rule=cj.cocod, delay=0
    ),
    "cocod": Recipe(
        clock=lambda period, delay: timeline.CoCoDSGD(period), rule=cj.cocod
    ),
    # CoCoD-SGD with a delay that the caller chooses.
    "just_in_time": Recipe(clock=timeline.CoCoDSGD, rule=cj.cocod),
    "streamed": Recipe(
        clock=lambda period, delay: timeline.Streamed(period),
        rule=cj.cocod,
        streamed=True,
    ),
}


def local_optimizer(
    config: TrainConfig, workers: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """SGD or AdamW with weight decay and a learning rate for ``workers`` workers.

    The rate is scaled linearly with the total batch and warmed up from one worker's
    rate (Goyal et al., 2017).
    """
    total_batch = sum(config.micro_batches or [1] * workers) * config.batch_size
    peak = config.learning_rate * total_batch / 256
    total = total_steps(config, steps_per_epoch)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(peak, total - warmup)
    else:
        drops = {round(share * total) - warmup: 0.1 for share in (0.5, 0.75)}
        decay = optax.piecewise_constant_schedule(peak, drops)
    schedule = optax.join_schedules(
        [optax.linear_schedule(peak / workers, peak, warmup), decay], [warmup]
    )
    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_matrix)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    )


def clipped_adamw(
    config: TextConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """AdamW for a transformer, its gradients clipped to a norm of 1.

    The rate grows linearly, and falls to a tenth of its peak as a cosine.
    """
    total, peak = total_steps(config, steps_per_epoch), config.learning_rate
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        peak / (warmup + 1), peak, warmup, total, end_value=peak / 10
    )
    adamw = optax.adamw(
        schedule, b2=0.99, weight_decay=config.weight_decay, mask=is_matrix
    )
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Local steps of a run, but for those that make its last round whole."""
    return max(1, round(config.epochs * steps_per_epoch))


def is_matrix(params: Any) -> Any:
    """Which parameters decay: no biases, and no scales of a norm."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def exchange_of(config: RunConfig) -> cj.Exchange:
    """The mean of all workers, in the numbers that are to travel."""
    weights = config.micro_batches
    if config.numbers is None:
        return cj.mean(AXIS, weights=weights)
    return cj.exchanges.narrow(AXIS, config.numbers, weights=weights)


def make_rounds(
    config: RunConfig, loss_fn, optimizer: optax.GradientTransformation
) -> tuple[cj.Round, cj.Round]:
    """The warm-up's round, of one synchronous step, and the round that follows."""
    recipe = RECIPES[config.algorithm]
    exchange = exchange_of(config)
    rule = recipe.rule(exchange)
    if recipe.gradients is not None:
        gradients = recipe.gradients(exchange, config.warmup_rounds)
        optimizer = optax.chain(gradients, optimizer)
    is_free = recipe.delay is None and not recipe.streamed
    delay = config.delay if is_free else recipe.delay
    make = functools.partial(cj.make_round, loss_fn, optimizer, rule, stateful=True)
    main = make(period=config.period, delay=delay, streamed=recipe.streamed)
    return make(period=1, delay=0), main


def per_step(
    name: Measured,
    inner: optax.GradientTransformation,
    period: int,
    delay: int | None = None,
) -> optax.GradientTransformation:
    """An algorithm as one optimizer for every step, on workers of equal weight."""
    recipe, exchange = RECIPES[name], cj.mean(AXIS)
    if recipe.gradients is not None:
        return optax.chain(recipe.gradients(exchange, 0), inner)
    delay = delay if recipe.delay is None else recipe.delay
    rule = recipe.rule(exchange)
    return cj.every(period, inner, rule, delay, streamed=recipe.streamed)
