"""Merge rules: what a worker does with what arrives. One rule, one file."""

from cocod_jax.rules._base import MergeRule as MergeRule
from cocod_jax.rules._base import RuleState as RuleState
from cocod_jax.rules.co2 import CO2State as CO2State
from cocod_jax.rules.co2 import co2 as co2
from cocod_jax.rules.cocod import cocod as cocod
from cocod_jax.rules.delay_compensated import delay_compensated as delay_compensated
from cocod_jax.rules.diloco import DiLoCoState as DiLoCoState
from cocod_jax.rules.diloco import diloco as diloco
from cocod_jax.rules.eager_diloco import EagerDiLoCoState as EagerDiLoCoState
from cocod_jax.rules.eager_diloco import eager_diloco as eager_diloco
from cocod_jax.rules.easgd import easgd as easgd
from cocod_jax.rules.fragments import fragments as fragments
from cocod_jax.rules.independent import independent as independent
from cocod_jax.rules.loscar import loscar as loscar
from cocod_jax.rules.overlap_local_sgd import (
    OverlapLocalSGDState as OverlapLocalSGDState,
)
from cocod_jax.rules.overlap_local_sgd import overlap_local_sgd as overlap_local_sgd
from cocod_jax.rules.slowmo import slowmo as slowmo
from cocod_jax.rules.sparse_loco import sparse_loco as sparse_loco
from cocod_jax.rules.vrl_sgd import vrl_sgd as vrl_sgd
