"""Data-parallel training that hides communication behind local steps.

>>> import cocod_jax as cj
>>> rule = cj.cocod("workers")

See :func:`make_round` for where to start.
"""

from typing import Any

from cocod_jax import exchanges as exchanges
from cocod_jax import execution as execution
from cocod_jax import observe as observe
from cocod_jax import per_step as per_step
from cocod_jax import rounds as rounds
from cocod_jax import rules as rules
from cocod_jax import style as style
from cocod_jax import testing as testing
from cocod_jax import theory as theory
from cocod_jax import timeline as timeline
from cocod_jax import workers as workers
from cocod_jax.advice import advise as advise
from cocod_jax.exchanges import Exchange as Exchange
from cocod_jax.exchanges import mean as mean
from cocod_jax.execution import compiler_options as compiler_options
from cocod_jax.execution import distribute as distribute
from cocod_jax.measurement import measure as measure
from cocod_jax.observe import DriftAlarm as DriftAlarm
from cocod_jax.observe import loggers as loggers
from cocod_jax.observe import plots as plots
from cocod_jax.observe import summary as summary
from cocod_jax.per_step import every as every
from cocod_jax.per_step import mean_gradients as mean_gradients
from cocod_jax.per_step import stale_mean_gradients as stale_mean_gradients
from cocod_jax.rounds import MicroBatches as MicroBatches
from cocod_jax.rounds import Round as Round
from cocod_jax.rounds import RoundMetrics as RoundMetrics
from cocod_jax.rounds import RoundState as RoundState
from cocod_jax.rounds import make_round as make_round
from cocod_jax.rounds import plans as plans
from cocod_jax.rules import MergeRule as MergeRule
from cocod_jax.rules import cocod as cocod
from cocod_jax.rules import independent as independent
from cocod_jax.workers import consensus as consensus
from cocod_jax.workers import consensus_model_state as consensus_model_state
from cocod_jax.workers import place as place
from cocod_jax.workers import replicate as replicate
from cocod_jax.workers import reweight as reweight

__version__ = "0.1.0"

# What had another name in 0.1, until the next release.
_MOVED = {
    "Advice": "cj.advice.Advice",
    "EveryState": "cj.per_step.EveryState",
    "MergeFn": "described by cj.MergeRule",
    "MergeMetrics": "cj.rounds.MergeMetrics",
    "SendFn": "gone: a rule's exchange sends, see cj.Exchange",
    "StaleMeanGradientsState": "cj.per_step.StaleMeanGradientsState",
    "StepMetrics": "cj.rounds.StepMetrics",
    "Summary": "cj.observe.Summary",
    "batch_shares": "cj.workers.batch_shares",
    "check_equal_start": "cj.workers.check_equal_start",
    "device_pairs": "cj.execution.device_pairs",
    "gather_capabilities": "cj.workers.gather_capabilities",
    "measure_capability": "cj.workers.measure_capability",
}


def __getattr__(name: str) -> Any:
    """Says where a name of the last release is now.

    Raises:
      AttributeError: always.
    """
    if name in _MOVED:
        raise AttributeError(f"cj.{name} is now {_MOVED[name]}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
