"""Runnable studies: the main job is ``python -m experiments.train``."""
