"""The round: when a snapshot is sent and merged, and what a local step is."""

from cocod_jax.rounds import plans as plans
from cocod_jax.rounds._make_round import make_round as make_round
from cocod_jax.rounds._micro_batches import MicroBatches as MicroBatches
from cocod_jax.rounds._round import Round as Round
from cocod_jax.rounds._types import MergeMetrics as MergeMetrics
from cocod_jax.rounds._types import RoundMetrics as RoundMetrics
from cocod_jax.rounds._types import RoundState as RoundState
from cocod_jax.rounds._types import StepMetrics as StepMetrics
