"""The table of algorithms: a row here is a row of the table and a page of its own."""

import dataclasses
from typing import Any

import cocod_jax as cj
from cocod_jax import timeline
from cocod_jax.style import ALGORITHMS
from cocod_jax.timeline import Algorithm

PERIOD = 4  # in the timelines that are drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One algorithm.

    Attributes:
      name: as in the table and in the title of its page.
      code: what to write, in a few words.
      seconds: the time of k steps.
      exchanges: all-reduces in k steps.
      travels: what a worker sends, and how often.
      merged: when what arrives takes effect.
      memory: copies of the parameters that a worker holds beside them and its
        optimizer, in flight and between rounds.
      hidden: what can hide the exchange.
      timeline: the algorithm on the clock that draws its figure; None for a rule that
        has CoCoD-SGD's.
      source: whose docstring describes it.
      example: Python that runs.
      text: what the docstring does not say, if anything.
      use: when to take it, and when not.
      cost: what it takes beyond time.
      references: whose docstring names the papers; None for ``source``.
      emphasis: whether its name stands out in the table.
    """

    name: str
    code: str
    seconds: str
    exchanges: str
    travels: str
    merged: str
    memory: str
    hidden: str
    timeline: Algorithm | None = None
    source: Any
    example: str
    text: str = ""
    use: str
    cost: str
    references: Any = None
    emphasis: bool = False

    @property
    def slug(self) -> str:
        """Its name in addresses."""
        return self.name.lower().replace(" ", "-")


FORMS = (
    Row(
        name=ALGORITHMS["ssgd"][0],
        travels="gradients, every step",
        merged="at once",
        memory="nothing",
        hidden="no",
        code="`cj.mean_gradients(axis)` in `optax.chain`",
        seconds="*k* (*Tc* + *Tm*)",
        exchanges="*k*",
        timeline=timeline.SSGD(),
        source=cj.mean_gradients,
        example="""\
import optax
import cocod_jax as cj

optimizer = optax.chain(cj.mean_gradients("workers"), optax.adamw(1e-3))
""",
        use="""\
Take it first. It is the baseline that every other algorithm is measured against, and it
is the right choice when an exchange is short beside a local step. Workers never differ,
so there is nothing to tune but the learning rate.

Frameworks that send the gradients in buckets during the backward pass hide a part of
*Tm*; {func}`cocod_jax.advise` compares with those, too.""",
        cost="No memory beyond the gradients. Every step waits for the slowest worker.",
    ),
    Row(
        name=ALGORITHMS["pipe_sgd"][0],
        travels="gradients, every step",
        merged="one step later",
        memory="1",
        hidden="beside the step",
        code="`cj.stale_mean_gradients(axis)` in `optax.chain`",
        seconds="*k* max(*Tc*, *Tm*)",
        exchanges="*k*",
        timeline=timeline.PipeSGD(),
        source=cj.stale_mean_gradients,
        example="""\
import optax
import cocod_jax as cj

optimizer = optax.chain(
    cj.stale_mean_gradients("workers", warmup_steps=100), optax.adamw(1e-3)
)
""",
        use="""\
Take it when one step is long enough to hide an exchange, and workers should stay equal.
When *Tm* is longer than *Tc* it hides only a part, and a rule with a period hides more.
Every gradient is one step old, which asks for a smaller learning rate than S-SGD.""",
        cost="One more tree of gradients in the optimizer's state. "
        "As many bytes as S-SGD.",
    ),
    Row(
        name="ACCO",
        travels="gradients, every half-batch",
        merged="half a batch later",
        memory="3",
        hidden="beside the half-batch",
        code="`cj.per_step.acco(inner, axis)`",
        seconds="*k* max(*Tc*, *Tm*)",
        exchanges="*k*",
        timeline=timeline.PipeSGD(),
        source=cj.per_step.acco,
        example="""\
import optax
import cocod_jax as cj

optimizer = cj.per_step.acco(optax.adamw(1e-3), "workers")
""",
        text="""\
A step is half a batch here: *Tc* is the time of that.""",
        use="""\
Take it where Pipe-SGD would do, but its gradients of the last step hurt: here no
gradient is older than the parameters that it is applied to, and half of those of a
batch are taken at an estimate of them. The batch must divide in two halves that are
still large enough for the device. When *Tm* is longer than half a batch takes, it hides
only a part, and a rule with a period hides more.""",
        cost="Three more trees like the parameters, and the optimizer's update twice "
        "in a batch. Twice as many bytes as S-SGD with the same batch.",
    ),
    Row(
        name="DES-LOC",
        travels="pieces of parameters and moments, every step",
        merged="one step later",
        memory="two pieces",
        hidden="beside the step",
        code="`cj.every(k, cj.per_step.averaged_moments(inner, axis, ...), ...)`",
        seconds="*k* max(*Tc*, *l* + (*Tm* \N{MINUS SIGN} *l*) / *k*), and the moments",
        exchanges="*k*",
        source=cj.per_step.averaged_moments,
        example="""\
import optax
import cocod_jax as cj

adam = cj.per_step.averaged_moments(optax.adam(1e-3), "workers", mu=24, nu=48)
optimizer = cj.every(8, adam, cj.cocod("workers"), streamed=True)
""",
        text="""\
Its moments are streamed beside whatever exchanges the parameters.""",
        use="""\
Take it where workers' moments drift apart and it shows: with skewed data, long periods
or large learning rates. With periods of 3 and 6 times that of the parameters the two
moments of Adam add a half to the bytes.""",
        cost="Two copies of a piece of each moment. The compiler combines the pieces "
        "of parameters and moments into one exchange, if their periods differ.",
    ),
    Row(
        name=ALGORITHMS["local_sgd"][0],
        travels="parameters, once in *k* steps",
        merged="at once",
        memory="nothing",
        hidden="no",
        code="`make_round(..., cj.cocod(axis), period=k, delay=0)`",
        seconds="*k Tc* + *Tm*",
        exchanges="1",
        timeline=timeline.LocalSGD(PERIOD),
        source=timeline.LocalSGD,
        example="""\
import jax.numpy as jnp, optax
import cocod_jax as cj

loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
round_ = cj.make_round(
    loss_fn, optax.sgd(0.1), cj.cocod("workers"), period=8, delay=0
)
""",
        text="""\
It is the rule of [CoCoD-SGD](cocod-sgd.md), merged before the first local step: no
progress has been made yet, and every worker takes the mean, *x* ← *m*. Once in every
round, after the merge, the workers are equal in every bit.""",
        use="""\
Take it when the exchange is short beside a round, so that there is little to hide, or
when the workers' data differ so much that their drift hurts: at the same period it has
the least drift of all algorithms that communicate once a round.""",
        cost="No copy of the parameters in a fused round; split, it makes one. "
        "Every round waits for the exchange and for the slowest worker.",
        references=cj.cocod,
    ),
    Row(
        name=ALGORITHMS["cocod"][0],
        travels="parameters, once in *k* steps",
        merged="*k* steps later",
        memory="2",
        hidden="behind *k* steps",
        code="`make_round(..., cj.cocod(axis), period=k)`",
        seconds="max(*k Tc*, *Tm*)",
        exchanges="1",
        timeline=timeline.CoCoDSGD(PERIOD),
        source=cj.cocod,
        example="""\
import jax.numpy as jnp, optax
import cocod_jax as cj

loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
round_ = cj.make_round(loss_fn, optax.sgd(0.1), cj.cocod("workers"), period=8)
""",
        use="""\
Take it when an exchange takes as long as a local step or longer: on networks between
machines rather than within one. Choose the smallest period with *k Tc* ≥ *Tm*, and at
least 2: on GPUs a single step [may hide a part only](#certificate-partly). A
longer period hides nothing more and lets the workers drift. Workers wait for each other
only at the end of a round, which absorbs [pauses shorter than
that](../results/20261127_unequal.md), if not clearly better than Local SGD does.

Do not take it when *Tm* is small beside *Tc*, or when the period that hides the
exchange is too long for the learning rate. {func}`cocod_jax.advise` says either.""",
        cost="""\
Two more copies of the parameters: the snapshot, and the buffer in flight. Workers
deviate more than with Local SGD of the same period, in squares by the factor
(3*k* \N{MINUS SIGN} 1) / (*k* \N{MINUS SIGN} 1) of
{func}`cocod_jax.theory.expected_deviation`.""",
        emphasis=True,
    ),
    Row(
        name="just-in-time merge",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="2",
        hidden="behind *d* steps",
        code="`make_round(..., cj.cocod(axis), period=k, delay=d)`",
        seconds="max(*d Tc*, *Tm*) + (*k* \N{MINUS SIGN} *d*) *Tc*",
        exchanges="1",
        timeline=timeline.CoCoDSGD(PERIOD, delay=3),
        source=cj.make_round,
        example="""\
import jax.numpy as jnp, optax
import cocod_jax as cj

advice = cj.advise(step_seconds=0.1, exchange_seconds=0.25, workers=8, period=4)
loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
round_ = cj.make_round(
    loss_fn,
    optax.sgd(0.1),
    cj.cocod("workers"),
    period=advice.period,
    delay=advice.delay,
)
""",
        use="""\
Take it when the period is longer than the exchange needs, and the workers keep step. A
pause that comes after the merge is not hidden: with stragglers the whole period is
better.""",
        cost="As CoCoD-SGD, for *d* of the *k* steps. Between workers with equal data "
        "the squared deviation grows linearly with *d*, from Local SGD's to "
        "CoCoD-SGD's.",
        references=cj.cocod,
    ),
    Row(
        name="streamed",
        travels="a *k*-th of the parameters, every step",
        merged="one step later",
        memory="two pieces",
        hidden="beside the step",
        code="`cj.every(k, inner, cj.cocod(axis), streamed=True)`, or "
        "`make_round(..., streamed=True)`",
        seconds="*k* max(*Tc*, *l* + (*Tm* \N{MINUS SIGN} *l*) / *k*)",
        exchanges="*k*",
        timeline=timeline.Streamed(PERIOD),
        source=cj.every,
        example="""\
import optax
import cocod_jax as cj

optimizer = cj.every(8, optax.adamw(1e-3), cj.cocod("workers"), streamed=True)
""",
        text="""\
With `streamed`, piece *f* of the parameters holds the *f*-th *k*-th of every array.
Step *t* exchanges piece *f* = *t* mod *k* as it is when the step begins, and merges it
when the step ends, by the rule that CoCoD-SGD has for all of them:

$$m = \\sum_i p_i \\, x_i[f] \\;\\Vert\\; \\text{local step}, \\qquad
x_i[f] \\leftarrow m + (x_i[f] - s_i), \\qquad s_i = x_i[f] \\text{ before}.$$

No merge moves the mean of the workers, which follows SGD in every step. Every
coordinate is averaged once in *k* steps, as often as in a round, but what arrives is
one step old instead of *k*. {func}`cocod_jax.make_round` with `streamed=True` takes
the same steps.""",
        use="""\
Take it in a loop that calls an optimizer step by step: all steps are one program, with
a collective that is in no conditional. Take it in a round when workers drift too far
apart, or when a network is shared and should carry an even load. The period is the
smallest with *k Tc* ≥ *Tm*, as for CoCoD-SGD.

Do not take it when the latency of a message is not short beside a step, or when
workers pause: each waits for the others in every step, and a pause is hidden behind
one step only. On data that differ much between workers, [Local SGD](local-sgd.md)
averages everything at one time, and this does not: with one class on each worker [it
hardly learnt](../results/20261129_streaming_study.md).

A rule sees a piece as its model. One that needs the whole at once, such as its norm,
says `streams=False` ([how](../how-to/own-rule.md#rules-that-stream)) and is refused.

## Relatives

All of them exchange a part in each step or every few steps; they differ in what a part
is, and in what a worker does with what arrives.

* DreamDDP ([arXiv:2502.11058](https://arxiv.org/abs/2502.11058)) synchronises some of
  the layers in each iteration, beside the backward pass, and overwrites them with the
  average. Pieces are cut through all arrays here, so that all steps send equally
  much, and the merge keeps a worker's progress.
* Streaming DiLoCo ([arXiv:2501.18512](https://arxiv.org/abs/2501.18512)) sends
  fragments of layers at intervals, applies an outer optimizer, and mixes the result
  into the worker by a factor. MaxText's implementation decides by `lax.cond` within
  its step which fragment, if any, is due; its collectives are in conditionals, where
  compilers do not overlap them.
* SPARTA averages a small part of the parameters, drawn at random, in every step.
* LOSCAR-SGD ([arXiv:2605.20866](https://arxiv.org/abs/2605.20866)) sends coordinates
  by a random mask, and merges late with the same correction for the delay, *m* + (*z*
  \N{MINUS SIGN} *y*). Pieces take turns here: nothing is drawn, and no coordinate
  waits longer than *k* steps.""",
        cost="Two copies of a piece: what is sent, and what is in flight. Rules and "
        "exchanges remember as much as for the whole model.",
        references=cj.cocod,
    ),
)

# Rules with CoCoD-SGD's times, at any delay.


def _rule(call: str, example: str, **own: Any) -> Row:
    return Row(
        code=f"`make_round(..., {call}, period=k)`",
        seconds="max(*k Tc*, *Tm*)",
        exchanges="1",
        example=f"""\
import jax.numpy as jnp, optax
import cocod_jax as cj

loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
{example}
round_ = cj.make_round(loss_fn, optax.sgd(0.1), rule, period=8)
""",
        **own,
    )


RULES = (
    _rule(
        name="DiLoCo",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="4",
        hidden="behind *d* steps",
        call="cj.rules.diloco(axis)",
        source=cj.rules.diloco,
        example="rule = cj.rules.diloco("
        '"workers", optax.sgd(0.7, momentum=0.9, nesterov=True))',
        use="""\
Take it for long periods, tens to hundreds of steps with AdamW inside, as language
models are trained: the outer momentum carries what the workers have in common across
rounds.
The outer rate has to be tuned; with a delay the papers take a smaller one. With
`outer=optax.sgd(1.0)` it is CoCoD-SGD.""",
        cost="An anchor and the outer optimizer's state, as large as the parameters "
        "each, beside what CoCoD-SGD keeps.",
    ),
    Row(
        name="Streaming DiLoCo",
        travels="a fragment, once in *k* steps",
        merged="*d* steps later",
        memory="2, and 2 fragments",
        hidden="behind *d* steps",
        code="`cj.rules.fragments(cj.rules.diloco, axis, masks)`, rounds in turn",
        seconds="max(*k Tc*, *Tm* / *P*)",
        exchanges="1",
        source=cj.rules.fragments,
        example="""\
import jax.numpy as jnp, numpy as np, optax
import cocod_jax as cj

loss_fn = lambda params, batch: jnp.mean((batch @ params["in"] @ params["out"]) ** 2)
masks = [{"in": True, "out": False}, {"in": False, "out": True}]
rules = cj.rules.fragments(cj.rules.diloco, "workers", masks)
make = lambda rule: cj.make_round(loss_fn, optax.sgd(0.1), rule, period=4, delay=2)
rounds = [make(rule) for rule in rules]
state = cj.replicate(rounds[0].init({"in": jnp.eye(3), "out": jnp.ones(3)}), 2)
runs = [cj.distribute(round_, via="vmap") for round_ in rounds]
for turn in range(6):
    state, metrics = runs[turn % 2](state, np.ones([2, 4, 8, 3], np.float32))
""",
        text="""\
*P* is the number of fragments, and the whole model travels once in *P k* steps.""",
        use="""\
Take it as published, with layers for fragments, or where parts of the model want rules
or periods of their own. [Streaming](streamed.md) with the same rule cuts all layers
into pieces that are equally large, and sends one in every step.""",
        cost="As the rule: DiLoCo's anchor and outer state. One compilation for each "
        "fragment.",
        references=cj.rules.fragments,
    ),
    _rule(
        name="SlowMo",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="4",
        hidden="behind *d* steps",
        call="cj.rules.slowmo(axis)",
        source=cj.rules.slowmo,
        example='rule = cj.rules.slowmo("workers", beta=0.5)',
        use="""\
Take it where Local SGD or CoCoD-SGD falls behind S-SGD at the period that the network
asks for: the slow momentum carries across rounds what the workers agree on. The paper
takes `beta` 0.4 to 0.8, more with more workers. It is DiLoCo with another outer
optimizer: with AdamW inside and hundreds of local steps, take that.""",
        cost="The anchor and its momentum, as large as the parameters each, beside "
        "what CoCoD-SGD keeps.",
    ),
    _rule(
        name="eager DiLoCo",
        travels="progress, once in *k* steps",
        merged="*d* steps later, one's own at once",
        memory="5",
        hidden="behind *d* steps",
        call="cj.rules.eager_diloco(axis)",
        source=cj.rules.eager_diloco,
        example="rule = cj.rules.eager_diloco("
        '"workers", optax.sgd(0.7, momentum=0.9, nesterov=True))',
        use="""\
Take it where DiLoCo's outer optimizer, with its exchange a whole round late, learns
from gradients that are too old: a worker's own part of them is fresh. With few workers
that part is large. With delay 0 it is DiLoCo, and costs more.""",
        cost="The anchor, the outer optimizer's state and the worker's fresh progress, "
        "as large as the parameters each, beside what CoCoD-SGD keeps.",
    ),
    _rule(
        name="CO2",
        travels="progress, once in *k* steps",
        merged="a round later",
        memory="5",
        hidden="behind *d* steps",
        call="cj.rules.co2(axis)",
        source=cj.rules.co2,
        example='rule = cj.rules.co2("workers", beta=0.5, clip=1.0)',
        use="""\
Take it where workers should be equal after every merge although the exchange is hidden.
The price is that all progress, the worker's own as well, is used a round late: the
penalty and the clip are there to hold back what that does.""",
        cost="The anchor, its momentum and the worker's fresh progress, as large as "
        "the parameters each, beside what CoCoD-SGD keeps.",
    ),
    _rule(
        name="CoCoDC",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="4",
        hidden="behind *d* steps",
        call="cj.rules.delay_compensated(axis)",
        source=cj.rules.delay_compensated,
        example="rule = cj.rules.delay_compensated("
        '"workers", optax.sgd(1.0), strength=0.2)',
        use="""\
Take it to see whether a worker's progress, made from its stale snapshot, is worth
correcting for the anchor that it goes on from. With `outer=optax.sgd(1.0)` and
`strength=0` it is CoCoD-SGD, and the comparison is with that.""",
        cost="As DiLoCo. The merge takes two norms of the model.",
    ),
    _rule(
        name="LOSCAR-SGD",
        travels="a random part of the parameters",
        merged="*d* steps later",
        memory="1, and two parts",
        hidden="behind *d* steps",
        call="cj.rules.loscar(axis, fraction)",
        source=cj.rules.loscar,
        example='rule = cj.rules.loscar("workers", fraction=0.1)',
        use="""\
Take it where even a longer period does not hide the exchange of the whole model, and
workers differ little: a tenth of the coordinates takes a tenth of *Tm*, and every
coordinate is averaged once in ten rounds. [Streaming](streamed.md) also sends a part at
a time, but all of them in every round, and in turns.""",
        cost="No more than CoCoD-SGD. The draws, and the coordinates that they pick, "
        "are computed twice in a round.",
    ),
    _rule(
        name="SparseLoCo",
        travels="the largest differences from an anchor",
        merged="*d* steps later",
        memory="3, and what is gathered",
        hidden="behind *d* steps",
        call="cj.rules.sparse_loco(axis)",
        source=cj.rules.sparse_loco,
        example='rule = cj.rules.sparse_loco("workers")',
        use="""\
Take it on links between sites, where bytes are what costs: 64 of 4,096 numbers, with
their places, are 2.3 % of float32's bytes. What is left out goes with later rounds, so
that short periods pay as well. All workers receive what each of them sends: with
hundreds of workers the all-gather is no longer small.""",
        cost="The anchor, and what was not sent yet, as large as the parameters each, "
        "beside what CoCoD-SGD keeps; a top-k of every chunk in each round.",
    ),
    _rule(
        name="EASGD",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="3",
        hidden="behind *d* steps",
        call="cj.rules.easgd(axis)",
        source=cj.rules.easgd,
        example='rule = cj.rules.easgd("workers", beta=0.9)',
        use="""\
Take it where workers should explore apart from each other: they are pulled together
gently, and never made equal.""",
        cost="The centre, as large as the parameters, beside what CoCoD-SGD keeps.",
    ),
    _rule(
        name="Overlap Local SGD",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="4",
        hidden="behind *d* steps",
        call="cj.rules.overlap_local_sgd(axis)",
        source=cj.rules.overlap_local_sgd,
        example='rule = cj.rules.overlap_local_sgd("workers", alpha=0.6, beta=0.7)',
        use="""\
Take it where CoCoD-SGD's workers drift too far at the period that hides the exchange:
the pull to the anchor holds them, at the price of a part of their own progress.""",
        cost="The anchor and its momentum, as large as the parameters each. The merge "
        "needs no snapshot, but the metrics tell how far workers are from it.",
    ),
    _rule(
        name="VRL-SGD",
        travels="parameters, once in *k* steps",
        merged="*d* steps later",
        memory="3",
        hidden="behind *d* steps",
        call="cj.rules.vrl_sgd(axis, ...)",
        source=cj.rules.vrl_sgd,
        example="""\
rule = cj.rules.vrl_sgd("workers", learning_rate=0.1, period=8, delay=8)""",
        use="""\
Take it with plain SGD when the workers' data differ: the corrections take out of each
worker's gradients what drives it from the others. With momentum or Adam inside the
correction's scale is no longer the one that it was derived for.""",
        cost="The correction, as large as the parameters, and its subtraction in every "
        "local step, beside what CoCoD-SGD keeps.",
    ),
)

ROWS = FORMS + RULES
