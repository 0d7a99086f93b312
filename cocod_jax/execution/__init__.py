"""What runs a round: devices, one program or several, compiler flags."""

from cocod_jax.execution._distribute import device_pairs as device_pairs
from cocod_jax.execution._distribute import distribute as distribute
from cocod_jax.execution._flags import compiler_options as compiler_options
from cocod_jax.execution.checkpoint import Checkpoints as Checkpoints
from cocod_jax.execution.checkpoint import Restored as Restored
