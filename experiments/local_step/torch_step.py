"""PyTorch's local steps on this core; reads a line for each turn, and answers in JSON.

It needs nothing but torch, and runs in an environment of its own.
"""

# pyrefly: ignore-errors
# torch is no dependency of this project: the checker cannot see it.
import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent / "overlap"))
import torch_worker  # the model is that of the overlap's peers


def operations(take) -> dict[str, float]:
    """Seconds of each kind of operator itself, longest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        take()
    seconds = {e.key: e.self_cpu_time_total / 1e6 for e in found.key_averages()}
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return {kind: s for kind, s in longest if s >= 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    step = torch_worker.local_steps()

    def take() -> None:
        for _ in range(steps):
            step()

    take()
    for line in sys.stdin:
        if line.strip() == "profile":
            said = {"operations": operations(take)}
        else:
            start = time.perf_counter()
            take()
            said = {"seconds_per_step": (time.perf_counter() - start) / steps}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
