"""Checks of merge rules and inner optimizers, for your own as well as ours.

Each function raises AssertionError with a sentence that says what does not hold.
:func:`check_rule` runs all the invariants of a rule, :func:`check_inner` a test of the
optimizer that takes the local steps.
"""

from cocod_jax.testing._inner import check_inner as check_inner
from cocod_jax.testing._rules import assert_fixed_point as assert_fixed_point
from cocod_jax.testing._rules import (
    assert_identical_workers_agree as assert_identical_workers_agree,
)
from cocod_jax.testing._rules import assert_mean_preserved as assert_mean_preserved
from cocod_jax.testing._rules import assert_order_irrelevant as assert_order_irrelevant
from cocod_jax.testing._rules import assert_own_weights as assert_own_weights
from cocod_jax.testing._rules import assert_workers_approach as assert_workers_approach
from cocod_jax.testing._rules import check_rule as check_rule
