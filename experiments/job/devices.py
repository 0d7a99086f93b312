"""The devices that workers run on: GPUs that are there, or CPU devices."""

import os
from collections import Counter

import jax

from experiments.command import UsageError


def start_devices(
    workers: int | None, each: int = 1, processes: int = 1, cpus: int = 1
) -> list[jax.Device]:
    """The devices of all workers. Call it before anything else uses JAX.

    Args:
      workers: how many; None takes all GPUs, or 4 CPU devices where there are none, 8
        where a worker has several.
      each: the devices of a worker.
      processes: among how many processes they are divided, evenly.
      cpus: how many CPU devices are made for each of those that are returned.

    Raises:
      UsageError: a ValueError, when there are fewer accelerators, when several
        processes have others than those of the workers, or were asked for others.
    """
    # Many CPU devices share few cores: one may reach an all-reduce long before the
    # last does, and JAX would give up on it after 40 seconds.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    default = 4 if each == 1 else max(1, 8 // each) * each
    own, rest = divmod(workers * each if workers else default, processes)
    if rest:
        raise UsageError(
            f"workers={workers} of {each} devices cannot be divided evenly between "
            f"{processes} processes; take another number of one of them."
        )
    jax.config.update("jax_num_cpu_devices", own * cpus)
    devices = jax.devices()
    if devices[0].platform == "cpu":
        devices = devices[::cpus]
    wanted = len(devices) // each * each if workers is None else workers * each
    _check_processes(devices, wanted, processes)
    if not each <= wanted <= len(devices):
        raise UsageError(
            f"workers={workers} of {each} devices, but there are {len(devices)} "
            f"{devices[0].platform} devices; set JAX_PLATFORMS=cpu to run the workers "
            "on CPU devices."
        )
    return devices[:wanted]


def devices_beside(devices: list[jax.Device]) -> list[jax.Device] | None:
    """The CPU devices that were made beside these, for ``cpus=2``; None for GPUs."""
    if devices[0].platform != "cpu":
        return None
    every = jax.devices()
    return [every[every.index(device) + 1] for device in devices]


def _check_processes(devices: list[jax.Device], wanted: int, processes: int) -> None:
    """Raises UsageError where a process has others than its part of the devices."""
    if processes == 1:
        return
    counts = Counter(device.process_index for device in devices)
    own = [counts[process] for process in range(processes)]
    if len(set(own)) > 1:
        raise UsageError(
            f"the processes have {own} devices; start all of them with the same "
            "command, on equal hosts."
        )
    if wanted != len(devices):
        raise UsageError(
            f"the workers need {wanted} devices, and {processes} processes have "
            f"{len(devices)}; take as many workers as they have devices for."
        )
