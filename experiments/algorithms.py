"""The algorithms of the paper as rounds, and the optimizer of their local steps."""

import jax
import optax

import cocod_jax as cj
from experiments.config import TrainConfig

AXIS = "workers"


def local_optimizer(
    config: TrainConfig, workers: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Momentum SGD with weight decay and a learning rate for ``workers`` workers.

    The rate is scaled linearly with the total batch and warmed up from one worker's
    rate (Goyal et al., 2017).
    """
    total_batch = sum(config.micro_batches or [1] * workers) * config.batch_size
    peak = config.learning_rate * total_batch / 256
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(peak, total - warmup)
    else:
        drops = {round(share * total) - warmup: 0.1 for share in (0.5, 0.75)}
        decay = optax.piecewise_constant_schedule(peak, drops)
    schedule = optax.join_schedules(
        [optax.linear_schedule(peak / workers, peak, warmup), decay], [warmup]
    )
    is_kernel = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    )


def make_rounds(
    config: TrainConfig, loss_fn, optimizer: optax.GradientTransformation
) -> tuple[cj.Round, cj.Round]:
    """The round of the warm-up, of one synchronous step, and the round after it."""
    exchange = cj.mean(AXIS, weights=config.micro_batches)
    rule, delay = cj.cocod(exchange), config.delay
    match config.algorithm:
        case "local_sgd":
            delay = 0
        case "ssgd":
            rule, delay = cj.independent(), 0
            optimizer = optax.chain(cj.mean_gradients(exchange), optimizer)
        case "pipe_sgd":
            rule, delay = cj.independent(), 0
            stale = cj.stale_mean_gradients(exchange, warmup_steps=config.warmup_rounds)
            optimizer = optax.chain(stale, optimizer)
    warm, main = (
        cj.make_round(loss_fn, optimizer, rule, period=k, delay=d, stateful=True)
        for k, d in ((1, 0), (config.period, delay))
    )
    return warm, main
