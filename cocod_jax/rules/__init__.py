"""Merge rules: what a worker does with what arrives. One rule, one file."""

from cocod_jax.rules._base import MergeFn as MergeFn
from cocod_jax.rules._base import MergeRule as MergeRule
from cocod_jax.rules._base import SendFn as SendFn
from cocod_jax.rules.cocod import cocod as cocod
from cocod_jax.rules.independent import independent as independent
