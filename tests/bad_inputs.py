"""Bad inputs in one table: what is called, and the words that the error must have.

The words are the argument, leaf or file, what came, and what would do.
"""

import math
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax import certify, testing, theory, timeline
from cocod_jax._text import shown
from cocod_jax.observe import page

WORKERS = "workers"
SGD = optax.sgd(0.1)
MEAN, RULE = cj.mean(WORKERS), cj.cocod(WORKERS)


def loss(w, batch):
    return 0.5 * jnp.sum((w - batch) ** 2)


def a_round(rule=RULE, loss_fn=loss, inner=SGD, **options: Any):
    given: dict[str, Any] = {"period": 2} | options
    return cj.make_round(loss_fn, inner, rule, **given)


def a_state(round_=None, params=1.0):
    return cj.replicate((round_ or ROUND).init(params), 2)


ROUND = a_round()
STATE = a_state()
BATCHES = np.zeros([2, 2], np.float32)
METRICS = cj.RoundMetrics(*np.ones([2, 2, 2]), *np.ones([3, 2]))
DEVICES = jax.devices()[:2]
NAMED = {"axis_name": WORKERS}
AVERAGED = {"axis_or_exchange": WORKERS}
PROBLEM = {"smoothness": 1.0, "noise": 1.0, "gap": 1.0, "workers": 2, "batch": 2}
BOUND = {"problem": theory.Problem(**PROBLEM), "learning_rate": 0.1, "period": 2}
AT_PERIOD = {"problem": theory.Problem(**PROBLEM), "period": 2}
BY_STEPS = {"problem": theory.Problem(**PROBLEM), "steps": 4}
COMPUTE = timeline.Compute(0.1, workers=2)
CLOCK = {"algorithm": timeline.LocalSGD(2), "compute": COMPUTE, "steps": 4}
TIMES = {"step_seconds": 0.1, "exchange_seconds": 0.2, "workers": 2}

WEIGHTS = {"weights": [("ab", "sequence"), ((1, "b"), "finite"), ((1, -1), "finite")]}
RATES = [
    ("fast", "number"),
    (math.nan, "finite"),
    (math.inf, "finite"),
    (True, "finite"),
]
COUNTS = [(0, "at least 1"), (1.5, "integer"), (True, "integer"), ("3", "integer")]
SHARES = [(-0.1, "0..1"), (math.nan, "0..1"), ("half", "0..1"), (True, "0..1")]
WHOLE = [(-1, "0 or more"), (1.5, "integer"), (None, "integer")]
FLAG = [("no", "True or False")]
STATES = [(None, "RoundState"), ((1, 2), "cj.replicate")]
ROUNDS = [(None, "make_round")]
PATHS = [(3, "path"), (None, "path")]
AXES = [(3, "string"), ((), "string")]
EXCHANGES = [(3, "Exchange"), (None, "Exchange")]
OPTIMIZERS = [(None, "optax"), (RULE, "optax")]
ON_DEVICES = [("cpu", "sequence"), ([], "empty"), ([0], "jax.devices()")]
ON_DEVICES += [([DEVICES[0]] * 2, "twice")]
LOSS_FUNCTIONS = [(None, "function"), (lambda w: w, "(params, batch)")]

# A function, arguments that are good, and for some of them values that are not.
VALUES: list[tuple[str, Callable, dict[str, Any], dict[str, list[Any]]]] = [
    ("advise", cj.advise, TIMES, {"step_seconds": RATES, "workers": COUNTS}),
    ("advise", cj.advise, TIMES, {"latency": [([], "number")], "jitter": RATES}),
    ("mean", cj.mean, NAMED, {"axis_name": AXES} | WEIGHTS),
    ("compiler_options", cj.compiler_options, {}, {"device": [(3, "'gpu'")]}),
    (
        *("distribute", cj.distribute, {"round_": ROUND}),
        {"round_": ROUNDS, "devices": ON_DEVICES, "exchange_devices": ON_DEVICES}
        | {"via": [("xmap", "pmap")], "execution": [(1, "fused")], "check_vma": FLAG}
        | {"axis_name": [(3, "string"), ("rows", "workers")], "mesh": [(1, "Mesh")]},
    ),
    (
        *("measure", cj.measure),
        {"round_": ROUND, "state": STATE, "batches": BATCHES},
        {"round_": ROUNDS, "state": STATES, "repeats": COUNTS},
    ),
    ("summary", cj.summary, {"round_": ROUND, "state": STATE}, {"state": STATES}),
    (
        *("every", cj.every, {"period": 2, "inner": SGD, "rule": RULE}),
        {"period": COUNTS, "delay": [(3, "0..period=2"), (-1, "0 or more")]}
        | {"inner": OPTIMIZERS, "rule": [(SGD, "MergeRule")], "streamed": FLAG},
    ),
    ("mean_gradients", cj.mean_gradients, AVERAGED, {"axis_or_exchange": EXCHANGES}),
    (
        *("stale_mean_gradients", cj.stale_mean_gradients, AVERAGED),
        {"axis_or_exchange": EXCHANGES, "warmup_steps": WHOLE} | WEIGHTS,
    ),
    (
        *("make_round", cj.make_round),
        {"loss_fn": loss, "inner": SGD, "rule": RULE, "period": 2},
        {"loss_fn": LOSS_FUNCTIONS, "inner": OPTIMIZERS, "rule": [(SGD, "MergeRule")]}
        | {"period": COUNTS, "delay": [(3, "0..period=2")], "streamed": FLAG}
        | {"stateful": FLAG, "has_aux": FLAG},
    ),
    ("cocod", cj.cocod, AVERAGED, {"axis_or_exchange": EXCHANGES} | WEIGHTS),
    ("independent", cj.independent, {}, WEIGHTS),
    ("consensus", cj.consensus, {"state": STATE}, {"state": STATES}),
    ("consensus", cj.consensus, {"state": STATE}, {"device": [(0, "local_devices")]}),
    ("consensus_model_state", cj.consensus_model_state, {}, {"state": STATES}),
    (
        *("place", cj.place, {"tree": jnp.ones(2), "devices": DEVICES}),
        {"devices": ON_DEVICES, "axis_name": AXES},
    ),
    (
        *("replicate", cj.replicate, {"tree": jnp.ones(2), "workers": 2}),
        {"tree": [("word", "array")], "workers": COUNTS, "devices": ON_DEVICES}
        | {"axis_name": AXES, "mesh": [(1, "Mesh")]},
    ),
    ("reweight", cj.reweight, {"state": STATE, "weights": (1, 1)}, {"state": STATES}),
    ("reweight", cj.reweight, {"state": STATE}, WEIGHTS),
    ("exchanges.finite", cj.exchanges.finite, NAMED, {"axis_name": AXES} | WEIGHTS),
    (
        *("exchanges.gossip", cj.exchanges.gossip, NAMED | {"graph": "ring"}),
        {"graph": [("star", "ring"), ([[1, 2]], "square"), (None, "square")]},
    ),
    (
        *("exchanges.narrow", cj.exchanges.narrow, NAMED | {"numbers": "int8"}),
        {"numbers": [("int3", "int4"), ([8], "int8")], "block": COUNTS} | WEIGHTS,
    ),
    ("exchanges.nothing", cj.exchanges.nothing, {}, WEIGHTS),
    (
        *("exchanges.top_k", cj.exchanges.top_k, NAMED),
        {"k": COUNTS, "chunk": COUNTS, "decay": SHARES} | WEIGHTS,
    ),
    ("exchanges.within", cj.exchanges.within, NAMED | {"size": 2}, {"size": COUNTS}),
    (
        *("rules.co2", cj.rules.co2, AVERAGED),
        {"beta": SHARES, "alpha": RATES, "penalty": RATES, "clip": RATES},
    ),
    ("rules.diloco", cj.rules.diloco, AVERAGED, {"outer": [(1, "optax")]}),
    ("rules.diloco", cj.rules.diloco, AVERAGED, {"alpha": SHARES}),
    (
        *("rules.delay_compensated", cj.rules.delay_compensated, AVERAGED),
        {"strength": RATES, "outer": [(RULE, "optax")]},
    ),
    (
        *("rules.eager_diloco", cj.rules.eager_diloco, AVERAGED),
        {"outer": [(1, "optax")]},
    ),
    ("rules.easgd", cj.rules.easgd, AVERAGED, {"beta": SHARES, "alpha": SHARES}),
    (
        *("rules.fragments", cj.rules.fragments),
        AVERAGED | {"make": cj.cocod, "masks": [True]},
        {"make": [(1, "function")], "masks": [("ab", "sequence"), ([], "empty")]},
    ),
    (
        *("rules.loscar", cj.rules.loscar, AVERAGED | {"fraction": 0.5}),
        {"fraction": [(0, "above 0"), (2, "up to 1")], "seed": WHOLE},
    ),
    (
        *("rules.overlap_local_sgd", cj.rules.overlap_local_sgd, AVERAGED),
        {"alpha": SHARES, "beta": SHARES},
    ),
    (
        *("rules.slowmo", cj.rules.slowmo, AVERAGED),
        {"beta": SHARES, "alpha": RATES, "learning_rate": [(0.1, "function")]},
    ),
    (
        *("rules.sparse_loco", cj.rules.sparse_loco, AVERAGED),
        {"axis_or_exchange": EXCHANGES, "outer": [(1, "optax")]},
    ),
    (
        *("rules.vrl_sgd", cj.rules.vrl_sgd),
        AVERAGED | {"learning_rate": 0.1, "period": 2},
        {"learning_rate": RATES, "period": COUNTS},
    ),
    (
        *("workers.batch_shares", cj.workers.batch_shares),
        {"capabilities": (1, 2), "total": 4},
        {"capabilities": [(1, "sequence"), ("ab", "sequence")], "total": COUNTS}
        | {"minimum": COUNTS},
    ),
    (
        *("workers.gather_capabilities", cj.workers.gather_capabilities, {}),
        {"own": [("fast", "number"), (math.nan, "finite"), (-1, "above 0")]},
    ),
    (
        *("workers.measure_capability", cj.workers.measure_capability),
        {"step": lambda: jnp.ones(1)},
        {"step": [(None, "function")], "seconds": RATES},
    ),
    (
        *("workers.token_weights", cj.workers.token_weights),
        {"tokens": (1, 2), "steps": (1, 2)},
        {"tokens": [(1, "sequence"), ("ab", "sequence")], "steps": [(1, "sequence")]},
    ),
    ("workers.check_equal_start", cj.workers.check_equal_start, {}, {"state": STATES}),
    (
        *("workers.resize", cj.workers.resize),
        {"state": STATE, "round_": ROUND, "workers": 3},
        {"state": STATES, "round_": ROUNDS, "workers": COUNTS}
        | {"moments": [("sum", "mean")]},
    ),
    ("testing.check_inner", testing.check_inner, {}, {"optimizer": OPTIMIZERS}),
    (
        *("testing.check_inner", testing.check_inner, {"optimizer": SGD}),
        {"params": [({}, "no leaf"), ("word", "array")]},
    ),
    (
        *("observe.loggers.scalars", cj.loggers.scalars, {"metrics": METRICS}),
        {"metrics": [(None, "RoundMetrics")]} | WEIGHTS,
    ),
    (
        *("observe.loggers.per_worker", cj.loggers.per_worker, {}),
        {"metrics": [(None, "RoundMetrics")]},
    ),
    *(
        (f"observe.page.{f.__name__}", f, {}, {name: [(3, "path"), (None, "path")]})
        for f, name in ((page.log_of, "run"), (page.render, "log"), (page.write, "log"))
    ),
    ("observe.loggers.read_jsonl", cj.loggers.read_jsonl, {}, {"path": PATHS}),
    (
        *("observe.plots.curves", cj.plots.curves, {"logs": "a.jsonl"}),
        {"logs": [(3, "sequence"), ([3], "path")], "by": [(3, "name")]}
        | {"values": [("loss", "sequence"), ([], "empty")]},
    ),
    (
        *("observe.plots.timelines", cj.plots.timelines, {"logs": "a.jsonl"}),
        {"logs": [(3, "sequence"), ([3], "path")], "by": [(3, "name")]},
    ),
    ("DriftAlarm", cj.DriftAlarm, {}, WEIGHTS),
    ("DriftAlarm()", cj.DriftAlarm(), {}, {"metrics": [(None, "RoundMetrics")]}),
    (
        *("execution.Checkpoints", cj.execution.Checkpoints, {"folder": "checkpoints"}),
        {"folder": PATHS, "keep": COUNTS},
    ),
    (
        *("MergeRule", cj.MergeRule),
        {"exchange": MEAN, "merge": RULE.merge},
        {"exchange": [(WORKERS, "Exchange")], "streams": FLAG}
        | {"merge": [(None, "function"), (lambda m: m, "arriving")]}
        | {"init": [(3, "function")], "outgoing": [(3, "function")]}
        | {"correct": [(3, "function")]},
    ),
    (
        *("rounds.plans.with_period", cj.plans.with_period),
        {"round_": ROUND, "period": 3},
        {"round_": ROUNDS, "period": COUNTS},
    ),
    (
        *("rounds.plans.stages", cj.plans.stages, {}),
        {"rounds": [([ROUND], "mapping"), ({0: None}, "Round"), ({1: ROUND}, "0")]},
    ),
    (
        *("rounds.plans.stagewise", cj.plans.stagewise),
        {"round_": ROUND, "steps": 4, "longest": 8},
        {"round_": ROUNDS, "steps": COUNTS, "longest": COUNTS},
    ),
    (
        *("rounds.plans.qsr", cj.plans.qsr),
        {"round_": ROUND, "learning_rate": abs, "alpha": 0.5, "longest": 8},
        {"round_": ROUNDS, "learning_rate": [(0.1, "function")], "alpha": RATES}
        | {"warmup_steps": WHOLE},
    ),
    (
        *("rounds.plans.adacomm", cj.plans.adacomm),
        {"round_": ROUND, "first_loss": 1.0},
        {"round_": ROUNDS, "first_loss": RATES},
    ),
    (
        *("rounds.plans.two_level", cj.plans.two_level),
        {"near": ROUND, "far": ROUND, "times": 2},
        {"near": ROUNDS, "far": ROUNDS, "times": COUNTS},
    ),
    ("a plan", cj.plans.stages({0: ROUND}), {}, {"step": WHOLE}),
    ("a plan of factors", cj.plans.stagewise(ROUND, 4, 8), {}, {"step": WHOLE}),
    ("a plan of two", cj.plans.two_level(ROUND, ROUND, 2), {}, {"step": WHOLE}),
    (
        *("a plan of losses", cj.plans.adacomm(ROUND, 1.0), {"step": 0}),
        {"loss": RATES, "step": WHOLE},
    ),
    ("timeline.SSGD", timeline.SSGD, {}, {"sends_after": [(0, "up to 1")]}),
    ("timeline.CoCoDSGD", timeline.CoCoDSGD, {}, {"period": COUNTS}),
    ("timeline.Gossip", timeline.Gossip, {}, {"period": COUNTS}),
    ("timeline.LocalSGD", timeline.LocalSGD, {}, {"period": COUNTS}),
    ("timeline.Streamed", timeline.Streamed, {}, {"period": COUNTS}),
    ("timeline.Streaming", timeline.Streaming, {"period": 2}, {"fragments": COUNTS}),
    (
        *("timeline.Compute", timeline.Compute, {"seconds": 0.1, "workers": 2}),
        {"seconds": RATES, "workers": COUNTS, "jitter": RATES, "pause": RATES}
        | {
            "pause_probability": SHARES,
            "speeds": [(1, "sequence"), ("ab", "sequence")],
        },
    ),
    ("timeline.Compute.draw", COMPUTE.draw, {"steps": 2}, {"seed": WHOLE}),
    (
        *("timeline.Link", timeline.Link, {"latency": 0, "bandwidth": 1.0}),
        {
            "latency": RATES,
            "bandwidth": RATES,
            "topology": [("star", "ring"), ([], "tree")],
        },
    ),
    (
        *("timeline.simulate", timeline.simulate, CLOCK | {"exchange_seconds": 0.1}),
        {"algorithm": [("cocod", "CoCoDSGD")], "compute": [(0.1, "Compute")]}
        | {"link": [(1, "Link")], "steps": COUNTS, "busy": RATES, "seed": WHOLE},
    ),
    (
        "timeline.gantt",
        timeline.gantt,
        {},
        {"timelines": [([], "Mapping"), ({}, "one")]},
    ),
    ("theory.Problem", theory.Problem, PROBLEM, {"smoothness": RATES, "batch": COUNTS}),
    (
        *("theory.deviation_bound", theory.deviation_bound, BOUND),
        {"problem": [(1, "Problem")], "learning_rate": RATES, "period": COUNTS},
    ),
    (
        *("theory.expected_deviation", theory.expected_deviation, BOUND),
        {"problem": [(1, "Problem")], "learning_rate": RATES},
    ),
    (
        *("theory.gradient_bound", theory.gradient_bound, BOUND | {"steps": 4}),
        {"problem": [(1, "Problem")], "steps": COUNTS},
    ),
    (
        *("theory.largest_period", theory.largest_period),
        {"learning_rate": 0.1, "smoothness": 1.0},
        {"learning_rate": RATES, "smoothness": RATES, "delay": [(-1, "0 or more")]},
    ),
    *(
        (f"theory.{f.__name__}", f, BY_STEPS, {"problem": [(1, "Problem")]})
        for f in (theory.exchanges, theory.speedup_bound, theory.speedup_period)
    ),
    (
        *("theory.speedup_learning_rate", theory.speedup_learning_rate, BY_STEPS),
        {"problem": [(1, "Problem")], "steps": COUNTS},
    ),
    (
        *("theory.speedup_conditions", theory.speedup_conditions, AT_PERIOD),
        {"problem": [(1, "Problem")], "period": COUNTS},
    ),
    (
        *("per_step.acco", cj.per_step.acco, AVERAGED | {"inner": SGD}),
        {"inner": OPTIMIZERS, "axis_or_exchange": EXCHANGES} | WEIGHTS,
    ),
    (
        *("per_step.averaged_moments", cj.per_step.averaged_moments),
        AVERAGED | {"inner": SGD, "mu": 2},
        {"inner": [(None, "optax")], "axis_or_exchange": EXCHANGES, "mu": COUNTS},
    ),
    (
        *("per_step.reset_every", cj.per_step.reset_every, {"period": 2, "inner": SGD}),
        {"period": COUNTS, "inner": OPTIMIZERS, "delay": [(3, "0..period=2")]},
    ),
    ("certify.dataflow", certify.dataflow, {}, {"fn": [(None, "Round")]}),
    (
        *("certify.certify", certify.certify, {"fn": ROUND}),
        {"target": [("h1", "h100"), ([], "h100")], "hosts": COUNTS, "devices": COUNTS}
        | {"compiler_options": [("fast", "Mapping")]},
    ),
    (
        *("certify.compiler_available", certify.compiler_available, {}),
        {"kind": [("cpu", "tpu"), ([], "tpu")]},
    ),
    ("certify.install_command", certify.install_command, {}, {"kind": [(1, "gpu")]}),
]
VALUES += [
    (f"testing.{check}", getattr(testing, check), {"rule": RULE}, {"atol": RATES[:2]})
    for check in ("assert_fixed_point", "check_rule")
]


class Row(NamedTuple):
    """A bad input.

    Attributes:
      subject: the public name that is called.
      call: what is done, in a folder.
      words: of the message.
    """

    subject: str
    call: Callable[[Path], Any]
    words: tuple[str, ...]


def _called(function: Callable, **arguments: Any) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        del folder
        if "fn" in arguments:  # is positional, as in certify(round_, state, batches)
            others = {name: arguments[name] for name in arguments if name != "fn"}
            return function(arguments["fn"], STATE, BATCHES, **others)
        return function(**arguments)

    return call


def named(value: Any) -> str:
    """For the name of a test, which must be the same in every process."""
    return value.__name__ if isinstance(value, FunctionType) else shown(value)


ROWS = {
    f"{subject}({name}={named(value)})": Row(
        subject, _called(function, **good | {name: value}), (name, cure)
    )
    for subject, function, good, bad in VALUES
    for name, values in bad.items()
    for value, cure in values
}
