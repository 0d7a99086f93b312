"""The small problem that most tests train on, in JAX and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

N, PERIOD, ROUNDS = 4, 3, 4
STEPS = PERIOD * ROUNDS
WEIGHTS = (1, 2, 3, 2)


def params(dtype=np.float32):
    """A nested tree with a matrix, a scalar, a list and a dict in it."""
    rng = np.random.default_rng(0)
    tree = {"w": (3, 2), "b": (), "deep": [(2,), {"c": (4,)}]}
    is_shape = lambda node: isinstance(node, tuple)
    draw = lambda shape: np.asarray(rng.normal(size=shape), dtype)
    return jax.tree.map(draw, tree, is_leaf=is_shape)


def batches(dtype=np.float32, workers=N, steps=STEPS):
    """(x [workers, steps, 5, 3], y [workers, steps, 5, 2]), different everywhere."""
    rng = np.random.default_rng(1)
    offsets = np.arange(workers).reshape(workers, 1, 1, 1)  # workers see other data
    x = rng.normal(size=(workers, steps, 5, 3)) + 0.3 * offsets
    y = rng.normal(size=(workers, steps, 5, 2)) - offsets
    return x.astype(dtype), y.astype(dtype)


def loss(params, batch):
    x, y = batch
    first, rest = params["deep"]
    residual = jnp.einsum("bi,ij->bj", x, params["w"]) + params["b"] - y
    residual = residual + jnp.broadcast_to(first, residual.shape)
    target = x.mean() * jnp.arange(1, 5, dtype=x.dtype)
    return 0.5 * (residual**2).sum() / len(x) + 0.5 * ((rest["c"] - target) ** 2).sum()


def numpy_loss(params, batch):
    x, y = batch
    first, rest = params["deep"]
    residual = x @ params["w"] + params["b"] + first - y
    off = rest["c"] - x.mean() * np.arange(1, 5)
    return 0.5 * (residual**2).sum() / len(x) + 0.5 * (off**2).sum()


def numpy_gradient(params, batch):
    x, y = batch
    first, rest = params["deep"]
    residual = (x @ params["w"] + params["b"] + first - y) / len(x)
    return {
        "w": x.T @ residual,
        "b": residual.sum(),
        "deep": [
            residual.sum(axis=0),
            {"c": rest["c"] - x.mean() * np.arange(1, 5)},
        ],
    }


def per_worker(batches):
    """``[i][t]`` lists of single batches, as the reference wants them."""
    x, y = batches
    return [[(x[i, t], y[i, t]) for t in range(x.shape[1])] for i in range(x.shape[0])]


def round_batches(batches, round_, period=PERIOD):
    """The [N, period, ...] slice of one round."""
    steps = slice(round_ * period, (round_ + 1) * period)
    return jax.tree.map(lambda leaf: leaf[:, steps], batches)


def stacked(trees):
    """A list of trees as one tree with a leading worker axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def shares(weights):
    weights = np.ones(N) if weights is None else np.asarray(weights, np.float64)
    return weights / weights.sum()
