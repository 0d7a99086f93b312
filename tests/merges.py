"""What each rule's merge and each exchange do, for the loops of the reference.

Written once more in NumPy, with nothing of the library. An instance stands for all
workers and is good for one run: it is called in the order of the loop.
"""

import jax
import numpy as np

from tests.reference import MomentumSGD, merged, tree_map, weighted_mean


class NarrowMean:
    """Differences to what arrived last, in ``levels`` steps of either sign.

    Workers add what they left out to what they send next. Each sums a chunk of all
    that was sent, rounds it again, and adds what that left out to its own.
    """

    def __init__(self, x0, workers, levels, block):
        self.arrived, self.treedef = _flat(x0), jax.tree.structure(x0)
        self.errors = [np.zeros_like(self.arrived) for _ in range(workers)]
        self.levels, self.block = levels, block

    def __call__(self, trees, p):
        total = np.zeros_like(self.arrived)
        for i, (tree, w) in enumerate(zip(trees, p, strict=True)):
            wanted = w * (_flat(tree) - self.arrived) + self.errors[i]
            sent = self.rounded(wanted)
            self.errors[i] = wanted - sent
            total = total + sent
        moved = self.rounded(total)
        blocks = -(-len(total) // self.block)
        length = -(-blocks // len(trees)) * self.block
        for i, error in enumerate(self.errors):
            own = slice(i * length, (i + 1) * length)
            error[own] += (total - moved)[own]
        self.arrived = self.arrived + moved
        ends = np.cumsum([np.size(x) for x in jax.tree.leaves(trees[0])])[:-1]
        parts = zip(
            np.split(self.arrived, ends), jax.tree.leaves(trees[0]), strict=True
        )
        leaves = [part.reshape(np.shape(leaf)) for part, leaf in parts]
        return jax.tree.unflatten(self.treedef, leaves)

    def rounded(self, x):
        """To multiples of a scale of the block's, a float32."""
        result = np.zeros_like(x)
        for start in range(0, len(x), self.block):
            own = slice(start, start + self.block)
            scale = np.float32(np.abs(x[own]).max()) / np.float32(self.levels)
            if scale > 0:
                codes = np.round(x[own].astype(np.float32) / scale)
                result[own] = codes.astype(np.float32) * scale
        return result


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


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


def finite_mean(trees, p):
    """The weighted mean of those that are finite."""
    is_finite = lambda tree: all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)
    )
    kept = [(tree, w) for tree, w in zip(trees, p, strict=True) if is_finite(tree)]
    total = sum(w for _, w in kept)
    return weighted_mean([tree for tree, _ in kept], [w / total for _, w in kept])


def ring(trees, p):
    """What each worker makes of itself and its two neighbours; all count the same."""
    third = [1 / 3] * 3
    return [
        weighted_mean([trees[i - 1], tree, trees[(i + 1) % len(trees)]], third)
        for i, tree in enumerate(trees)
    ]


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
