"""From one worker to N and back, and workers of unequal speed."""

from cocod_jax.workers._agreement import check_agreement as check_agreement
from cocod_jax.workers._capability import batch_shares as batch_shares
from cocod_jax.workers._capability import gather_capabilities as gather_capabilities
from cocod_jax.workers._capability import measure_capability as measure_capability
from cocod_jax.workers._capability import token_weights as token_weights
from cocod_jax.workers._consensus import check_equal_start as check_equal_start
from cocod_jax.workers._consensus import consensus as consensus
from cocod_jax.workers._consensus import consensus_model_state as consensus_model_state
from cocod_jax.workers._place import place as place
from cocod_jax.workers._place import replicate as replicate
from cocod_jax.workers._place import reweight as reweight
from cocod_jax.workers._resize import Resized as Resized
from cocod_jax.workers._resize import resize as resize
