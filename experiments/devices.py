"""The devices that workers run on: GPUs that are there, or CPU devices."""

import os

import jax


def start_devices(workers: int | None, each: int = 1) -> list[jax.Device]:
    """The devices of all workers. Call it before anything else uses JAX.

    Args:
      workers: how many; None takes all GPUs, or 4 CPU devices where there are none, 8
        where a worker has several.
      each: the devices of a worker.

    Raises:
      ValueError: when there are fewer accelerators.
    """
    # Many CPU devices share few cores: one may reach an all-reduce long before the
    # last does, and JAX would give up on it after 40 seconds.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    default = 4 if each == 1 else max(1, 8 // each) * each
    jax.config.update("jax_num_cpu_devices", workers * each if workers else default)
    devices = jax.devices()
    wanted = len(devices) // each * each if workers is None else workers * each
    if not each <= wanted <= len(devices):
        raise ValueError(
            f"workers={workers} of {each} devices, but there are {len(devices)} "
            f"{devices[0].platform} devices; set JAX_PLATFORMS=cpu to run the workers "
            "on CPU devices."
        )
    return devices[:wanted]
