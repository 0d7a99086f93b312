"""The overlap certificate: what hides the communication, read from the compiler.

>>> from cocod_jax.certify import certify, dataflow

:func:`dataflow` reads what a program allows, on any machine. :func:`certify`
compiles the program for GPUs or TPUs, which need not exist, and reads what the compiler
did. Install the compiler for NVIDIA GPUs, or that for TPUs, first, once::

    python -m cocod_jax.certify --install
    python -m cocod_jax.certify --install tpu

From a shell, for a script that has a function ``certifiable`` (see
:mod:`cocod_jax.certify.__main__`)::

    python -m cocod_jax.certify experiments.train --target h100 --devices 8
"""

from cocod_jax.certify._certificate import Certificate as Certificate
from cocod_jax.certify._certificate import ExposedError as ExposedError
from cocod_jax.certify._certify import certify as certify
from cocod_jax.certify._certify import dataflow as dataflow
from cocod_jax.certify._dataflow import CollectiveFlow as CollectiveFlow
from cocod_jax.certify._plugin import compiler_available as compiler_available
from cocod_jax.certify._plugin import install_command as install_command
from cocod_jax.certify._reasons import REASONS as REASONS
from cocod_jax.certify._reasons import Reason as Reason
from cocod_jax.certify._schedule import Beside as Beside
from cocod_jax.certify._schedule import Collective as Collective
from cocod_jax.certify._schedule import Schedule as Schedule
