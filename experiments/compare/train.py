"""One algorithm of the family on the small problem, and what it sends."""

from typing import Any

import jax
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax.certify import certify, compiler_available
from cocod_jax.observe.loggers import Logbook
from experiments.algorithms import AXIS
from experiments.compare.config import CompareRun
from experiments.compare.methods import METHODS, Method
from experiments.iterations.trainer import trainer
from experiments.streaming import mlp


def inner_of(method: Method, rate: float, period: int) -> optax.GradientTransformation:
    """The optimizer of the local steps."""
    inner = method.inner(rate)
    if method.moments is None:
        return inner
    seldom = method.moments * period
    return cj.per_step.averaged_moments(inner, AXIS, trace=seldom)


def optimizer(method: Method, rate: float, period: int) -> optax.GradientTransformation:
    """The algorithm as an optimizer for every step of one worker."""
    inner = inner_of(method, rate, period)
    if method.rule is None:
        assert method.gradients is not None
        return method.gradients(inner)
    rule = method.rule(rate, period)
    return cj.every(period, inner, rule, method.delay, streamed=method.streamed)


def rounds(method: Method, rate: float, period: int) -> cj.Round:
    """The same algorithm round by round."""
    assert method.rule is not None
    return cj.make_round(
        mlp.batch_loss,
        inner_of(method, rate, period),
        method.rule(rate, period),
        period=period,
        delay=method.delay,
        streamed=method.streamed,
    )


def sent_bytes(method: Method, run: CompareRun) -> float:
    """What a worker puts into exchanges for each local step."""
    params = mlp.params_of(run.seeds[0], run.hidden)
    whole = float(sum(leaf.nbytes for leaf in params.values()))
    if method.rule is None:
        return whole
    round_ = rounds(method, run.rates[0], run.period)
    state = jax.eval_shape(lambda: cj.replicate(round_.init(params), run.workers))
    sent = sum(cj.summary(round_, state).sent_bytes.values())
    moments = 0 if method.moments is None else whole / (method.moments * run.period)
    return sent / (1 if method.streamed else run.period) + moments


def hidden(method: Method, run: CompareRun) -> str:
    """Whether the compiler for H100 hides the exchange, or why it does not."""
    if not compiler_available():
        return "not certified"
    params = mlp.params_of(run.seeds[0], run.hidden)
    if method.rule is None:
        fn, *shapes = _step(method, run, params)
    else:
        round_ = rounds(method, run.rates[0], run.period)
        first = lambda: cj.replicate(round_.init(params), run.workers)
        shape = run.workers, run.period, run.batch_size
        chosen = jax.ShapeDtypeStruct(shape, np.int32)
        fn, shapes = round_, [jax.eval_shape(first), chosen]
    certificate = certify(
        fn,
        *shapes,
        target="h100",
        devices=run.workers,
        compiler_options=cj.compiler_options("gpu"),
    )
    if certificate.verdict.startswith("exposed"):
        return "no"
    return "yes" if certificate.hidden else "in part"


def _step(method: Method, run: CompareRun, params: Any) -> tuple[Any, ...]:
    """A local step of one worker that exchanges gradients, and its shapes of all."""
    own = optimizer(method, run.rates[0], run.period)

    def step(params: Any, state: Any, chosen: jax.Array) -> Any:
        gradient = jax.grad(mlp.batch_loss)(params, chosen)
        updates, state = own.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    chosen = np.zeros(run.batch_size, np.int32)
    shape = lambda x: jax.ShapeDtypeStruct((run.workers, *x.shape), x.dtype)
    state = jax.eval_shape(own.init, params)
    return step, *jax.tree.map(shape, (params, state, chosen))


def train(run: CompareRun, log: Logbook) -> None:
    """Every split, rate and seed; a record for each split and rate."""
    method = METHODS[run.algorithm]
    params, chosen = mlp.initial(run), mlp.batches(run)
    log.write("sent", bytes_per_step=sent_bytes(method, run))
    log.write("certificate", hidden=hidden(method, run))
    for rate in run.rates:
        # A rule may need the rate as a number: each is a program of its own.
        each = trainer(
            lambda _, rate=rate: optimizer(method, rate, run.period),
            mlp.batch_loss,
            mlp.training_loss_and_drift,
        )
        state = each.init(params)
        (trained, _), (losses, _) = each.advance(params, state, rate, chosen)
        for _, result in mlp.results(run, trained, losses):
            log.write("result", rate=rate, **result)
