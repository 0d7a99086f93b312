"""PyTorch on the same links: DDP, its local SGD, and partial averaging a step late.

It needs nothing but torch, and runs in an environment of its own.
"""

# pyrefly: ignore-errors
# torch is no dependency of this project: the checker cannot see it.
import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import (
    PeriodicModelAverager,
)
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

Step = Callable[[], object]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 for 32x32 images, 11,173,962 parameters, in channels-last order."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    layers += [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """One step on a synthetic batch that stays the same."""
    images = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, [16])

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)


def local_steps() -> Step:
    """Tc: no communication at all."""
    model = resnet18()
    return training_step(model, sgd(model))


def ddp(bucket_mb: float, broadcast_buffers: bool = True) -> Step:
    """Synchronous SGD: each bucket of gradients leaves as soon as it is ready.

    By default the first worker's batch statistics go to all others in every step.
    """
    model = DistributedDataParallel(
        resnet18(),
        bucket_cap_mb=bucket_mb,
        broadcast_buffers=broadcast_buffers,
        gradient_as_bucket_view=True,
    )
    return training_step(model, sgd(model))


def local_sgd(period: int, through_ddp: bool) -> Step:
    """Local SGD: the models are averaged after every ``period`` steps.

    PyTorch documents it with DDP and a hook that leaves each worker its own gradients;
    without DDP the same steps have less to do.
    """
    model = resnet18()
    if through_ddp:
        state = PostLocalSGDState(
            process_group=None,
            subgroup=None,
            start_localSGD_iter=0,
            post_local_gradient_allreduce=False,
        )
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        model.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(period=period, warmup_steps=0)
    return training_step(model, PostLocalSGDOptimizer(sgd(model), averager))


def partial_averaging(period: int) -> Step:
    """A part of every parameter in each step, merged one step late.

    PyTorch has no such thing. It is what DreamDDP and Streaming DiLoCo do with groups
    of layers, with a part of each parameter in place of them, so that all messages have
    the same length, and with the merge that keeps the step's own progress.
    """
    model = resnet18()
    train = training_step(model, sgd(model))
    parts = [
        # As the values lie in memory: channels-last is no view of one axis.
        parameter.data.as_strided((parameter.numel(),), (1,)).tensor_split(period)
        for parameter in model.parameters()
    ]
    turn = 0

    def step() -> None:
        nonlocal turn
        pieces = [part[turn] for part in parts]
        snapshot = torch.cat(pieces)
        mean = snapshot.clone()
        sending = dist.all_reduce(mean, async_op=True)
        train()
        sending.wait()
        moved = mean.div_(dist.get_world_size()).sub_(snapshot)
        sizes = [piece.numel() for piece in pieces]
        for piece, correction in zip(pieces, moved.split(sizes), strict=True):
            piece.add_(correction)
        turn = (turn + 1) % period

    return step


def exchange() -> Step:
    """Tm: one all-reduce of as many bytes as the model has."""
    flat = torch.zeros(sum(p.numel() for p in resnet18().parameters()))
    return lambda: dist.all_reduce(flat)


def seconds(step: Step, times: int) -> float:
    """Seconds for all calls, from a common start to the end of the last worker."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(times):
        step()
    dist.barrier()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--address", required=True, help="HOST:PORT of worker 0")
    parser.add_argument("--period", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{args.address}",
        rank=args.rank,
        world_size=args.workers,
        timeout=timedelta(seconds=120),
    )
    algorithms = {
        "local steps": local_steps(),
        "exchange": exchange(),
        "DDP": ddp(25),  # the default
        "DDP, 5 MB buckets": ddp(5),
        "DDP, 1 MB buckets": ddp(1),
        "DDP, 1 MB buckets, no broadcast": ddp(1, broadcast_buffers=False),
        "local SGD": local_sgd(args.period, through_ddp=True),
        "local SGD without DDP": local_sgd(args.period, through_ddp=False),
        "partial averaging, a step late": partial_averaging(args.period),
    }
    in_a_round = {name: args.period for name in algorithms} | {"exchange": 1}
    # DDP lays its buckets out anew after the first step.
    for name, step in algorithms.items():
        seconds(step, in_a_round[name])
    times: dict[str, list[float]] = {name: [] for name in algorithms}
    for repeat in range(args.repeats):
        words = f"PyTorch: repeat {repeat + 1} of {args.repeats}"
        told = {"words": words, "done": repeat, "total": args.repeats}
        print(json.dumps({"progress": told}), flush=True)
        for name, step in algorithms.items():
            times[name].append(seconds(step, in_a_round[name]))
    for name, values in times.items():
        median = statistics.median(values)
        record = {"algorithm": name, "seconds_per_round": median, "repeats": values}
        print(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
