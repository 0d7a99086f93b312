"""The main job with the first edition's merge, s + ((m - s) + (x - s)).

``PYTHONPATH=. python experiments/results/20261129_second_edition/old_merge.py``
"""

from pathlib import Path

import jax

import cocod_jax as cj
from experiments import algorithms
from experiments.config import TrainConfig
from experiments.train import main


def old_cocod(exchange: cj.Exchange) -> cj.MergeRule:
    """The same algorithm, rounded at other places."""

    def merge(arriving, params, state, snapshot):
        move = lambda m, x, s: s + ((m - s) + (x - s))
        return jax.tree.map(move, arriving, params, snapshot), state

    return cj.MergeRule(exchange, merge)


if __name__ == "__main__":
    recipe = algorithms.RECIPES["cocod"]
    algorithms.RECIPES["cocod"] = recipe._replace(rule=old_cocod)
    raise SystemExit(main(TrainConfig(out=Path("runs/old_merge"))))
