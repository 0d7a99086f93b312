"""Every algorithm of the library, as this study trains it: one row each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import cocod_jax as cj
from cocod_jax import timeline
from experiments.algorithms import AXIS


def momentum(rate: float) -> optax.GradientTransformation:
    """The local optimizer of all that do not ask for another."""
    return optax.sgd(rate, momentum=0.9)


class Method(NamedTuple):
    """An algorithm.

    Attributes:
      title: its name for people.
      rule: ``(rate, period) -> rule``; None where gradients travel.
      gradients: ``(inner) -> optimizer`` that exchanges gradients; None where a rule
        says what travels.
      delay: d, in local steps; None is the period.
      streamed: whether a piece travels in every step.
      inner: ``rate -> optimizer`` of the local steps.
      moments: rounds in which the momentum is averaged once; None leaves it alone.
      hops: ``(N) -> times`` that a byte which a worker puts into an exchange passes a
        link, on a ring of N.
      clock: ``(period) -> algorithm`` on the clock.
    """

    title: str
    rule: Callable[[float, int], cj.MergeRule] | None = None
    gradients: Callable[[Any], optax.GradientTransformation] | None = None
    delay: int | None = None
    streamed: bool = False
    inner: Callable[[float], optax.GradientTransformation] = momentum
    moments: int | None = None
    hops: Callable[[int], float] = lambda workers: 2 * (workers - 1) / workers
    clock: Callable[[int], timeline.Algorithm] = timeline.CoCoDSGD


def _by(rule: Callable[..., cj.MergeRule], *args: Any, **options: Any) -> Any:
    """A rule that does not ask for the rate."""
    return lambda rate, period: rule(AXIS, *args, **options)


def _over(exchange: Callable[..., cj.Exchange], *args: Any, **options: Any) -> Any:
    """CoCoD-SGD over another exchange."""
    return lambda rate, period: cj.cocod(exchange(AXIS, *args, **options))


def _in_halves(workers: int) -> float:
    """An all-to-all of all blocks, and an all-gather of an N-th of them."""
    return 2 * (workers - 1) / (workers + 1)


METHODS = {
    "ssgd": Method(
        "S-SGD",
        gradients=lambda inner: optax.chain(cj.mean_gradients(AXIS), inner),
        clock=lambda period: timeline.SSGD(),
    ),
    "pipe_sgd": Method(
        "Pipe-SGD",
        gradients=lambda inner: optax.chain(cj.stale_mean_gradients(AXIS), inner),
        clock=lambda period: timeline.PipeSGD(),
    ),
    "acco": Method(
        "ACCO",
        gradients=lambda inner: cj.per_step.acco(inner, AXIS),
        clock=lambda period: timeline.PipeSGD(),
    ),
    "local_sgd": Method("Local SGD", _by(cj.cocod), delay=0, clock=timeline.LocalSGD),
    "cocod": Method("CoCoD-SGD", _by(cj.cocod)),
    "streamed": Method(
        "CoCoD-SGD, streamed", _by(cj.cocod), streamed=True, clock=timeline.Streamed
    ),
    "moments": Method(
        "CoCoD-SGD, streamed, momentum averaged (DES-LOC)",
        _by(cj.cocod),
        streamed=True,
        moments=3,
        clock=timeline.Streamed,
    ),
    "easgd": Method("EASGD", _by(cj.rules.easgd)),
    "overlap_local_sgd": Method("Overlap Local SGD", _by(cj.rules.overlap_local_sgd)),
    "slowmo": Method("SlowMo", _by(cj.rules.slowmo)),
    "diloco": Method("DiLoCo", _by(cj.rules.diloco)),
    "diloco_slower": Method(
        "DiLoCo, outer momentum 0.5",
        _by(cj.rules.diloco, optax.sgd(0.7, momentum=0.5, nesterov=True)),
    ),
    "eager_diloco": Method("eager DiLoCo", _by(cj.rules.eager_diloco)),
    "eager_diloco_slower": Method(
        "eager DiLoCo, outer SGD 0.5", _by(cj.rules.eager_diloco, optax.sgd(0.5))
    ),
    "co2": Method("CO2", _by(cj.rules.co2)),
    "co2_slower": Method("CO2, outer SGD 0.5", _by(cj.rules.co2, beta=0.0, alpha=0.5)),
    "delay_compensated": Method("CoCoDC", _by(cj.rules.delay_compensated)),
    "vrl_sgd": Method(
        "VRL-SGD",
        lambda rate, period: cj.rules.vrl_sgd(
            AXIS, learning_rate=rate, period=period, delay=period
        ),
        inner=optax.sgd,  # it knows no momentum
    ),
    "loscar": Method("LOSCAR-SGD, a quarter", _by(cj.rules.loscar, 0.25)),
    "int8": Method(
        "CoCoD-SGD, 8 bits",
        _over(cj.exchanges.narrow, "int8", block=64),
        hops=_in_halves,
    ),
    "int4": Method(
        "CoCoD-SGD, 4 bits",
        _over(cj.exchanges.narrow, "int4", block=64),
        hops=_in_halves,
    ),
    "gossip": Method(
        "CoCoD-SGD on a ring", _over(cj.exchanges.gossip, "ring"), hops=lambda _: 1
    ),
    "sparse_loco": Method(
        "SparseLoCo, 64 of 1024",
        lambda rate, period: cj.rules.sparse_loco(
            cj.exchanges.top_k(AXIS, k=64, chunk=1024)
        ),
        hops=lambda workers: workers - 1,
    ),
}
"""By name, in the order of the table."""
