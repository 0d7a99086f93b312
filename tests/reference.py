"""Each algorithm once more, as slow NumPy loops shaped like its paper.

Trees are nested dicts and lists of NumPy arrays. ``gradient(params, batch)`` is
the gradient of one worker's loss; ``batches[i][t]`` is worker i's batch of step t;
``p`` are the workers' weights, with sum 1. Nothing here is shared with the library.

Each function returns the points at which gradients were taken, ``points[t][i]`` of
step t and worker i, and the workers' parameters at the end.
"""

import jax
import numpy as np


def tree_map(function, *trees):
    return jax.tree.map(function, *trees)


def weighted_mean(trees, p):
    terms = [tree_map(lambda x, w=w: w * x, x) for w, x in zip(p, trees, strict=True)]
    return tree_map(lambda *leaves: sum(leaves), *terms)


class MomentumSGD:
    """The local optimizer: u <- mu u + g; x <- x - lr u (or lr (g + mu u))."""

    def __init__(self, params, learning_rate, momentum=0.0, nesterov=False):
        self.buffer = tree_map(np.zeros_like, params)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.count = 0

    def step(self, params, g):
        lr, mu = self.learning_rate, self.momentum
        if callable(lr):
            lr = lr(self.count)
        self.count += 1
        self.buffer = tree_map(lambda u, g: mu * u + g, self.buffer, g)
        direction = self.buffer
        if self.nesterov:
            direction = tree_map(lambda g, u: g + mu * u, g, self.buffer)
        return tree_map(lambda x, d: x - lr * d, params, direction)


def cocod_sgd(gradient, x0, batches, p, period, delay=None, **sgd):
    """Shen et al. 2019, Algorithm 1; with ``delay``, the merge comes earlier."""
    delay = period if delay is None else delay
    workers = range(len(p))
    x = [x0 for _ in workers]
    optimizers = [MomentumSGD(x0, **sgd) for _ in workers]
    points = []
    for t in range(0, len(batches[0]), period):
        snapshot = list(x)
        average = weighted_mean(snapshot, p)  # communication thread
        for tau in range(period):  # computation thread
            if tau == delay:
                x = [merged(average, x[i], snapshot[i]) for i in workers]
            points.append(list(x))
            for i in workers:
                g = gradient(x[i], batches[i][t + tau])
                x[i] = optimizers[i].step(x[i], g)
        if delay == period:
            x = [merged(average, x[i], snapshot[i]) for i in workers]
    return points, x


def merged(average, now, snapshot):
    return tree_map(lambda m, x, s: m + (x - s), average, now, snapshot)


def proportional_cocod_sgd(gradient, x0, samples, period, **sgd):
    """Shen et al. 2019, Algorithm 1, with proportional sampling: p_i = M_i / M.

    ``gradient`` is that of one sample; ``samples[i][t]`` are the M_i of worker i in
    step t.
    """
    sizes = [len(worker[0]) for worker in samples]

    def batch_gradient(params, batch):
        terms = [gradient(params, sample) for sample in batch]
        return tree_map(lambda *g: sum(g) / len(g), *terms)

    p = [size / sum(sizes) for size in sizes]
    return cocod_sgd(batch_gradient, x0, samples, p, period, **sgd)


def local_sgd(gradient, x0, batches, p, period, **sgd):
    """Stich 2019, Algorithm 1: every ``period`` steps all workers take the mean."""
    workers = range(len(p))
    x = [x0 for _ in workers]
    optimizers = [MomentumSGD(x0, **sgd) for _ in workers]
    points = []
    for t in range(len(batches[0])):
        points.append(list(x))
        for i in workers:
            x[i] = optimizers[i].step(x[i], gradient(x[i], batches[i][t]))
        if (t + 1) % period == 0:
            x = [weighted_mean(x, p) for _ in workers]
    return points, x


def synchronous_sgd(gradient, x0, batches, p, **sgd):
    """One model, moved by the mean of the workers' gradients."""
    workers = range(len(p))
    x, optimizer = x0, MomentumSGD(x0, **sgd)
    points = []
    for t in range(len(batches[0])):
        points.append([x for _ in workers])
        g = weighted_mean([gradient(x, batches[i][t]) for i in workers], p)
        x = optimizer.step(x, g)
    return points, [x for _ in workers]


def pipe_sgd(gradient, x0, batches, p, warmup_steps=0, **sgd):
    """Li et al. 2018, pipeline width 2: step t applies the mean of step t-1.

    The pipeline is empty at its start, which is after the synchronous warm-up: that
    step applies zero.
    """
    workers = range(len(p))
    x, optimizer = x0, MomentumSGD(x0, **sgd)
    points, in_flight = [], None
    for t in range(len(batches[0])):
        points.append([x for _ in workers])
        g = weighted_mean([gradient(x, batches[i][t]) for i in workers], p)
        if t < warmup_steps:
            x = optimizer.step(x, g)
            continue
        arrived = tree_map(np.zeros_like, x0) if in_flight is None else in_flight
        x, in_flight = optimizer.step(x, arrived), g
    return points, [x for _ in workers]
