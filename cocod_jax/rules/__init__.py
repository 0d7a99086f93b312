"""Merge rules: what a worker does with what arrives. One rule, one file."""

from cocod_jax.rules._base import MergeRule as MergeRule
from cocod_jax.rules._base import RuleState as RuleState
from cocod_jax.rules.cocod import cocod as cocod
from cocod_jax.rules.diloco import DiLoCoState as DiLoCoState
from cocod_jax.rules.diloco import diloco as diloco
from cocod_jax.rules.easgd import easgd as easgd
from cocod_jax.rules.independent import independent as independent
from cocod_jax.rules.overlap_local_sgd import (
    OverlapLocalSGDState as OverlapLocalSGDState,
)
from cocod_jax.rules.overlap_local_sgd import overlap_local_sgd as overlap_local_sgd
from cocod_jax.rules.slowmo import slowmo as slowmo
from cocod_jax.rules.vrl_sgd import vrl_sgd as vrl_sgd
