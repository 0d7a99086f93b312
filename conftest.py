"""Eight CPU devices stand in for eight workers; they must exist before JAX runs."""

import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Shapes are part of the interface: an accidental broadcast is a bug.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile what another one did. A folder for each process: two that write the
# same program at once would spoil it.
_programs = tempfile.TemporaryDirectory(prefix="cocod_jax_tests_")
jax.config.update("jax_compilation_cache_dir", _programs.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402

import cocod_jax as cj  # noqa: E402


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    """The imports that every doctest example starts from."""
    doctest_namespace.update(cj=cj, jax=jax, jnp=jnp, np=np, optax=optax)
