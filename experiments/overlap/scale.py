"""The name that older logs have for :mod:`experiments.scale`."""

import runpy

runpy.run_module("experiments.scale", run_name="__main__", alter_sys=True)
