"""Each algorithm once more, as slow NumPy loops shaped like its paper.

Trees are nested dicts and lists of NumPy arrays. ``gradient(params, batch)`` is
the gradient of one worker's loss; ``batches[i][t]`` is worker i's batch of step t;
``p`` are the workers' weights, with sum 1. Nothing here is shared with the library.

Each function returns the points at which gradients were taken, ``points[t][i]`` of
step t and worker i, and the workers' parameters at the end.
"""

import copy

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


class AdamW:
    """Loshchilov and Hutter 2019, with optax's constants."""

    def __init__(self, params, learning_rate, weight_decay=1e-4):
        self.m = self.v = tree_map(np.zeros_like, params)
        self.learning_rate, self.weight_decay, self.count = (
            learning_rate,
            weight_decay,
            0,
        )

    def step(self, params, g):
        self.count += 1
        self.m = tree_map(lambda m, g: 0.9 * m + 0.1 * g, self.m, g)
        self.v = tree_map(lambda v, g: 0.999 * v + 0.001 * g**2, self.v, g)
        m_scale, v_scale = 1 - 0.9**self.count, 1 - 0.999**self.count

        def moved(x, m, v):
            direction = (m / m_scale) / (np.sqrt(v / v_scale) + 1e-8)
            return x - self.learning_rate * (direction + self.weight_decay * x)

        return tree_map(moved, params, self.m, self.v)


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


def overlapped(
    gradient, x0, batches, p, period, delay, learning_rate, average, merge, correct=None
):
    """Rounds of plain SGD around any exchange and merge, one worker after another.

    ``average(snapshots, p)`` is what arrives; ``merge(i, arriving, x, snapshot)`` gives
    worker i's new parameters; ``correct(i, g)`` changes its gradients.
    """
    workers = range(len(p))
    x = [x0 for _ in workers]
    points = []
    for t in range(0, len(batches[0]), period):
        snapshot = list(x)
        arriving = average(snapshot, p)
        for tau in range(period + 1):
            if tau == delay:
                x = [merge(i, arriving, x[i], snapshot[i]) for i in workers]
            if tau == period:
                break
            points.append(list(x))
            for i in workers:
                g = gradient(x[i], batches[i][t + tau])
                g = g if correct is None else correct(i, g)
                x[i] = tree_map(lambda x, g: x - learning_rate * g, x[i], g)
    return points, x


def k_th(tree, f, k):
    """The f-th k-th of every leaf, raveled; the last ones are shorter, or empty."""
    return tree_map(lambda x: np.ravel(x)[_share(x, f, k)], tree)


def with_k_th(tree, f, k, piece):
    """The tree with another f-th k-th."""

    def write(x, own):
        flat = np.array(x).ravel()
        flat[_share(x, f, k)] = own
        return flat.reshape(np.shape(x))

    return tree_map(write, tree, piece)


def _share(x, f, k):
    length = -(-np.size(x) // k)
    return slice(f * length, (f + 1) * length)


class Streamed:
    """Every step sends a k-th of the model, and merges it ``delay`` steps later.

    ``optimizers[i]`` takes worker i's steps. ``average``, ``merge`` and ``correct`` are
    as in ``overlapped``, once for each piece, ``[f]``: what they remember is the
    piece's. ``merges[t]`` has what arrived, and the workers' pieces at the merge and
    at the snapshot; ``points`` as ever.
    """

    def __init__(
        self, gradient, x0, p, optimizers, average, merge, correct=None, delay=1
    ):
        self.delay, self.in_flight = delay, []
        self.gradient, self.p, self.optimizers = gradient, p, optimizers
        self.average, self.merge, self.correct = average, merge, correct
        self.x, self.points, self.merges = [x0 for _ in p], [], []

    def run(self, batches, start=0):
        """All steps of these batches, the first of them number ``start``."""
        k, workers = len(self.average), range(len(self.p))
        for t in range(len(batches[0])):
            f = (start + t) % k
            snapshot = [k_th(x, f, k) for x in self.x]
            arriving = self.average[f](snapshot, self.p)  # beside the steps
            self.in_flight.append((f, snapshot, arriving))
            self.points.append(list(self.x))
            for i in workers:
                g = self.corrected(i, self.gradient(self.x[i], batches[i][t]), k)
                self.x[i] = self.optimizers[i].step(self.x[i], g)
            if len(self.in_flight) < self.delay:
                continue
            f, snapshot, arriving = self.in_flight.pop(0)
            reached = [k_th(x, f, k) for x in self.x]
            for i in workers:
                piece = self.merge[f](i, arriving, reached[i], snapshot[i])
                self.x[i] = with_k_th(self.x[i], f, k, piece)
            self.merges.append((arriving, reached, snapshot))
        return self

    def corrected(self, i, g, k):
        if self.correct is None:
            return g
        for f in range(k):
            g = with_k_th(g, f, k, self.correct[f](i, k_th(g, f, k)))
        return g


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


def acco(gradient, x0, halves, p, optimizer):
    """Nabli et al. 2024: an estimate by one half-batch, the commit by both.

    ``halves[i][h]`` are worker i's half-batches, and ``optimizer`` takes the commits.
    Returns the parameters before each half-batch, and at the end.
    """
    mean_at = lambda x, h: weighted_mean([gradient(x, own[h]) for own in halves], p)
    theta, points, h = x0, [x0, x0], 0
    early = mean_at(theta, 0)
    while h + 2 < len(halves[0]):
        estimate = copy.deepcopy(optimizer).step(theta, early)
        late = mean_at(theta, h + 1)  # beside the exchange of the early half
        both = tree_map(lambda e, g: (e + g) / 2, early, late)
        early = mean_at(estimate, h + 2)  # beside the exchange of the late half
        theta = optimizer.step(theta, both)
        points += [estimate, theta]
        h += 2
    return points


def eager_diloco(gradient, x0, batches, p, period, rate, outers):
    """Kale et al. 2025: one round after the other, each worker's outer step its own."""
    theta, last = [x0] * len(p), None
    for t in range(0, len(batches[0]), period):
        ends = walk(gradient, theta, batches, t, period, rate)
        ways = [
            tree_map(lambda z, x: z - x, *own) for own in zip(theta, ends, strict=True)
        ]
        if last is None:  # nothing has arrived yet
            last = [tree_map(np.zeros_like, x0)] * len(p)
        mean = weighted_mean(last, p)
        for i in range(len(p)):
            replace = lambda m, new, old: new / len(p) + (m - old / len(p))
            way = tree_map(replace, mean, ways[i], last[i])
            theta[i] = outers[i].step(theta[i], way)
        last = ways
    return theta


def co2(gradient, x0, batches, p, period, rate, beta, alpha, penalty, clip):
    """Sun et al. 2024, Algorithm 1: the mean of round t - 1 arrives in round t."""
    start, m, last = x0, tree_map(np.zeros_like, x0), None
    for t in range(0, len(batches[0]), period):
        ends = walk(gradient, [start] * len(p), batches, t, period, rate)
        following = start
        if last is not None:
            began, mean = last[0], weighted_mean(last[1], p)
            add = lambda m, z, x: np.clip(beta * m + (z - x) / penalty, -clip, clip)
            m = tree_map(add, m, began, mean)
            following = tree_map(lambda z, m: z - alpha * m, start, m)
        last, start = (start, ends), following
    return [start] * len(p)


def walk(gradient, x, batches, t, period, rate):
    """Where plain SGD takes the workers in one round."""
    x = list(x)
    for tau in range(period):
        for i in range(len(x)):
            g = gradient(x[i], batches[i][t + tau])
            x[i] = tree_map(lambda x, g: x - rate * g, x[i], g)
    return x
