"""Prints what a bug report should say about a machine: ``python -m cocod_jax``."""

from cocod_jax.observe.report import report

if __name__ == "__main__":
    print(report())
