"""Merge rules: what a worker does with what arrives. One rule, one file."""

from cocod_jax.rules._base import MergeRule as MergeRule
from cocod_jax.rules._base import RuleState as RuleState
from cocod_jax.rules.cocod import cocod as cocod
from cocod_jax.rules.independent import independent as independent
