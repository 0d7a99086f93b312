"""Training loops that call an optimizer step by step: optax transforms."""

from cocod_jax.per_step._acco import ACCOState as ACCOState
from cocod_jax.per_step._acco import acco as acco
from cocod_jax.per_step._every import every as every
from cocod_jax.per_step._gradients import (
    StaleMeanGradientsState as StaleMeanGradientsState,
)
from cocod_jax.per_step._gradients import mean_gradients as mean_gradients
from cocod_jax.per_step._gradients import stale_mean_gradients as stale_mean_gradients
from cocod_jax.per_step._moments import AveragedMomentsState as AveragedMomentsState
from cocod_jax.per_step._moments import averaged_moments as averaged_moments
from cocod_jax.per_step._reset import ResetEveryState as ResetEveryState
from cocod_jax.per_step._reset import reset_every as reset_every
from cocod_jax.per_step._state import EveryState as EveryState
