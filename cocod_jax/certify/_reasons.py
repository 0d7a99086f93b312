"""Why communication is exposed, and what helps."""

from typing import NamedTuple

from cocod_jax.certify._dataflow import CollectiveFlow
from cocod_jax.certify._schedule import Collective, Schedule
from cocod_jax.execution._flags import EARLY_START, SCHEDULER, as_xla_flags


class Reason(NamedTuple):
    """Why a collective is exposed.

    Attributes:
      id: short and stable, for tests and for links.
      why: one sentence.
      cure: what to change.
    """

    id: str
    why: str
    cure: str


class Flags(NamedTuple):
    """What the compiler's flags allow.

    Attributes:
      missing: the reason to give where the program allows more than the compiler made
        of it, and flags are missing; None where none is.
      early_start: whether exchanges were told to start as early as they can.
    """

    missing: Reason | None
    early_start: bool


REASONS = {
    reason.id: reason
    for reason in (
        Reason(
            "nothing-sent",
            "The program holds no collective.",
            "Certify for two devices or more, with the name of the workers' axis.",
        ),
        Reason(
            "conditional",
            "A collective sits in a conditional, which ends before anything else runs.",
            "Decide in Python: compile a program for the rounds that send and one for "
            "those that do not, or use make_round, which always sends, or "
            "every(..., streamed=True), which sends a piece in each step.",
        ),
        Reason(
            "in-loop",
            "A collective sits in the loop of the local steps, so every step waits "
            "for one.",
            "Send once a round, before the loop, or with streamed=True a piece in each "
            "step, which no step waits for. Synchronous SGD cannot be hidden; "
            "CoCoD-SGD can.",
        ),
        Reason(
            "reduced-metric",
            "A second reduction needs the results of the local steps, such as the mean "
            "of the loss. The compiler merges it with the exchange, which then waits "
            "for the steps too.",
            "Return the metrics of each worker and reduce them outside of the round.",
        ),
        Reason(
            "waits-for-steps",
            "The collective needs the results of the local steps.",
            "Send the snapshot that was taken before the steps.",
        ),
        Reason(
            "steps-wait",
            "The local steps need what the collective brings, as in Local SGD "
            "(delay 0).",
            "Merge after the steps: a period and a delay of 2 or more.",
        ),
        Reason(
            "no-steps",
            "The program has nothing to hide a collective behind: no loop of local "
            "steps, and no matrix product.",
            "Put the exchange and the local steps into one program, the steps as one "
            "lax.scan.",
        ),
        Reason(
            "scheduler-off",
            "The compiler's latency-hiding scheduler is off for this GPU, and "
            "collectives run alone.",
            "Give jax.jit compiler_options=cj.compiler_options(), or set XLA_FLAGS="
            f"--{SCHEDULER}=true for jax.pmap. "
            'certify(..., compiler_options=cj.compiler_options("gpu")) tries it.',
        ),
        Reason(
            "tpu-flags",
            "The compiler for TPUs hides an all-reduce only if flags tell it to, other "
            "ones in each generation.",
            "Give jax.jit compiler_options=cj.compiler_options(); for jax.pmap set "
            "LIBTPU_INIT_ARGS to the same flags before JAX starts. "
            'certify(..., compiler_options=cj.compiler_options("v5e")) tries it.',
        ),
        Reason(
            "many-buffers",
            "Several collectives share the round, and only one can be in flight beside "
            "the local steps.",
            "Send one flat buffer (jax.flatten_util.ravel_pytree), as cj.mean does.",
        ),
        Reason(
            "chained",
            "A collective needs what another one brings, and no local step stands "
            "between them: only one of the two is hidden.",
            "Let steps run between them. A round does with a delay of 2 or more, and a "
            "streamed one begins the second in the next step, if the exchange has its "
            "send in parts (Exchange.phases), as cj.exchanges.narrow has.",
        ),
        Reason(
            "partly",
            "A collective is in flight beside a part only of the steps that it could "
            "run beside. A loop of one step is none to the compiler, which then sends "
            "in the middle of that step, as late as it thinks it can afford.",
            "Let two steps or more run beside it: a delay of 2, and a period of at "
            "least that; or compile with cj.compiler_options().",
        ),
        Reason(
            "starts-late",
            "The exchange starts in the middle of the step, as late as the compiler "
            "thinks it can afford, and a slow network is not what it thinks of.",
            "Give jax.jit compiler_options=cj.compiler_options(); for jax.pmap set "
            f"XLA_FLAGS='{as_xla_flags(EARLY_START)}' before JAX starts.",
        ),
        Reason(
            "ends-early",
            "What needs the exchange alone runs before the step is over, and the "
            "exchange has to end before it.",
            "Put what arrives and the gradients behind one "
            "jax.lax.optimization_barrier, as every(..., streamed=True) does.",
        ),
        Reason(
            "inner-collectives",
            "The devices of a worker communicate in the local steps, and the compiler "
            "keeps no other collective in flight.",
            "Stream the exchange (streamed=True), and compile with "
            "cj.compiler_options(); or give each worker one device, where the model "
            "fits on it. On v5e neither of the first two was enough.",
        ),
        Reason(
            "compiler",
            "Nothing in the program forbids the overlap, but the compiler did not "
            "schedule it.",
            "Look at the compiled text; memory near the device's limit and flags in "
            "XLA_FLAGS can both do this. On TPUs an exchange of less than 64 kB can, "
            "too: it stays synchronous.",
        ),
    )
}


# The share of the steps that counts as all of them: a collective starts after the first
# kernels of a step.
_WHOLE = 0.9


def diagnose(
    flows: tuple[CollectiveFlow, ...], schedule: Schedule, flags: Flags
) -> tuple[Reason, ...]:
    """Why something is exposed; empty when all is hidden.

    Args:
      flows: what the program allows.
      schedule: what the compiler made of it. It has the last word on *whether*
        something is exposed; the data flow explains it.
      flags: what they allowed the compiler.
    """
    if not schedule.collectives:
        return (REASONS["nothing-sent"],)
    flows = tuple(f for f in flows if not f.inside_worker)
    if not schedule.steps:
        found = _of_one_step(flows, schedule.collectives, flags.early_start)
    elif all(c.hidden for c in schedule.collectives):
        return (REASONS["partly"],) if _in_part(flows, schedule) else ()
    else:
        found = _of_steps(flows)
    if "compiler" in found and flags.missing:
        return (flags.missing,)
    if found == ["compiler"]:
        found = [_by_the_compiler(schedule)]
    return tuple(REASONS[name] for name in found)


def _of_steps(flows: tuple[CollectiveFlow, ...]) -> list[str]:
    """Why a collective has no local steps beside it."""
    once = [f for f in flows if not f.in_conditional and not f.in_loop]
    late = [f for f in once if f.before and not f.beside]
    causes = {
        "conditional": any(f.in_conditional for f in flows),
        "in-loop": any(f.in_loop for f in flows),
        "reduced-metric": late and any(not f.before for f in once),
        "waits-for-steps": late and all(f.before for f in once),
        "steps-wait": any(f.after and not f.before and not f.beside for f in once),
        "no-steps": any(not f.all_work for f in once),
    }
    found = [name for name, holds in causes.items() if holds]
    return found or (["chained"] if _chained(flows) else ["compiler"])


def _of_one_step(
    flows: tuple[CollectiveFlow, ...],
    collectives: tuple[Collective, ...],
    early_start: bool,
) -> list[str]:
    """Why a collective has only a part of its step beside it; empty when it has all."""
    beside = [c.beside for c in collectives]
    # The compiler may fuse what the mean waits for into what needs it. Only the flow
    # then tells that more could have run beside the exchange.
    allowed = min((f.beside / f.all_work for f in flows if f.all_work), default=0.0)
    has_products = all(b.products >= _WHOLE * allowed for b in beside)
    is_whole = has_products and all(
        b.operations and b.work >= _WHOLE * b.possible for b in beside
    )
    if is_whole and all(b.possible >= 0.5 for b in beside):
        return []
    if not flows:  # the partitioner wrote them, and only the schedule knows them
        names = {"conditional": "conditional", "loop": "in-loop"}
        places = {c.place for c in collectives} & names.keys()
        return [names[place] for place in sorted(places)] or ["compiler"]
    late = [f for f in flows if f.before and not f.in_conditional]
    early = [f for f in flows if not f.before and f.after > f.beside]
    is_metric = bool(late) and any(f.beside and not f.before for f in flows)
    causes = {
        "conditional": any(f.in_conditional for f in flows),
        "reduced-metric": is_metric,
        "in-loop": not is_metric
        and any(f.in_loop and (f.before or f in early) for f in flows),
        "waits-for-steps": not is_metric and any(not f.in_loop for f in late),
        "steps-wait": any(not f.in_loop for f in early),
        # A loop that communicates hides nothing, but it is a loop of steps.
        "no-steps": not any(f.in_loop for f in flows)
        and any(not f.all_work for f in flows),
    }
    found = [name for name, holds in causes.items() if holds]
    if found or is_whole:  # where the optimizer is most of the work, it is a small part
        return found
    if _chained(flows):
        return ["chained"]
    if any(not b.operations for b in beside):
        return ["compiler"]
    if any(b.missed_before > (1 - _WHOLE) * b.possible for b in beside):
        found += ["compiler" if early_start else "starts-late"]
    if any(b.missed_after > (1 - _WHOLE) * b.possible for b in beside) or not found:
        found += ["ends-early"]
    return found


def _chained(flows: tuple[CollectiveFlow, ...]) -> bool:
    return any(f.chained for f in flows)


def _by_the_compiler(schedule: Schedule) -> str:
    """Why the compiler, no flag missing, does not use the overlap that it may."""
    if len(schedule.collectives) > 1:
        return "many-buffers"
    busy = any(c.place == "loop" for c in schedule.inside_workers)
    return "inner-collectives" if busy else "compiler"


def _in_part(flows: tuple[CollectiveFlow, ...], schedule: Schedule) -> bool:
    """Whether a collective misses some of the steps that it could run beside."""
    taken = sorted(c.steps for c in schedule.collectives)
    allowed = sorted(f.beside for f in flows if f.beside)
    if len(taken) != len(allowed):  # some were combined; each may take the least
        allowed = [min(allowed, default=0)] * len(taken)
    return any(t < _WHOLE * a for t, a in zip(taken, allowed, strict=True))
