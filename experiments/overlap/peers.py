"""PyTorch as a peer: its own virtual environment, the same links and cores."""

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.cluster.network import Network
from experiments.cluster.processes import run_program

REQUIREMENTS = ("torch==2.13.0", "numpy")
_SCRIPT = Path(__file__).with_name("torch_worker.py")


def torch_python(folder: Path) -> Path:
    """The interpreter of a virtual environment with PyTorch, made on first use.

    It is what ``python -m venv FOLDER`` and then
    ``FOLDER/bin/pip install torch==2.13.0 numpy`` make. From PyPI that brings the
    libraries for GPUs too; without them it is smaller, with the variable
    ``PIP_INDEX_URL=https://download.pytorch.org/whl/cpu`` set.

    Args:
      folder: where it is or will be.

    Raises:
      RuntimeError: when pip fails, with the end of what it said.
    """
    python = folder / "bin" / "python"
    complete = folder / "complete"  # written last: a half-made one is completed
    if not complete.exists():
        print(f"Installing {' and '.join(REQUIREMENTS)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, symlinks=True)
        argv = [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"PyTorch did not install: {done.stderr[-2000:]}")
        complete.touch()
    return python


def run_torch(
    network: Network,
    python: Path,
    *,
    period: int,
    repeats: int,
    show: Callable[..., None],
    timeout: float = 3600.0,
) -> list[dict[str, Any]]:
    """Seconds per round of PyTorch's algorithms, one record of each per worker.

    Args:
      network: where they run; entered.
      python: an interpreter that has PyTorch.
      period: local steps per round of its local SGD.
      repeats: interleaved measurements of each algorithm.
      show: takes the progress, as in :func:`run_program`.
      timeout: seconds that the whole run has.
    """
    return run_program(
        network,
        [str(python), str(_SCRIPT)],
        timeout=timeout,
        show=show,
        period=period,
        repeats=repeats,
    )
