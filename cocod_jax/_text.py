"""Values in words, for messages and tables."""

from typing import Any


def shown(value: Any) -> str:
    """A value for a message, or its type where the value is too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"<{type(value).__name__}>"


def human_bytes(n: float) -> str:
    """Bytes for people.

    Examples:
      >>> human_bytes(44_700_000), human_bytes(999_600)
      ('44.7 MB', '1 MB')
    """
    for unit in ("B", "kB", "MB"):
        if abs(n) < 999.5:  # anything above would be printed as 1e+03
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB" if abs(n) < 999.5 else f"{n:,.0f} GB"
