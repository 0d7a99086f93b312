"""The devices that workers run on: GPUs that are there, or CPU devices."""

import os

import jax


def start_devices(workers: int | None) -> list[jax.Device]:
    """One device for each worker. Call it before anything else uses JAX.

    Args:
      workers: how many; None takes all GPUs, or 4 CPU devices where there are none.

    Raises:
      ValueError: when there are fewer accelerators than workers.
    """
    # Many CPU devices share few cores: one may reach an all-reduce long before the
    # last does, and JAX would give up on it after 40 seconds.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    jax.config.update("jax_num_cpu_devices", workers or 4)
    devices = jax.devices()
    if workers is not None and workers > len(devices):
        raise ValueError(
            f"workers={workers}, but there are {len(devices)} {devices[0].platform} "
            "devices; set JAX_PLATFORMS=cpu to run the workers on CPU devices."
        )
    return devices[:workers]
