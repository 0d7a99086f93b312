"""What others published, as numbers; their code is not here.

smol_diloco (github.com/VictoryChianumba/smol_diloco, commit 229368e, no licence given):
a grid of DiLoCo on Tiny Shakespeare, in its README. VRL-SGD
(github.com/zerolxf/VRL-SGD, commit 119d245, no licence given): record/LeNet, by the
paper's authors (arXiv:1912.12844). diloco-measured
(github.com/Adnan082/diloco-measured, commit 07b7885, Apache-2.0): utilisation of four
machines with an L40S each, in its README and, of windows and seconds, results/raw.
"""

from typing import NamedTuple

TEXT = {1: (0.1, 2.579), 4: (0.1, 2.549), 16: (0.3, 2.408), 64: (0.1, 2.444)}
"""By the local steps in a round, the best outer rate of 0.1, 0.3 and 0.7, and the
validation loss there."""


class Labels(NamedTuple):
    """LeNet-5 on MNIST that is sorted by its labels, accuracies in percent."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


LABELS = {
    "start": Labels(0.41360, 87.60, 0.38517, 88.55),
    "ssgd": Labels(0.21596, 93.60, 0.19521, 94.32),
    "local_sgd": Labels(0.35823, 89.16, 0.33170, 90.40),
    "vrl_sgd": Labels(0.25909, 92.20, 0.23925, 93.02),
}
"""Before the first epoch and after five of 235 steps: the first row and the sixth."""

PARAMETERS = 30_846_720
MEGABITS = (50, 200, 1000, 5000)
STEP_SECONDS = {"diloco": 4.7167 / 180, "local_sgd": 4.4399 / 180}
"""Of a local step, in the runs of 128 steps a round at 5 Gbit/s."""
WINDOWS = {1: (10, 100), 8: (10, 150), 32: (10, 150), 128: (20, 200)}
"""By the local steps in a round: which steps were measured, from and to."""
SHORTER = {(1, 50): (2, 12), (8, 50): (8, 80)}
"""Where the link was so slow that fewer were: by the round's steps and Mbit/s."""
UTILISATION = {
    ("diloco", 1): (0.07, 0.32, 1.74, 7.76),
    ("diloco", 8): (0.55, 2.48, 12.35, 40.24),
    ("diloco", 32): (2.41, 10.01, 36.01, 68.10),
    ("diloco", 128): (11.55, 36.09, 71.52, 87.00),
    ("local_sgd", 1): (0.07, 0.31, 1.69, 7.61),
    ("local_sgd", 8): (0.52, 2.40, 11.83, 38.65),
    ("local_sgd", 32): (2.30, 9.36, 33.65, 62.57),
    ("local_sgd", 128): (10.81, 33.46, 65.56, 80.72),
}
"""Percent of the time in which a GPU computes, at each of MEGABITS."""
ANALYTIC_ERROR = 1.08, 1.92
"""By how much DiLoCo's analytic model was too high, at its best point and its worst."""
