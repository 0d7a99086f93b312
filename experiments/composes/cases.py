"""Every optimizer and transform of optax, and how it is built.

A case is the code that a reader would write; that code is what runs. ``CAVEATS`` says
what to know of some of them. What a round refuses needs no sentence here: the error
has one.
"""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import optax

OPTIMIZERS = """
optax.adabelief(0.1)
optax.adadelta(0.1)
optax.adafactor(0.1)
optax.adagrad(0.1)
optax.adam(0.1)
optax.adamax(0.1)
optax.adamaxw(0.1)
optax.adamw(0.1)
optax.adan(0.1)
optax.amsgrad(0.1)
optax.fromage(0.1)
optax.lamb(0.1)
optax.lars(0.1)
optax.lbfgs(0.1)
optax.lbfgs(0.1, linesearch=None)
optax.lion(0.01)
optax.nadam(0.1)
optax.nadamw(0.1)
optax.noisy_sgd(0.1, key=jax.random.key(0))
optax.novograd(0.1)
optax.optimistic_adam(0.1)
optax.optimistic_adam_v2(0.1)
optax.optimistic_gradient_descent(0.1)
optax.polyak_sgd()
optax.radam(0.1)
optax.rmsprop(0.1)
optax.rprop(0.01)
optax.sgd(0.1, momentum=0.9)
optax.sign_sgd(0.01)
optax.signum(0.01)
optax.sm3(0.1)
optax.yogi(0.1)
""".strip().splitlines()

CONTRIB = """
optax.contrib.acprop(0.1)
optax.contrib.ademamix(0.1)
optax.contrib.adopt(0.1)
optax.contrib.cocob()
optax.contrib.dadapt_adamw()
optax.contrib.dog()
optax.contrib.dowg()
optax.contrib.dpsgd(0.1, l2_norm_clip=1.0, noise_multiplier=0.1, seed=0)
optax.contrib.galore(0.1, rank=2)
optax.contrib.madgrad(0.1)
optax.contrib.mechanize(optax.sgd(0.1))
optax.contrib.momo()
optax.contrib.momo_adam()
optax.contrib.muon(0.1)
optax.contrib.prodigy()
optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))
optax.contrib.scale_by_cocob()
optax.contrib.scale_by_madgrad(0.1)
optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
optax.contrib.schedule_free_adamw(0.1)
optax.contrib.schedule_free_sgd(0.1)
optax.contrib.simplified_ademamix(0.1)
optax.contrib.sophia(0.1)
""".strip().splitlines()

WRAPPERS = """
optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=3)
optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())
optax.conditionally_mask(optax.sgd(0.1), early)
optax.chain(optax.conditionally_transform(optax.clip(1.0), early), optax.sgd(0.1))
optax.flatten(optax.adam(0.1))
optax.inject_hyperparams(optax.adam)(0.1)
optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(0.1)
optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 100))
optax.inject_stateful_hyperparams(optax.adam)(0.1)
optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
gradients_of_fast(optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5))
optax.chain(optax.masked(optax.clip(0.1), only_w), optax.sgd(0.1))
optax.MultiSteps(optax.adam(0.1), 2)
optax.multi_transform({"w": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "w", "b": "b"})
optax.named_chain(("clip", optax.clip(1.0)), ("sgd", optax.sgd(0.1)))
optax.partition({"w": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "w", "b": "b"})
optax.selective_transform(optax.adam(0.1), freeze_mask={"w": False, "b": True})
optax.with_extra_args_support(optax.adam(0.1))
optax.contrib.reduce_on_plateau()
optax.contrib.split_real_and_imaginary(optax.adam(0.1))
""".strip().splitlines()

TRANSFORMS = """
optax.adaptive_grad_clip(0.1)
optax.add_decayed_weights(0.01)
optax.add_noise(0.01, 0.55, key=jax.random.key(0))
optax.apply_every(2)
optax.centralize()
optax.clip(1.0)
optax.clip_by_block_rms(1.0)
optax.clip_by_global_norm(1.0)
optax.ema(0.9)
optax.freeze({"w": False, "b": True})
optax.identity()
optax.monitor({"norm": optax.tree.norm})
optax.monitor({"norm": optax.measure_with_ema(optax.tree.norm, 0.9)})
optax.normalize_by_update_norm()
optax.scale(0.1)
optax.scale_by_adadelta()
optax.scale_by_adam()
optax.scale_by_adamax()
optax.scale_by_adan()
optax.scale_by_amsgrad()
optax.scale_by_backtracking_linesearch(5)
optax.scale_by_belief()
optax.scale_by_distance_over_gradients()
optax.scale_by_factored_rms()
optax.scale_by_lbfgs()
optax.scale_by_learning_rate(0.1)
optax.scale_by_lion()
optax.scale_by_novograd()
optax.scale_by_optimistic_gradient()
optax.scale_by_param_block_norm()
optax.scale_by_param_block_rms()
optax.scale_by_polyak()
optax.scale_by_radam()
optax.scale_by_rms()
optax.scale_by_rprop(0.1)
optax.scale_by_rss()
optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 100))
optax.scale_by_sign()
optax.scale_by_sm3()
optax.scale_by_stddev()
optax.scale_by_trust_ratio()
optax.scale_by_yogi()
optax.scale_by_zoom_linesearch(5)
optax.set_to_zero()
optax.snapshot("norm", optax.tree.norm)
optax.stateless(lambda updates, params: updates)
optax.stateless_with_tree_map(lambda update, param: update)
optax.trace(0.9)
optax.zero_nans()
optax.contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0))
optax.contrib.hutchinson_estimator_diag_hessian()
optax.contrib.normalize()
optax.contrib.scale_by_acprop()
optax.contrib.scale_by_ademamix()
optax.contrib.scale_by_adopt()
optax.contrib.scale_by_galore(rank=2)
optax.masked(optax.contrib.scale_by_muon(weight_dimension_numbers=matrices), only_w)
optax.contrib.scale_by_simplified_ademamix()
""".strip().splitlines()

# These make something else, and no annotation says so.
NO_TRANSFORMS = (
    "matrix_inverse_pth_root",
    "sigmoid_binary_cross_entropy",
    "schedule_free_eval_params",
    "update_infinity_moment",
    "update_moment",
    "update_moment_per_elem_norm",
)

_COPY = (
    "Its state holds a copy of the parameters, from which it makes the next ones. A "
    "merge moves the parameters alone, and the next steps take it back."
)
_DISTANCE = (
    "Its step size is measured by the distance from its start, which a merge changes. "
    "Nothing is taken back, but workers take steps of different sizes."
)
_FUNCTION = "It calls the loss, which a local step does not pass to it."
_EXAMPLES = "It takes gradients of single examples; those of a round are of a batch."
_NOISE = "Each worker draws noise of its own, with a key that `replicate` makes for it."
_PAIRS = (
    "It learns the curvature from what a step changed, and takes a merge for a part of "
    "the step before it."
)
_HYPERPARAMS = (
    "With bfloat16 parameters it rounds Adam's b2 to 1, also outside of a round, and "
    'gives NaN: keep it out with `static_args=("b1", "b2", "eps", "eps_root")`.'
)
_MEASURE = "Its state has fewer leaves at first than later on: take `optax.snapshot`."

_CURED = (
    'optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))'
    "(0.1)"
)

# By the whole of a case, or else by the names in it.
CAVEATS = {
    _CURED: "",
    "optax.lbfgs(0.1)": f"{_FUNCTION} Take `linesearch=None`.",
    "optax.add_noise": _NOISE,
    "optax.apply_if_finite": "Inside the round, never around `every`: workers that "
    "skip would leave out an exchange. What it lets through after too many errors "
    "reaches all workers.",
    "optax.contrib.cocob": _COPY,
    "optax.contrib.differentially_private_aggregate": _EXAMPLES,
    "optax.contrib.dog": _DISTANCE,
    "optax.contrib.dowg": _DISTANCE,
    "optax.contrib.dpsgd": _EXAMPLES,
    "optax.contrib.hutchinson_estimator_diag_hessian": _FUNCTION,
    "optax.contrib.madgrad": _COPY,
    "optax.contrib.mechanize": _COPY,
    "optax.contrib.reduce_on_plateau": "Each worker decides by its own loss, and their "
    "step sizes drift apart: decide outside, by the mean.",
    "optax.contrib.sam": "Only with a period and a delay that are multiples of its "
    "`sync_period`. In between, the parameters are the adversary's; the true ones are "
    "a copy in its state, which no merge reaches.",
    "optax.contrib.scale_by_cocob": _COPY,
    "optax.contrib.scale_by_madgrad": _COPY,
    "optax.contrib.schedule_free": _COPY,
    "optax.contrib.schedule_free_adamw": _COPY,
    "optax.contrib.schedule_free_sgd": _COPY,
    "optax.contrib.sophia": _FUNCTION,
    "optax.keep_params_nonnegative": "The merge comes after the projection: with a "
    "delay, *m* + (*x* \N{MINUS SIGN} *s*) can be negative until the next step.",
    "optax.inject_stateful_hyperparams": _HYPERPARAMS,
    "optax.inject_hyperparams": _HYPERPARAMS,
    "optax.lbfgs": _PAIRS,
    "optax.lookahead": "Its parameters are a pair, and the loss is one of "
    "`params.fast`. The gradient is then a pair too, of which it must be given the "
    "first. A merge averages both, and is kept.",
    "optax.monitor": _MEASURE,
    "optax.noisy_sgd": _NOISE,
    "optax.scale_by_backtracking_linesearch": _FUNCTION,
    "optax.scale_by_lbfgs": _PAIRS,
    "optax.scale_by_zoom_linesearch": _FUNCTION,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer, as a reader would write it.

    Attributes:
      group: a key of ``GROUPS``.
      code: an expression; that of a transform is followed by a step of size 0.1.
    """

    group: str
    code: str

    @property
    def exists(self) -> bool:
        """Whether the optax that is installed has all that the code names."""
        return all(
            hasattr(_home(path), path.split(".")[-1]) for path in named(self.code)
        )

    def build(self) -> optax.GradientTransformation:
        """The optimizer."""
        names = {name: globals()[name] for name in NAMES}
        made = eval(self.code, names)
        step = optax.scale_by_learning_rate(0.1)
        return optax.chain(made, step) if self.group == "transforms" else made

    @property
    def caveat(self) -> str:
        """What to know of it; empty when there is nothing."""
        if self.code in CAVEATS:
            return CAVEATS[self.code]
        about = (CAVEATS[name] for name in sorted(named(self.code) & set(CAVEATS)))
        return " ".join(about)


# What a case may use. The page explains those that are not a library.
NAMES = ("optax", "jax", "early", "gradients_of_fast", "matrices", "only_w")

only_w = {"w": True, "b": False}

GROUPS = {
    "optimizers": OPTIMIZERS,
    "contrib": CONTRIB,
    "wrappers": WRAPPERS,
    "transforms": TRANSFORMS,
}
CASES = tuple(Case(group, code) for group, codes in GROUPS.items() for code in codes)


def named(code: str) -> set[str]:
    """The names of optax in an expression, such as ``optax.contrib.sam``."""
    return set(re.findall(r"\boptax\.[\w.]*\w", code))


def factories() -> set[str]:
    """The public names of optax and optax.contrib that make transforms.

    Most say so by an annotation. What has none counts as well, unless it is known to
    make something else.
    """
    found = set()
    for module in (optax, optax.contrib):
        for name, value in vars(module).items():
            if name.startswith("_") or name in NO_TRANSFORMS:
                continue
            if inspect.isfunction(value) or isinstance(value, functools.partial):
                returned = inspect.signature(value).return_annotation
                unsaid = returned is inspect.Signature.empty
                if unsaid or "GradientTransformation" in str(returned):
                    found.add(f"{module.__name__}.{name}")
            elif inspect.isclass(value) and hasattr(value, "gradient_transformation"):
                found.add(f"{module.__name__}.{name}")
    return found


def early(count: Any) -> Any:
    """A condition on the number of updates."""
    return count < 4


def matrices(params: Any) -> Any:
    """The axes of Muon for a tree of matrices."""
    axes = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map(lambda leaf: axes, params)


def gradients_of_fast(
    lookahead: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lookahead for a loss of ``params.fast``: of the gradient it takes that part."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        return lookahead.update(updates.fast, state, params)

    return optax.GradientTransformationExtraArgs(lookahead.init, update)


def _home(path: str) -> Any:
    """The module that a name of optax stands in."""
    modules = path.split(".")[1:-1]
    return functools.reduce(lambda at, name: getattr(at, name, None), modules, optax)
