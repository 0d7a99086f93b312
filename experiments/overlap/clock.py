"""The name that older logs have for :mod:`experiments.clock`."""

import runpy

runpy.run_module("experiments.clock", run_name="__main__", alter_sys=True)
