"""Data-parallel training that hides communication behind local steps.

>>> import cocod_jax as cj
>>> rule = cj.cocod("workers")

See :func:`make_round` for where to start.
"""

from cocod_jax import loggers as loggers
from cocod_jax import plots as plots
from cocod_jax import style as style
from cocod_jax import testing as testing
from cocod_jax import theory as theory
from cocod_jax import timeline as timeline
from cocod_jax.advice import Advice as Advice
from cocod_jax.advice import advise as advise
from cocod_jax.alarms import DriftAlarm as DriftAlarm
from cocod_jax.capability import batch_shares as batch_shares
from cocod_jax.capability import gather_capabilities as gather_capabilities
from cocod_jax.capability import measure_capability as measure_capability
from cocod_jax.exchange import Exchange as Exchange
from cocod_jax.exchange import mean as mean
from cocod_jax.execution import device_pairs as device_pairs
from cocod_jax.execution import distribute as distribute
from cocod_jax.gradients import StaleMeanGradientsState as StaleMeanGradientsState
from cocod_jax.gradients import mean_gradients as mean_gradients
from cocod_jax.gradients import stale_mean_gradients as stale_mean_gradients
from cocod_jax.micro_batches import MicroBatches as MicroBatches
from cocod_jax.per_step import EveryState as EveryState
from cocod_jax.per_step import every as every
from cocod_jax.round import MergeMetrics as MergeMetrics
from cocod_jax.round import Round as Round
from cocod_jax.round import RoundMetrics as RoundMetrics
from cocod_jax.round import RoundState as RoundState
from cocod_jax.round import StepMetrics as StepMetrics
from cocod_jax.round import make_round as make_round
from cocod_jax.rules import MergeFn as MergeFn
from cocod_jax.rules import MergeRule as MergeRule
from cocod_jax.rules import SendFn as SendFn
from cocod_jax.rules import cocod as cocod
from cocod_jax.rules import independent as independent
from cocod_jax.summary import Summary as Summary
from cocod_jax.summary import summary as summary
from cocod_jax.workers import check_equal_start as check_equal_start
from cocod_jax.workers import consensus as consensus
from cocod_jax.workers import consensus_model_state as consensus_model_state
from cocod_jax.workers import place as place
from cocod_jax.workers import replicate as replicate
from cocod_jax.workers import reweight as reweight

__version__ = "0.1.0"
