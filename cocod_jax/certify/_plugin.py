"""Where the compiler for NVIDIA GPUs is kept, and how it is installed and loaded.

It comes in two wheels of JAX, with NVIDIA's assembler in a third. They are kept in a
directory of their own: installed in the usual place, JAX would look for a GPU whenever
it starts, and complain about not finding one. The compiler is loaded when a
certificate asks for it, and nothing else changes.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax


def plugin_directory() -> Path:
    """Where the compiler is kept: in this environment, one for each JAX version."""
    return Path(sys.prefix) / "share" / "cocod_jax" / f"cuda12-{jax.__version__}"


_WHEELS = {
    "jax-cuda12-plugin": jax.__version__,
    "jax-cuda12-pjrt": jax.__version__,
    "nvidia-cuda-nvcc-cu12": "12.9.86",
}


def install_command() -> list[str]:
    """The pip command that installs the compiler for the installed JAX."""
    return [
        *(sys.executable, "-m", "pip", "install", "--no-deps"),
        *("--target", str(plugin_directory())),
        *(f"{name}=={version}" for name, version in _WHEELS.items()),
    ]


def installed() -> bool:
    """Whether the compiler is in its directory, all of it."""
    found = metadata.distributions(path=[str(plugin_directory())])
    return _WHEELS.keys() <= {wheel.name for wheel in found}


def compiler_available() -> bool:
    """Whether this environment can compile for GPUs that do not exist."""
    plugins = (entry.name for entry in metadata.entry_points(group="jax_plugins"))
    return installed() or "xla_cuda12" in plugins


def load_compiler() -> None:
    """Registers the compiler with JAX; it needs no GPU and prints nothing.

    Raises:
      ImportError: when it is not installed.
    """
    if not compiler_available():
        raise ImportError(
            "The compiler for NVIDIA GPUs is not installed. It needs no GPU; install "
            "it, outside of JAX's sight, with\n\n    "
            "python -m cocod_jax.certify --install\n\nwhich runs\n\n    "
            + " ".join(install_command())
        )
    if installed():
        sys.path.append(str(plugin_directory()))
    with _without_gpu():
        importlib.import_module("jax_plugins.xla_cuda12").initialize()


@contextlib.contextmanager
def _without_gpu() -> Iterator[None]:
    """Lets the compiler load without a CUDA driver, and silences its complaint."""
    check = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
    asked = os.environ.get(check)
    os.environ[check] = "1"
    stderr = os.dup(2)  # C++ writes to the descriptor, not to sys.stderr
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        del os.environ[check]
        if asked is not None:
            os.environ[check] = asked
