"""Conditions of tests."""

import pytest

from cocod_jax.certify import compiler_available

needs_compiler = pytest.mark.skipif(
    not compiler_available(),
    reason="the compiler for GPUs is not installed: "
    "python -m cocod_jax.certify --install",
)
needs_tpu_compiler = pytest.mark.skipif(
    not compiler_available("tpu"),
    reason="the compiler for TPUs is not installed: "
    "python -m cocod_jax.certify --install tpu",
)
