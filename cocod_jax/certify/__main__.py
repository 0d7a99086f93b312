"""The certificate from a shell.

    python -m cocod_jax.certify MODULE --target h100 --devices 8 [MODULE'S OWN ARGS]

``MODULE`` defines a function that builds what it would train::

    def certifiable(argv: list[str], devices: int) -> tuple[fn, *args]

``argv`` are the arguments that this command does not know, ``devices`` is the number
of devices. The function returns what :func:`cocod_jax.certify.certify` takes: a Round
(or one worker's function, or a jitted or pmapped one) and its arguments, or their
shapes. It should compute and download nothing.

Exit status: 0 if all communication is hidden, 1 if something is exposed or the program
cannot be compiled (a traceback says why), 2 when an argument is wrong.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence

import jax

from cocod_jax.certify._certify import TARGETS, certify
from cocod_jax.certify._plugin import (
    COMPILERS,
    install_command,
    installed,
    plugin_directory,
)
from cocod_jax.certify._tpu import TPU
from cocod_jax.execution import compiler_options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocod_jax.certify",
        description="Says whether a module's communication is hidden behind its local "
        "steps. Other arguments are passed on to the module.",
        allow_abbrev=False,
    )
    parser.add_argument("module", nargs="?", help="has a function certifiable")
    parser.add_argument(
        "--target",
        type=str.lower,
        choices=TARGETS,
        help="default: the devices here, or h100",
    )
    parser.add_argument("--devices", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--hosts", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--compiler-options",
        action="store_true",
        help="compile with those of cj.compiler_options, as via='shard_map' does",
    )
    parser.add_argument(
        "--install",
        nargs="?",
        const="gpu",
        choices=COMPILERS,
        help="install a compiler and stop; default: that for NVIDIA GPUs",
    )
    ours, theirs = parser.parse_known_args(argv)
    if ours.install:
        if installed(ours.install):
            print(f"the compiler is there: {plugin_directory(ours.install)}")
            return 0
        return subprocess.call(install_command(ours.install))
    if ours.module is None:
        parser.error("name a module, or --install")
    if ours.module.endswith(".py"):
        parser.error(f"name the module, as python -m does: {ours.module[:-3]}")
    try:
        module = importlib.import_module(ours.module)
    except ModuleNotFoundError as error:
        if error.name != ours.module:
            raise
        parser.error(f"there is no module {ours.module!r}; name it as python -m does")
    if not hasattr(module, "certifiable"):
        parser.error(
            f"{ours.module} has no function certifiable(argv, devices); write one, or "
            "call cocod_jax.certify.certify(round_, state, batches, target='h100')"
        )
    certificate = certify(
        *module.certifiable(theirs, ours.devices),
        target=ours.target,
        hosts=ours.hosts,
        compiler_options=_options(ours.target) if ours.compiler_options else None,
    )
    print(certificate)
    return 0 if certificate.hidden else 1


def _options(target: str | None) -> dict[str, float]:
    """What ``via="shard_map"`` gives the compiler for a target, or on this machine."""
    on_tpu = jax.default_backend() == "tpu" if target is None else target in TPU.targets
    return compiler_options(target if on_tpu else "gpu")


if __name__ == "__main__":
    sys.exit(main())
