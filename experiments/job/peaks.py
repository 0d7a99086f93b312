"""How fast a device can multiply, by its data sheet."""

import jax

# In 1e12 floating-point operations per second, dense, bfloat16, by what a device's kind
# contains; the first that fits counts.
_PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "V100": 125,  # float16; it has no bfloat16
    "L40S": 362,
    "TPU v6": 918,
    "TPU v5p": 459,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v4": 275,
}


def peak(device: jax.Device) -> float | None:
    """Floating-point operations per second in bfloat16; None where we do not know."""
    kind = device.device_kind
    found = (rate for name, rate in _PEAKS.items() if name in kind)
    rate = next(found, None)
    return None if rate is None else rate * 1e12
