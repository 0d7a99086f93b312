"""Where the compilers for devices that are not there are kept, installed and loaded.

The one for NVIDIA GPUs comes in two wheels of JAX, with NVIDIA's assembler in a third;
the one for TPUs is a wheel of Google's. Each is kept in a directory of its own:
installed in the usual place, JAX would look for its devices whenever it starts, and
complain about not finding one. A compiler is loaded when a certificate asks for it, and
nothing else changes.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import jax

from cocod_jax._checks import check_choices

Kind: TypeAlias = Literal["gpu", "tpu"]


class _Compiler(NamedTuple):
    """A compiler in wheels of its own.

    Attributes:
      devices: what it compiles for, in words.
      folder: its directory, to which JAX's version is added.
      wheels: names and versions.
      option: of ``python -m cocod_jax.certify``, which installs it.
    """

    devices: str
    folder: str
    wheels: dict[str, str]
    option: str


def _pinned(name: str) -> str:
    """The version that this JAX asks for, such as ``0.0.42.*``."""
    required = metadata.requires("jax") or []
    pins = (line.partition(";")[0].split("==") for line in required if "==" in line)
    return next((pin[1].strip() for pin in pins if pin[0].strip() == name), "*")


COMPILERS: dict[Kind, _Compiler] = {
    "gpu": _Compiler(
        "NVIDIA GPUs",
        "cuda12",
        {
            "jax-cuda12-plugin": jax.__version__,
            "jax-cuda12-pjrt": jax.__version__,
            "nvidia-cuda-nvcc-cu12": "12.9.86",
        },
        "--install",
    ),
    "tpu": _Compiler("TPUs", "libtpu", {"libtpu": _pinned("libtpu")}, "--install tpu"),
}


def plugin_directory(kind: Kind = "gpu") -> Path:
    """Where a compiler is kept: in this environment, one for each JAX version."""
    check_choices(COMPILERS, kind=kind)
    name = f"{COMPILERS[kind].folder}-{jax.__version__}"
    return Path(sys.prefix) / "share" / "cocod_jax" / name


def install_command(kind: Kind = "gpu") -> list[str]:
    """The pip command that installs a compiler for the installed JAX.

    Args:
      kind: ``"gpu"`` for NVIDIA GPUs, or ``"tpu"``.

    Raises:
      ValueError: when it is another one.
    """
    check_choices(COMPILERS, kind=kind)
    wheels = COMPILERS[kind].wheels.items()
    return [
        *(sys.executable, "-m", "pip", "install", "--no-deps"),
        *("--target", str(plugin_directory(kind))),
        *(f"{name}=={version}" for name, version in wheels),
    ]


def installed(kind: Kind = "gpu") -> bool:
    """Whether a compiler is in its directory, all of it."""
    found = metadata.distributions(path=[str(plugin_directory(kind))])
    return COMPILERS[kind].wheels.keys() <= {wheel.name for wheel in found}


def compiler_available(kind: Kind = "gpu") -> bool:
    """Whether this environment can compile for devices that do not exist.

    Args:
      kind: ``"gpu"`` for NVIDIA GPUs, or ``"tpu"``.
    """
    if kind == "tpu":
        return installed(kind) or util.find_spec("libtpu") is not None
    plugins = (entry.name for entry in metadata.entry_points(group="jax_plugins"))
    return installed(kind) or "xla_cuda12" in plugins


def check_available(kind: Kind) -> None:
    """Raises ImportError, which says how to install the compiler, if it is missing."""
    if compiler_available(kind):
        return
    compiler = COMPILERS[kind]
    raise ImportError(
        f"The compiler for {compiler.devices} is not installed. It needs none of "
        "them; install it, outside of JAX's sight, with\n\n    "
        f"python -m cocod_jax.certify {compiler.option}\n\nwhich runs\n\n    "
        + " ".join(install_command(kind))
    )


def load_compiler() -> None:
    """Registers the compiler for NVIDIA GPUs with JAX; it prints nothing.

    Raises:
      ImportError: when it is not installed.
    """
    check_available("gpu")
    if installed():
        sys.path.append(str(plugin_directory()))
    with without_a_word(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1"):
        importlib.import_module("jax_plugins.xla_cuda12").initialize()


@contextlib.contextmanager
def without_a_word(**environment: str) -> Iterator[None]:
    """Sets variables while a compiler loads, and silences its complaints."""
    asked = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    stderr = os.dup(2)  # C++ writes to the descriptor, not to sys.stderr
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        for name, value in asked.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
