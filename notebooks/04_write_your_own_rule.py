# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write your own rule
#
# A merge rule says what a worker does with the mean that arrives. You will
#
# * write one in twenty lines: CoCoD-SGD with momentum of the mean,
# * check its invariants, and see what a mistake looks like,
# * make sure that it hides its exchange,
# * compare it with CoCoD-SGD.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`.

# %%
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from sklearn.datasets import load_digits

import cocod_jax as cj
from cocod_jax import style, testing
from cocod_jax.certify import certify, compiler_available, dataflow

# %% [markdown]
# ## An exchange and a merge
#
# The exchange averages, and sees the snapshots alone: what it cannot see it cannot wait
# for. `merge` sees the parameters after the local steps and exchanges nothing; it
# returns the parameters to go on with. CoCoD-SGD merges $x \leftarrow m + (x - s)$: the
# mean $m$ of the snapshots $s$, and the worker's own progress.
#
# Our rule gives the mean momentum. If $m'$ is the mean that arrived a round earlier,
#
# $$x \leftarrow m + (x - s) + \beta \, (m - m').$$
#
# All workers have the same $m - m'$, so nobody is pushed away from the others. Its
# relatives are BMUF ([Chen and Huo, 2016](https://doi.org/10.1109/ICASSP.2016.7472805))
# and SlowMo ([Wang et al., 2020](https://arxiv.org/abs/1910.00643)), which wait for
# their mean; here it is stale.


# %%
class HeavyBallState(NamedTuple):
    """The mean that arrived last, per worker; all of them have the same."""

    previous: optax.Params


def heavy_ball(axis_name, beta, weights=None):
    """CoCoD-SGD with momentum ``beta`` of the mean."""

    def init(params):
        # A copy: the caller may donate its parameters.
        return HeavyBallState(previous=jax.tree.map(jnp.copy, params))

    def merge(arriving, params, state, snapshot):
        merged = jax.tree.map(
            lambda m, x, s, before: m + (x - s) + beta * (m - before),
            *(arriving, params, snapshot, state.previous),
        )
        return merged, HeavyBallState(previous=arriving)

    return cj.MergeRule(cj.mean(axis_name, weights), merge, init=init)


# %% [markdown]
# That is all. It is an optax transform, and runs wherever `cj.cocod` does: in a round,
# in `cj.every`, under `vmap`, `pmap` and `shard_map`.
#
# ## Check its invariants
#
# Without momentum the rule is CoCoD-SGD, and must have all of its invariants:

# %%
testing.check_rule(heavy_ball("workers", beta=0.0))

# %% [markdown]
# With momentum it should keep five of the six. It breaks one on purpose: momentum moves
# the mean.

# %%
rule = heavy_ball("workers", beta=0.8)
testing.assert_identical_workers_agree(rule)
testing.assert_order_irrelevant(rule)
testing.assert_fixed_point(rule)
testing.assert_workers_approach(rule)
testing.assert_own_weights(rule)


def complaint(check, rule):
    """What a check says, without all the numbers that differ."""
    try:
        check(rule)
    except AssertionError as error:
        return str(error).splitlines()[0]
    raise ValueError(f"{check.__name__} has no complaint")


print(complaint(testing.assert_mean_preserved, rule))


# %% [markdown]
# ### A mistake
#
# A worker with twice the data has twice the weight. It is easy to forget, and training
# would still seem to work:


# %%
def forgetful(axis_name, beta):
    right = cj.mean(axis_name)
    plain = lambda state, tree, weight=None: right.send(state, tree, None)
    rule = heavy_ball(axis_name, beta)
    return rule._replace(exchange=right._replace(send=plain))


print(complaint(testing.check_rule, forgetful("workers", beta=0.0)))

# %% [markdown]
# ## Does it hide its exchange?
#
# The data flow says what the program allows. The certificate says what the compiler
# does with it, where the compiler is installed (`python -m cocod_jax.certify
# --install`).

# %%
WORKERS, PERIOD, BATCH, ROUNDS, SEEDS = 8, 8, 16, 60, 3

net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = net.init(jax.random.key(0), jnp.zeros([1, 64]))


def loss_fn(params, batch):
    image, label = batch
    logits = net.apply(params, image)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy.mean()


def make_round(rule, learning_rate=0.1):
    return cj.make_round(
        loss_fn, optax.sgd(learning_rate), rule, period=PERIOD
    )


# %%
def verdict(rule):
    """What the compiler says, or else the data flow."""
    round_ = make_round(rule)
    state = jax.eval_shape(
        lambda p: cj.replicate(round_.init(p), WORKERS), params
    )
    image = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, 64), jnp.float32)
    label = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH), jnp.int32)
    if compiler_available():
        return certify(round_, state, (image, label), target="h100").verdict
    return "; ".join(map(str, dataflow(round_, state, (image, label))))


print(verdict(heavy_ball("workers", beta=0.8)))


# %% [markdown]
# A rule that averages in `merge` has the latest parameters, and waits for them. With
# equal weights nothing in its numbers is wrong; only this check finds it:


# %%
def latest(axis_name):
    exchange = cj.mean(axis_name)._replace(
        send=lambda state, tree, weight=None: (tree, state),
        receive=lambda sent, like: sent,
    )

    def merge(arriving, params, state, snapshot):
        mean = lambda leaf: lax.pmean(leaf, axis_name)
        return jax.tree.map(mean, params), state

    return cj.MergeRule(exchange, merge)


print(verdict(latest("workers")))

# %% [markdown]
# ## Is it any good?
#
# Eight workers own digits drawn at random, or sorted by label. Momentum makes steps
# larger, by $1 / (1 - \beta) = 5$ in the long run. So CoCoD-SGD may choose its learning
# rate, too.

# %%
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
shuffled = np.random.default_rng(0).permutation(1792)
sorted_by_label = np.argsort(labels[:1792], kind="stable")
shards = {
    "random split": shuffled.reshape(WORKERS, -1),
    "split by label": sorted_by_label.reshape(WORKERS, -1),
}

cocod = cj.cocod("workers")
candidates = {
    f"CoCoD-SGD, learning rate {rate}": make_round(cocod, rate)
    for rate in (0.1, 0.2, 0.5, 1.0)
}
candidates["momentum 0.8, learning rate 0.1"] = make_round(rule, 0.1)


# %%
@jax.jit
def consensus_loss(state):
    return loss_fn(cj.consensus(state), (images, labels))


def train(round_, run, shard, seed):
    """The loss of the consensus on all data, after every round."""
    rng = np.random.default_rng(seed)
    state = cj.replicate(round_.init(params), WORKERS)
    losses = []
    for _ in range(ROUNDS):
        chosen = np.stack([rng.choice(own, (PERIOD, BATCH)) for own in shard])
        state, _ = run(state, (images[chosen], labels[chosen]))
        losses.append(consensus_loss(state))
    return np.array(losses)


# %%
curves = {}
for name, round_ in candidates.items():
    # One program a round.
    run = cj.distribute(round_, via="vmap", execution="fused")
    for split, shard in shards.items():
        curves[name, split] = np.array(
            [train(round_, run, shard, seed) for seed in range(SEEDS)]
        )

# %%
print(f"{'loss after 480 steps, lowest to highest':34}", *shards, sep="   ")
for name in candidates:
    ends = [curves[name, split][:, -1] for split in shards]
    print(
        f"{name:39}",
        *(f"{e.min():.3f} to {e.max():.3f}" for e in ends),
        sep="   ",
    )

by_label = {name: curves[name, "split by label"][:, -1] for name in candidates}
with_momentum = by_label.pop("momentum 0.8, learning rate 0.1")
assert with_momentum.max() < np.min(list(by_label.values()))

# %%
LOOKS = {
    "CoCoD-SGD, learning rate 0.1": (style.ORANGE, "--"),
    "CoCoD-SGD, learning rate 0.5": (style.VERMILION, "-"),
    "momentum 0.8, learning rate 0.1": (style.BLUE, "-"),
}
fig, axes = plt.subplots(
    1, 2, figsize=(9, 3.4), layout="constrained", sharey=True
)
steps = PERIOD * np.arange(1, ROUNDS + 1)
for axis, split in zip(axes, shards, strict=True):
    for name, (colour, line) in LOOKS.items():
        runs = curves[name, split]
        axis.plot(steps, runs.mean(axis=0), line, color=colour, label=name)
        axis.fill_between(
            steps, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.15
        )
    axis.set(title=split, xlabel="local step", yscale="log")
    style.tidy(axis)
axes[0].set_ylabel("loss of the consensus")
axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# Lines are means of three seeds, bands reach from the lowest to the highest. On even
# data momentum of the mean does what a larger learning rate does. On data sorted by
# label a larger learning rate drives the workers apart, and momentum of the mean does
# not: it ends lower than CoCoD-SGD at any of the four learning rates.
#
# That is one small problem. A claim about a rule takes more of them, and its own tuning
# for every rule in the comparison.
