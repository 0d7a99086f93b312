"""All rules and exchanges, each with the loop that it must follow."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from tests import contract, merges, problems, reference
from tests.marks import seldom
from tests.problems import PERIOD, WEIGHTS, N

RATE = 0.05
NESTEROV = {"learning_rate": 0.7, "momentum": 0.9}
METHODS = (
    "int8",
    "finite",
    "gossip",
    "diloco",
    "diloco_mixed",
    "vrl_sgd",
    "vrl_sgd_delayed",
    "easgd",
    "overlap_local_sgd",
    "overwriting",
    "slowmo",
    "slowmo_scheduled",
    "bmuf",
    "eager_diloco",
    "co2",
    "delay_compensated",
    "loscar",
    "sparse_loco",
)
# Those whose exchange is no mean: every test run has them in all ways.
EXCHANGES = ("int8", "finite", "gossip", "sparse_loco")
STREAMED = [name for name in METHODS if name != "loscar"]


def by_way(names: Iterable[str], ways: Iterable[str]) -> list[Any]:
    """(name, way); with a mean, some ways are left to ``pytest -m matrix``."""
    rare = ("elsewhere", "shard_map fused")
    return seldom(
        itertools.product(names, ways),
        but=[
            (name, way)
            for name, way in itertools.product(names, ways)
            if way not in rare or name in EXCHANGES
        ],
    )


def made(name, x0=None):
    """The rule, and its loop: how the reference averages, merges and corrects."""
    mean = cj.mean("workers")
    x0 = problems.params(np.float64) if x0 is None else x0
    merge = lambda i, m, x, s: reference.merged(m, x, s)
    loop: dict[str, Any] = {"average": reference.weighted_mean, "merge": merge}
    match name:
        case "overwriting":
            rule = contract.overwriting(mean)
            loop["merge"] = lambda i, m, x, s: m
        case "int8":
            # All in one block: a streamed piece fills others in another way.
            rule = cj.cocod(cj.exchanges.narrow("workers", "int8", block=16))
            loop["average"] = merges.NarrowMean(x0, N, 127, 16)
        case "finite":
            rule = cj.cocod(cj.exchanges.finite("workers"))
            loop["average"] = merges.finite_mean
        case "gossip":
            rule = cj.cocod(cj.exchanges.gossip("workers", "ring"))
            loop["average"] = merges.ring
            loop["merge"] = lambda i, m, x, s: reference.merged(m[i], x, s)
        case "diloco":
            rule = cj.rules.diloco(mean, optax.sgd(**NESTEROV, nesterov=True))
            anchor = merges.NesterovAnchor(x0, **NESTEROV)
            loop["merge"] = lambda i, m, x, s: reference.merged(
                anchor.moved(m, N), x, s
            )
        case "diloco_mixed":
            rule = cj.rules.diloco(mean, optax.sgd(0.7), alpha=0.25)
            anchor = merges.NesterovAnchor(x0, 0.7, 0.0)
            loop["merge"] = lambda i, m, x, s: reference.tree_map(
                lambda x, z: 0.25 * x + 0.75 * z, x, anchor.moved(m, N)
            )
        case "easgd":
            rule = cj.rules.easgd(mean)
            loop["merge"] = merges.Elastic(x0, N, 0.9).merge
        case "overlap_local_sgd":
            rule = cj.rules.overlap_local_sgd(mean)
            loop["merge"] = merges.PulledToAnchor(x0, N, 0.6, 0.7).merge
        case "vrl_sgd":
            rule = cj.rules.vrl_sgd(mean, learning_rate=RATE, period=PERIOD)
            drifts = merges.Drifts(x0, N, RATE, PERIOD)
            loop |= {"merge": drifts.merge, "correct": drifts.correct}
        case "vrl_sgd_delayed":
            rule = cj.rules.vrl_sgd(
                mean, learning_rate=RATE, period=PERIOD, delay=PERIOD
            )
            drifts = merges.Drifts(x0, N, RATE, 2 * PERIOD)
            loop |= {"merge": drifts.merge, "correct": drifts.correct}
        case "slowmo":
            rule = cj.rules.slowmo(mean, beta=0.4, alpha=0.8)
            slow = merges.SlowMomentum(x0, N, 0.4, 0.8, lambda r: RATE)
            loop["merge"] = slow.merge
        case "slowmo_scheduled":
            falling = lambda r: 0.5 / (1 + jnp.asarray(r, float))
            rule = cj.rules.slowmo(mean, learning_rate=falling)
            rate = lambda r: 0.5 / (1 + r)
            loop["merge"] = merges.SlowMomentum(x0, N, 0.5, 1.0, rate).merge
        case "bmuf":
            rule = cj.rules.slowmo(mean, beta=1 - 1 / N)
            loop["merge"] = merges.BlockMomentum(x0, N, 1 - 1 / N, 1.0).merge
        case "eager_diloco":
            rule = cj.rules.eager_diloco(mean)
            eager = merges.Eager(x0, N, **NESTEROV)
            loop |= {"average": eager.average, "merge": eager.merge}
        case "co2":
            # The clip takes effect: steps are larger than it.
            rule = cj.rules.co2(mean, beta=0.6, alpha=0.9, penalty=1.5, clip=0.01)
            stale = merges.StaleOuterMomentum(x0, N, 0.6, 0.9, 1.5, 0.01)
            loop |= {"average": stale.average, "merge": stale.merge}
        case "delay_compensated":
            rule = cj.rules.delay_compensated(mean)
            anchor = merges.NesterovAnchor(x0, **NESTEROV)
            loop["merge"] = lambda i, m, x, s: merges.delay_compensated(
                anchor.moved(m, N), x, s, 0.2
            )
        case "loscar":
            rule = cj.rules.loscar(mean, 0.25)
            loop["merge"] = merges.SparseAverage(lambda r: mask(rule, x0, r), N).merge
        case "sparse_loco":
            own = {"k": 3, "chunk": 16, "decay": 0.95}
            exchange = cj.exchanges.top_k("workers", **own)
            rule = cj.rules.sparse_loco(exchange, optax.sgd(0.8))
            sent = merges.Differences(x0, N, 0.8, merges.TopK(N, **own))
            loop |= {"average": sent.average, "merge": sent.merge}
        case _:
            raise ValueError(name)
    return rule, loop


def mask(rule, x0, r):
    """Which coordinates the rule sends in round r: it is given their places."""
    leaves, treedef = jax.tree.flatten(x0)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    places = np.split(np.arange(float(ends[-1])), ends[:-1])
    sent = jax.tree.leaves(rule.outgoing(np.int32(r), places))
    parts = zip(places, leaves, strict=True)
    return treedef.unflatten(
        [np.isin(place, sent).reshape(np.shape(leaf)) for place, leaf in parts]
    )


# Everything that exchanges, one row for each public rule and exchange.
EXCHANGING = {
    "cocod": cj.cocod("workers"),
    "cocod_weighted": cj.cocod("workers", WEIGHTS),
    "mean": cj.cocod(cj.mean("workers")),
    "narrow": cj.cocod(cj.exchanges.narrow("workers", "int4")),
    "top_k": cj.cocod(cj.exchanges.top_k("workers", k=8, chunk=8)),  # all of it
} | {name: made(name)[0] for name in METHODS}
