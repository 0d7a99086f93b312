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
    """Every step sends a k-th of the model, and merges it a step later.

    ``optimizers[i]`` takes worker i's steps. ``average``, ``merge`` and ``correct`` are
    as in ``overlapped``, once for each piece, ``[f]``: what they remember is the
    piece's. ``merges[t]`` has what arrived, and the workers' pieces at the merge and
    at the snapshot; ``points`` as ever.
    """

    def __init__(self, gradient, x0, p, optimizers, average, merge, correct=None):
        self.gradient, self.p, self.optimizers = gradient, p, optimizers
        self.average, self.merge, self.correct = average, merge, correct
        self.x, self.points, self.merges = [x0 for _ in p], [], []

    def run(self, batches, start=0):
        """All steps of these batches, the first of them number ``start``."""
        k, workers = len(self.average), range(len(self.p))
        for t in range(len(batches[0])):
            f = (start + t) % k
            snapshot = [k_th(x, f, k) for x in self.x]
            arriving = self.average[f](snapshot, self.p)  # beside the step
            self.points.append(list(self.x))
            for i in workers:
                g = self.corrected(i, self.gradient(self.x[i], batches[i][t]), k)
                self.x[i] = self.optimizers[i].step(self.x[i], g)
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


class Int8WithFeedback:
    """Numbers in 127 steps of either sign; what they leave out goes with the next."""

    def __init__(self, workers):
        self.errors = [None] * workers

    def __call__(self, trees, p):
        received = []
        for i, tree in enumerate(trees):
            leaves, treedef = jax.tree.flatten(tree)
            wanted = np.concatenate([np.ravel(leaf) for leaf in leaves])
            if self.errors[i] is not None:
                wanted = wanted + self.errors[i]
            scale = np.abs(wanted).max() / 127
            decoded = np.round(wanted / scale) * scale
            self.errors[i] = wanted - decoded
            ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
            parts = [
                part.reshape(np.shape(leaf))
                for part, leaf in zip(np.split(decoded, ends), leaves, strict=True)
            ]
            received.append(jax.tree.unflatten(treedef, parts))
        return weighted_mean(received, p)


def finite_mean(trees, p):
    """The weighted mean of those that are finite."""
    is_finite = lambda tree: all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)
    )
    kept = [(tree, w) for tree, w in zip(trees, p, strict=True) if is_finite(tree)]
    total = sum(w for _, w in kept)
    return weighted_mean([tree for tree, _ in kept], [w / total for _, w in kept])


class NesterovAnchor:
    """Douillard et al. 2023: the outer optimizer's momentum, one for all workers."""

    def __init__(self, anchor, learning_rate, momentum):
        self.anchor, self.workers_done = anchor, 0
        self.outer = MomentumSGD(anchor, learning_rate, momentum, nesterov=True)

    def moved(self, arriving, workers):
        """The anchor of this round; the first worker to ask moves it."""
        if self.workers_done % workers == 0:
            direction = tree_map(lambda a, m: a - m, self.anchor, arriving)
            self.anchor = self.outer.step(self.anchor, direction)
        self.workers_done += 1
        return self.anchor


class SlowMomentum:
    """Wang et al. 2020, Algorithm 1: u in units of gradients, a rate for each round."""

    def __init__(self, anchor, workers, beta, alpha, rate):
        self.anchor, self.u = anchor, tree_map(np.zeros_like, anchor)
        self.workers, self.beta, self.alpha, self.rate = workers, beta, alpha, rate
        self.done = 0

    def merge(self, i, arriving, x, snapshot):
        if self.done % self.workers == 0:
            gamma = self.rate(max(self.done // self.workers - 1, 0))
            slow = lambda u, z, m: self.beta * u + (z - m) / gamma
            self.u = tree_map(slow, self.u, self.anchor, arriving)
            step = lambda z, u: z - self.alpha * gamma * u
            self.anchor = tree_map(step, self.anchor, self.u)
        self.done += 1
        return merged(self.anchor, x, snapshot)


class Eager:
    """Kale et al. 2025, one outer optimizer for each worker.

    ``sent[i]`` is how far worker i went from snapshot to snapshot, and ``fresh[i]`` the
    end of that way, which it alone has counted.
    """

    def __init__(self, x0, workers, learning_rate, momentum):
        zeros = tree_map(np.zeros_like, x0)
        self.theta, self.fresh = [x0] * workers, [zeros] * workers
        self.outer = [
            MomentumSGD(x0, learning_rate, momentum, nesterov=True)
            for _ in range(workers)
        ]

    def average(self, snapshots, p):
        since = lambda a, z, s: a + z - s
        own = zip(self.fresh, self.theta, snapshots, strict=True)
        return weighted_mean([tree_map(since, *one) for one in own], p)

    def merge(self, i, arriving, x, snapshot):
        own = tree_map(lambda s, x: s - x, snapshot, x)
        renewed = tree_map(
            lambda d, new, old: new / len(self.theta) + (d - old / len(self.theta)),
            arriving,
            own,
            self.fresh[i],
        )
        self.fresh[i] = own
        self.theta[i] = self.outer[i].step(self.theta[i], renewed)
        return self.theta[i]


class StaleOuterMomentum:
    """Sun et al. 2024: all go on from z; ``fresh[i]`` as in ``Eager``."""

    def __init__(self, x0, workers, beta, alpha, penalty, clip):
        zeros = tree_map(np.zeros_like, x0)
        self.z, self.m, self.done = x0, zeros, 0
        self.fresh, self.workers = [zeros] * workers, workers
        self.beta, self.alpha, self.penalty, self.clip = beta, alpha, penalty, clip

    def average(self, snapshots, p):
        since = lambda a, z, s: a + z - s
        own = zip(self.fresh, snapshots, strict=True)
        return weighted_mean([tree_map(since, a, self.z, s) for a, s in own], p)

    def merge(self, i, arriving, x, snapshot):
        if self.done % self.workers == 0:
            add = lambda m, d: np.clip(
                self.beta * m + d / self.penalty, -self.clip, self.clip
            )
            self.m = tree_map(add, self.m, arriving)
            self.z = tree_map(lambda z, m: z - self.alpha * m, self.z, self.m)
        self.done += 1
        self.fresh[i] = tree_map(lambda s, x: s - x, snapshot, x)
        return self.z


def delay_compensated(z, x, snapshot, strength):
    """Zhu et al. 2025: the progress, as a gradient at z by a Taylor expansion."""
    g = tree_map(lambda s, x: s - x, snapshot, x)
    bend = tree_map(lambda g, z, s: g * g * (z - s), g, z, snapshot)
    length = lambda tree: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
    scale = strength * length(g) / length(bend) if length(bend) else 0.0
    return tree_map(lambda z, g, b: z - (g + scale * b), z, g, bend)


class SparseAverage:
    """Maziane et al. 2026: the mean on ``mask(r)``, the coordinates of round r."""

    def __init__(self, mask, workers):
        self.mask, self.workers, self.done = mask, workers, 0

    def merge(self, i, arriving, x, snapshot):
        on_mask = lambda j, m, x, s: np.where(j, m + (x - s), x)
        mask = self.mask(self.done // self.workers)
        self.done += 1
        return tree_map(on_mask, mask, arriving, x, snapshot)


class TopK:
    """Sarfi et al. 2025: the largest of every chunk of what was not sent yet."""

    def __init__(self, workers, k, chunk, decay):
        self.errors = [0.0] * workers
        self.k, self.chunk, self.decay = k, chunk, decay

    def __call__(self, trees, p):
        received = []
        for i, tree in enumerate(trees):
            leaves, treedef = jax.tree.flatten(tree)
            wanted = np.concatenate([np.ravel(leaf) for leaf in leaves])
            wanted = wanted + self.decay * self.errors[i]
            sent = np.zeros_like(wanted)
            for start in range(0, len(wanted), self.chunk):
                own = wanted[start : start + self.chunk]
                for j in np.argsort(-np.abs(own), kind="stable")[: self.k]:
                    sent[start + j] = own[j]
            self.errors[i] = wanted - sent
            ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
            parts = [
                part.reshape(np.shape(leaf))
                for part, leaf in zip(np.split(sent, ends), leaves, strict=True)
            ]
            received.append(jax.tree.unflatten(treedef, parts))
        return weighted_mean(received, p)


class Differences:
    """DiLoCo whose workers send the way back to the anchor, by another average."""

    def __init__(self, x0, workers, learning_rate, average_of):
        self.anchor, self.workers, self.done = x0, workers, 0
        self.learning_rate, self.average_of = learning_rate, average_of

    def average(self, snapshots, p):
        ways = [tree_map(lambda z, s: z - s, self.anchor, s) for s in snapshots]
        return self.average_of(ways, p)

    def merge(self, i, arriving, x, snapshot):
        if self.done % self.workers == 0:
            step = lambda z, g: z - self.learning_rate * g
            self.anchor = tree_map(step, self.anchor, arriving)
        self.done += 1
        return merged(self.anchor, x, snapshot)


class BlockMomentum:
    """Chen and Huo 2016, BMUF: what the blocks gain passes through a filter."""

    def __init__(self, model, workers, eta, zeta):
        self.model, self.delta = model, tree_map(np.zeros_like, model)
        self.workers, self.eta, self.zeta, self.done = workers, eta, zeta, 0

    def merge(self, i, arriving, x, snapshot):
        if self.done % self.workers == 0:
            gain = tree_map(lambda m, w: m - w, arriving, self.model)
            pass_on = lambda d, g: self.eta * d + self.zeta * g
            self.delta = tree_map(pass_on, self.delta, gain)
            self.model = tree_map(lambda w, d: w + d, self.model, self.delta)
        self.done += 1
        return merged(self.model, x, snapshot)


class Drifts:
    """Liang et al. 2019: what each worker's gradients are corrected by."""

    def __init__(self, x0, workers, learning_rate, period):
        self.of = [tree_map(np.zeros_like, x0) for _ in range(workers)]
        self.length = learning_rate * period

    def merge(self, i, arriving, x, snapshot):
        step = lambda d, m, s: d + (m - s) / self.length
        self.of[i] = tree_map(step, self.of[i], arriving, snapshot)
        return merged(arriving, x, snapshot)

    def correct(self, i, g):
        return tree_map(lambda g, d: g - d, g, self.of[i])


class Elastic:
    """Zhang et al. 2015, synchronous: workers and centre pull at each other."""

    def __init__(self, centre, workers, beta):
        self.centre, self.workers, self.beta = centre, workers, beta
        self.done = 0

    def merge(self, i, arriving, x, snapshot):
        alpha = self.beta / self.workers
        pull = lambda x, s, z: x - alpha * (s - z)
        pulled = tree_map(pull, x, snapshot, self.centre)
        self.done += 1
        if self.done % self.workers == 0:  # the forces are those of one moment
            follow = lambda z, m: z + self.beta * (m - z)
            self.centre = tree_map(follow, self.centre, arriving)
        return pulled


class PulledToAnchor:
    """Wang, Liang, Joshi 2020: an anchor with momentum follows the stale mean."""

    def __init__(self, anchor, workers, alpha, beta):
        self.anchor, self.velocity = anchor, tree_map(np.zeros_like, anchor)
        self.workers, self.alpha, self.beta, self.done = workers, alpha, beta, 0

    def merge(self, i, arriving, x, snapshot):
        if self.done % self.workers == 0:
            follow = lambda v, m, z: self.beta * v + (m - z)
            self.velocity = tree_map(follow, self.velocity, arriving, self.anchor)
            self.anchor = tree_map(lambda z, v: z + v, self.anchor, self.velocity)
        self.done += 1
        pull = lambda x, z: (1 - self.alpha) * x + self.alpha * z
        return tree_map(pull, x, self.anchor)


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
