"""What is wrong only when it is used: users' functions, states, batches and files."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax import certify, timeline
from tests.bad_inputs import (
    BATCHES,
    COMPUTE,
    MEAN,
    METRICS,
    ROUND,
    SGD,
    WORKERS,
    Row,
    a_round,
    a_state,
    loss,
)


def wrong(value: Any) -> Any:
    """What no type checker would let pass."""
    return value


def run(rule=None, *, batches=BATCHES, state=None, **options: Any) -> None:
    """A round of two workers."""
    round_ = a_round(rule or cj.cocod(WORKERS), **options)
    state = a_state(round_) if state is None else state
    cj.distribute(round_, via="vmap")(state, batches)


def merging(merge=lambda m, x, state, s: (x, state), **parts: Any) -> cj.MergeRule:
    return cj.MergeRule(parts.pop("exchange", MEAN), merge, **parts)


def exchanging(**parts: Any) -> cj.MergeRule:
    return cj.cocod(MEAN._replace(**parts))


def optimizing(update, init=lambda params: ()) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, update)


def stateful(model_state: Any) -> None:
    """A round whose loss returns this model state."""

    def with_state(w, model_state_, batch, key):
        return loss(w, batch), model_state

    round_ = a_round(loss_fn=with_state, stateful=True)
    state = cj.replicate(round_.init(1.0, {"mean": jnp.ones(3)}), 2)
    cj.distribute(round_, via="vmap")(state, BATCHES)


def step_by_step(optimizer, gradients: Any = None, state: Any = None) -> None:
    """One step of an optimizer of a loop."""
    params = jnp.ones([2, 3])
    gradients = params if gradients is None else gradients
    state = jax.vmap(optimizer.init)(params) if state is None else state
    jax.vmap(optimizer.update, axis_name=WORKERS)(gradients, state, params)


def simulated(*transfers: Any, period: Any = 1) -> None:
    own: Any = SimpleNamespace(period=period, transfers=lambda steps: transfers)
    timeline.simulate(own, COMPUTE, 0.1, steps=2)


def saved(folder: Path, *args: Any, **options: Any) -> None:
    with cj.execution.Checkpoints(folder / "c") as checkpoints:
        try:
            checkpoints.save(*args, **options)
        finally:
            checkpoints.wait()
            (folder / "c").rmdir()  # of no checkpoint


def logged(folder: Path, to: Callable, count: Any, scalars: Any) -> None:
    file = folder / "log"
    try:
        with to(file) as log:
            log(count, scalars)
    finally:
        file.unlink()


def read(folder: Path, content: bytes) -> None:
    file = folder / "log.jsonl"
    file.write_bytes(content)
    try:
        cj.loggers.read_jsonl(file)
    finally:
        file.unlink()


MERGED = {
    "one value": (lambda m, x, s, n: x, "merge must return (params, state)"),
    "none": (lambda m, x, s, n: None, "it returned a NoneType"),
    "three values": (lambda m, x, s, n: (x, s, s), "a tuple of 3"),
    "another tree": (lambda m, x, s, n: ({"w": x}, s), "same tree structure"),
    "another shape": (lambda m, x, s, n: (jnp.ones(2), s), "same shapes"),
    "words": (lambda m, x, s, n: ("w", s), "what merge returned is 'w', of type str"),
    "integers": (lambda m, x, s, n: (jnp.array(1), s), "int32, and the parameters"),
    "complex": (lambda m, x, s, n: (x * 1j, s), "complex64, and the parameters"),
    "another state": (lambda m, x, s, n: (x, {"w": x}), "the state that merge"),
}
EXCHANGED = {
    "send one value": ({"send": lambda s, t, w: t}, "send must return (sent, state)"),
    "send words": ({"send": lambda s, t, w: ("w", s)}, "sent is 'w', of type str"),
    "send another state": ({"send": lambda s, t, w: (t, {"t": t})}, "send returned"),
    "receive none": ({"receive": lambda sent, like: None}, "arriving and what was"),
    "receive a word": ({"receive": lambda sent, like: "w"}, "arriving is 'w'"),
    "receive integers": ({"receive": lambda sent, like: jnp.array(1)}, "arriving has"),
    "receive a row": ({"receive": lambda sent, like: jnp.ones(2)}, "same shapes"),
    "begin with a word": ({"init": lambda tree: "w"}, "exchange.init is 'w'"),
    "without send": ({"send": None}, "exchange.send=None must be a function"),
    "of one argument": ({"receive": lambda sent: sent}, "(sent, like)"),
    "on no axis": ({"axis_name": 3}, "axis_name=3 must be a string"),
    "weights": ({"weights": ("a", "b")}, "weights=('a', 'b') must be positive"),
}
CORRECTED = {
    "another tree": (lambda s, g: {"g": g}, "what correct returned and the gradient"),
    "another shape": (lambda s, g: jnp.ones(2), "same shapes"),
    "none": (lambda s, g: None, "same tree structure"),
    "integers": (lambda s, g: jnp.array(1), "int32, and the gradient float32"),
}
LOST = {
    "none": (lambda w, b: None, "it returned a NoneType"),
    "a row": (lambda w, b: w + b + jnp.ones(3), "an array of shape (3,)"),
    "an integer": (lambda w, b: 1, "loss of floats"),
    "a bool": (lambda w, b: w > 0, "one of bool"),
    "complex": (lambda w, b: w * 1j, "one of complex64"),
    "two values": (lambda w, b: (w, w), "it returned a tuple"),
}
OPTIMIZED = {
    "one value": (lambda g, s, p=None: g, "inner.update must return (updates, state)"),
    "another tree": (lambda g, s, p=None: ({"g": g}, s), "what inner.update returned"),
    "another shape": (lambda g, s, p=None: (jnp.ones(2), s), "same shapes"),
    "another state": (lambda g, s, p=None: (g, {"g": g}), "state.opt_state['g']"),
}
PER_STEP: dict[str, tuple[Any, str]] = {
    "every": (cj.every(2, SGD, cj.cocod(WORKERS)), "EveryState"),
    "every(streamed)": (
        cj.every(2, SGD, cj.cocod(WORKERS), streamed=True),
        "EveryState",
    ),
    "stale_mean_gradients": (cj.stale_mean_gradients(WORKERS), "StaleMean"),
    "per_step.acco": (cj.per_step.acco(SGD, WORKERS), "ACCOState"),
    "per_step.reset_every": (cj.per_step.reset_every(2, SGD), "ResetEveryState"),
    "per_step.averaged_moments": (
        cj.per_step.averaged_moments(optax.adam(0.1), WORKERS, mu=2),
        "AveragedMomentsState",
    ),
}
OTHERS = {
    "opt_state": {"inner": optax.adam(0.1)},
    "rule_state": {"rule": cj.rules.easgd(WORKERS)},
    "exchange_state": {"rule": cj.cocod(cj.exchanges.narrow(WORKERS, "int8"))},
}
BATCHED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "words": (np.array([["a", "b"]] * 2), ("batches is", "array or a number")),
    "objects": ({"x": np.array([[None] * 2] * 2)}, ("batches['x']", "array")),
    "three workers": (np.zeros([3, 2]), ("batches has shape (3, 2)", "length 2")),
    "three steps": (np.zeros([2, 3]), ("batches has shape (2, 3)", "period=2")),
    "no axes": (1.0, ("batches has shape ()", "length 2")),
    "no counts": (
        cj.MicroBatches(np.zeros([2, 2, 1]), wrong(None)),
        ("batches.count=None",),
    ),
    "counts of 0": (
        cj.MicroBatches(np.zeros([2, 2, 1]), np.zeros([2, 2], int)),
        ("batches.count reaches from 0", "at least 1"),
    ),
}
PARAMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a word": ({"w": "x"}, ("params['w'] is 'x'", "array or a number")),
    "integers": ({"w": jnp.ones(2, int)}, ("params['w']", "trainable")),
}

_of = functools.partial
CASES: dict[str, tuple[str, Callable[..., Any], tuple[str, ...]]] = {
    **{
        f"a merge that returns {what}": ("MergeRule", _of(run, merging(merge)), (word,))
        for what, (merge, word) in MERGED.items()
    },
    **{
        f"an exchange: {what}": (
            "Exchange",
            lambda p=parts: run(exchanging(**p)),
            (word,),
        )
        for what, (parts, word) in EXCHANGED.items()
    },
    **{
        f"a correction that returns {what}": (
            *("MergeRule", _of(run, merging(correct=correct))),
            (word,),
        )
        for what, (correct, word) in CORRECTED.items()
    },
    **{
        f"a loss that returns {what}": ("make_round", _of(run, loss_fn=fn), (word,))
        for what, (fn, word) in LOST.items()
    },
    **{
        f"an optimizer that returns {what}": (
            *("make_round", _of(run, inner=optimizing(update))),
            (word,),
        )
        for what, (update, word) in OPTIMIZED.items()
    },
    **{
        f"{name} with gradients of another shape": (
            *(name, _of(step_by_step, optimizer, jnp.ones([2, 4]))),
            ("gradients", "(4,) and (3,)"),
        )
        for name, (optimizer, _) in PER_STEP.items()
    },
    **{
        f"{name} with another state": (
            *(name, _of(step_by_step, optimizer, state={"a": jnp.ones(2)})),
            ("state=", kind),
        )
        for name, (optimizer, kind) in PER_STEP.items()
    },
    **{
        f"the {field} of another round": (
            *("distribute", lambda o=other: run(state=a_state(), **o)),
            (f"state.{field}", "of another round"),
        )
        for field, other in OTHERS.items()
    },
    **{
        f"batches: {what}": ("distribute", _of(run, batches=batches), words)
        for what, (batches, words) in BATCHED.items()
    },
    **{
        f"params: {what}": ("make_round", lambda p=params: ROUND.init(p), words)
        for what, (params, words) in PARAMS.items()
    },
    "a rule that begins with a word": (
        *("MergeRule", lambda: run(merging(init=lambda params: {"a": "w"}))),
        ("the state of init['a'] is 'w'",),
    ),
    "a rule that sends objects": (
        *("MergeRule", lambda: run(merging(outgoing=lambda s, n: {"a": len}))),
        ("what outgoing returned['a']", "array"),
    ),
    "an optimizer whose state is a word": (
        *("make_round", lambda: run(inner=optimizing(SGD.update, lambda p: "w"))),
        ("the state of inner.init is 'w'",),
    ),
    "aux of words": (
        "make_round",
        lambda: run(loss_fn=lambda w, b: (loss(w, b), {"a": "w"}), has_aux=True),
        ("aux['a'] is 'w'",),
    ),
    "a model state of words": (
        *("make_round", lambda: stateful({"mean": "w"})),
        ("the model state that loss_fn returned['mean'] is 'w'",),
    ),
    "a model state of none": (
        *("make_round", lambda: stateful(None)),
        ("state.model_state['mean']", "from init on"),
    ),
    "a key of floats": (
        *("make_round", lambda: ROUND.init(1.0, key=jnp.ones(2))),
        ("key=", "PRNG key"),
    ),
    "an outer optimizer that returns none": (
        "rules.diloco",
        lambda: run(cj.rules.diloco(WORKERS, optimizing(lambda g, s, p=None: None))),
        ("outer.update must return (updates, state)", "NoneType"),
    ),
    "a rate that is no number": (
        *("rounds.plans.qsr", lambda: cj.plans.qsr(ROUND, wrong(str), 0.5, 8)(3)),
        ("learning_rate(3)='3'", "finite"),
    ),
    "a mean of words": (
        *("mean", lambda: MEAN._replace(axis_name=None).average({"a": "w"})),
        ("what is sent['a'] is 'w'", "array"),
    ),
    "a merge rule without its state": (
        *("MergeRule", lambda: cj.cocod(WORKERS).update(1.0, wrong(None), 1.0)),
        ("state=None", "RuleState"),
    ),
    "unequal parameters": (
        *("consensus", lambda: cj.consensus(a_state()._replace(params=jnp.ones(3)))),
        ("state.params has shape (3,)", "length 2"),
    ),
    "metrics of one worker": (
        *(
            "observe.loggers.scalars",
            lambda: cj.loggers.scalars(METRICS._replace(loss=wrong(1))),
        ),
        ("metrics.loss has shape ()", "[N, period]"),
    ),
    "a memory of nothing": (
        *("DriftAlarm", lambda: cj.DriftAlarm().remember({})),
        ("memory has no", "memory()"),
    ),
    "a round's arguments": (
        *("certify.dataflow", lambda: certify.dataflow(ROUND, a_state())),
        ("args has 1", "the batches"),
    ),
    "a round's arguments swapped": (
        *("certify.dataflow", lambda: certify.dataflow(ROUND, BATCHES, a_state())),
        ("args[0]", "RoundState"),
    ),
    "a transfer of another kind": (
        *("timeline.simulate", lambda: simulated(1)),
        ("transfer=1", "Transfer"),
    ),
    "a transfer at a word": (
        *("timeline.simulate", lambda: simulated(timeline.Transfer(0, wrong("a"), 1))),
        ("sent='a'", "number"),
    ),
    "an algorithm of no steps": (
        *("timeline.simulate", lambda: simulated(period=0)),
        ("algorithm.period=0", "at least 1"),
    ),
}
ON_FILES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    **{
        f"{to.__name__} with the count {count!r}": (
            f"observe.loggers.{to.__name__}",
            lambda folder, to=to, count=count: logged(folder, to, count, {"a": 1}),
            ("count=", "number"),
        )
        for to in (cj.loggers.to_jsonl, cj.loggers.to_csv)
        for count in ("x", None, float("nan"))
    },
    **{
        f"{to.__name__} with metrics": (
            f"observe.loggers.{to.__name__}",
            lambda folder, to=to: logged(folder, to, 1, METRICS),
            ("scalars", "cj.loggers.scalars(metrics)"),
        )
        for to in (cj.loggers.to_jsonl, cj.loggers.to_csv)
    },
    **{
        f"{to.__name__} to no path": (
            f"observe.loggers.{to.__name__}",
            lambda folder, to=to: to(wrong(3)).__enter__(),
            ("=3 must be a path",),
        )
        for to in (cj.loggers.to_jsonl, cj.loggers.to_csv, cj.loggers.to_tensorboard)
    },
    **{
        f"a log with {content!r}": (
            "observe.loggers.read_jsonl",
            lambda folder, content=content: read(folder, content + b"\n{}\n"),
            ("line 1", "log.jsonl", "JSON object with a kind"),
        )
        for content in (b"{", b"3", b"[]", b"{}", b"\xff\xfe", b"\x80\x04N.")
    },
    "a log that is not there": (
        *(
            "observe.loggers.read_jsonl",
            lambda f: cj.loggers.read_jsonl(f / "no.jsonl"),
        ),
        ("no.jsonl", "No such file"),
    ),
    "a checkpoint of none": (
        *("execution.Checkpoints", lambda folder: saved(folder, 1, None)),
        ("state=None", "RoundState"),
    ),
    "a checkpoint of step -1": (
        *("execution.Checkpoints", lambda folder: saved(folder, -1, a_state())),
        ("step=-1", "0 or more"),
    ),
    "notes that are no JSON": (
        "execution.Checkpoints",
        lambda folder: saved(folder, 1, a_state(), notes={"a": len}),
        ("notes=", "must be JSON"),
    ),
    "notes without names": (
        "execution.Checkpoints",
        lambda folder: saved(folder, 1, a_state(), notes=3),
        ("notes=3", "Mapping"),
    ),
    "a score that is a word": (
        "execution.Checkpoints",
        lambda folder: saved(folder, 1, a_state(), score="good"),
        ("score='good'", "number"),
    ),
}
USES = {
    name: Row(subject, lambda folder, call=call: call(), words)
    for name, (subject, call, words) in CASES.items()
} | {name: Row(*case) for name, case in ON_FILES.items()}
