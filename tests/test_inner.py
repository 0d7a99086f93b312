"""Inner optimizers that leave a merge as it is, and some that undo it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from cocod_jax.testing import check_inner

KEEP = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    # What decays of a shift is not undone.
    "weight_decay": optax.adamw(0.1, weight_decay=0.3),
    "warmed_up": optax.adamw(optax.linear_schedule(0, 0.1, 40), weight_decay=0.1),
    "lion": optax.lion(0.01),
    "rmsprop": optax.rmsprop(0.01),
    # Their updates depend on the parameters.
    "adafactor": optax.adafactor(0.01),
    "muon": contrib.muon(0.02),
    "lbfgs": optax.lbfgs(0.1, linesearch=None),
    "polyak": optax.polyak_sgd(),
    "non_negative": optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
}
MORE = {
    "grows": optax.adafactor(),
    "adam": optax.adam(0.01),
    "lamb": optax.lamb(0.01),
    "lars": optax.lars(0.1, weight_decay=1e-3),
    "fromage": optax.fromage(0.1),
    "adan": optax.adan(0.1),
    "noisy": optax.noisy_sgd(0.1, key=0),
    "clipped": optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 4).gradient_transformation(),
    "guarded": optax.apply_if_finite(optax.adam(0.1), 3),
    "injected": optax.inject_hyperparams(optax.sgd)(0.1),
    # They know the distance from the start, and only their rates depend on it.
    "dog": contrib.dog(),
    "prodigy": contrib.prodigy(),
    "momo": contrib.momo(0.1),
}
UNDO = {
    "schedule_free": contrib.schedule_free_sgd(0.1),
    "schedule_free_adamw": contrib.schedule_free_adamw(0.01, warmup_steps=5),
    "cocob": optax.chain(optax.clip(1.0), contrib.cocob()),
    "madgrad": contrib.madgrad(0.01, momentum=0.99),
    "mechanize": contrib.mechanize(optax.sgd(1.0)),
    # Only what is merged within its cycle.
    "sam": contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=5),
}


@pytest.mark.parametrize(
    "name", [*KEEP, *(pytest.param(name, marks=pytest.mark.matrix) for name in MORE)]
)
def test_ordinary_optimizers_leave_a_merge_as_it_is(name):
    check_inner((KEEP | MORE)[name])


@pytest.mark.parametrize("name", UNDO)
def test_copies_of_the_parameters_are_found(name):
    with pytest.raises(AssertionError, match=r"undoes a merge: \d\d+% of a shift of "):
        check_inner(UNDO[name])


def test_the_leaf_of_a_partition_is_named():
    """Its model may be large, and the copy that of a small leaf."""
    params = {"w": jnp.ones([30, 40]), "b": jnp.zeros(()), "frozen": optax.MaskedNode()}
    inner = optax.partition(
        {"w": optax.adam(0.1), "b": contrib.cocob()},
        {"w": "w", "b": "b", "frozen": "b"},
    )
    with pytest.raises(AssertionError, match=r"\d% of a shift of params\['b'\] after"):
        check_inner(inner, params)


def test_what_cannot_be_checked_is_refused():
    no_optimizer: Any = 0.1
    with pytest.raises(TypeError, match=r"optimizer=0\.1 must be an optax transform"):
        check_inner(no_optimizer)
    with pytest.raises(TypeError, match=r"params\['n'\] has the dtype"):
        check_inner(optax.sgd(0.1), {"n": np.arange(3)})
    with pytest.raises(AssertionError, match="do not stay finite"):
        check_inner(optax.sgd(1e38))
