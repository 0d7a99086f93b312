"""The name that older logs have for :mod:`experiments.unequal`."""

import runpy

runpy.run_module("experiments.unequal", run_name="__main__", alter_sys=True)
