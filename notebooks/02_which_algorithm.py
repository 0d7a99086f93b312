# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which algorithm?
#
# Synchronous SGD, Pipe-SGD, Local SGD and CoCoD-SGD on one problem. You will see
#
# * what they lose per step, on data that are split evenly and on data that are not,
# * what they save in bytes and in seconds,
# * how bandwidth, period and delay move the answer, with sliders.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`. The sliders
# need a running notebook; on a web page they stand still.

# %%
import flax.linen as nn
import ipywidgets as widgets
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import cocod_jax as cj
from cocod_jax import style, timeline

# %% [markdown]
# ## Two ways to split the data
#
# Eight workers own 224 digits each: drawn at random, or sorted by label, so that a
# worker sees one or two of the ten digits only. Real data lie somewhere between.

# %%
WORKERS, BATCH, STEPS = 8, 16, 480

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
shuffled = np.random.default_rng(0).permutation(1792)
sorted_by_label = np.argsort(labels[:1792], kind="stable")
shards = {
    "random split": shuffled.reshape(WORKERS, -1),
    "split by label": sorted_by_label.reshape(WORKERS, -1),
}

# %%
fig, axes = plt.subplots(
    1, 2, figsize=(8, 2.6), layout="constrained", sharey=True
)
for axis, (split, shard) in zip(axes, shards.items(), strict=True):
    counts = [np.bincount(own, minlength=10) for own in labels[shard]]
    picture = axis.imshow(
        counts, cmap="cividis", vmin=0, vmax=180, aspect="auto"
    )
    axis.set(
        title=split, xlabel="digit", xticks=range(10), yticks=range(WORKERS)
    )
axes[0].set_ylabel("worker")
fig.colorbar(picture, label="examples")
plt.show()

# %% [markdown]
# ## One model, many rounds

# %%
net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = net.init(jax.random.key(0), images[:1])


def loss_fn(params, batch):
    image, label = batch
    logits = net.apply(params, image)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy.mean()


# %% [markdown]
# Every algorithm is a round. Local SGD and CoCoD-SGD differ by the delay alone: after
# how many steps the mean is merged. Synchronous SGD and Pipe-SGD communicate in the
# optimizer instead, and merge nothing.

# %%
sgd = optax.sgd(0.3)


def local_round(period, delay):
    rule = cj.cocod("workers")
    return cj.make_round(loss_fn, sgd, rule, period=period, delay=delay)


def synchronous_round(average):
    optimizer = optax.chain(average("workers"), sgd)
    return cj.make_round(
        loss_fn, optimizer, cj.independent(), period=4, delay=0
    )


# %% [markdown]
# Each is filed under its plan in `cocod_jax.timeline`, a clock that knows when the
# algorithm sends and when it waits. Synchronous SGD gets the favourable plan: gradients
# leave during the backward pass, as soon as they are there.

# %%
PERIODS, DELAYS = (4, 8, 16), (0, 1 / 2, 1)  # delays in parts of the period

SSGD, PIPE_SGD = timeline.SSGD(sends_after=1 / 3), timeline.PipeSGD()

rounds = {
    SSGD: synchronous_round(cj.mean_gradients),
    PIPE_SGD: synchronous_round(cj.stale_mean_gradients),
} | {
    timeline.CoCoDSGD(k, int(part * k)): local_round(k, int(part * k))
    for k in PERIODS
    for part in DELAYS
}

# %% [markdown]
# ## Train them all
#
# What counts is the loss of the consensus on everybody's data. The workers' own losses
# would flatter: with one or two digits each, a worker soon knows its own.


# %%
@jax.jit
def consensus_loss(state):
    return loss_fn(cj.consensus(state), (images, labels))


def train(round_, run, shard):
    """The loss of the consensus after every round."""
    rng = np.random.default_rng(0)
    state = cj.replicate(round_.init(params), WORKERS)
    losses = []
    for _ in range(STEPS // round_.period):
        chosen = np.stack(
            [rng.choice(own, (round_.period, BATCH)) for own in shard]
        )
        state, _ = run(state, (images[chosen], labels[chosen]))
        losses.append(consensus_loss(state))
    return np.array(losses)


# %%
curves = {}
for algorithm, round_ in rounds.items():
    # One program a round.
    run = cj.distribute(round_, via="vmap", execution="fused")
    for split, shard in shards.items():
        curves[algorithm, split] = train(round_, run, shard)

# %% [markdown]
# ## Against steps, bytes and seconds
#
# The losses are those of the small network. For bytes and seconds we pretend that it is
# a larger one, as it would be on a cluster: 45 MB of parameters (a ResNet-18), 0.1 s
# for a local step, and a ring of 1 Gbit/s links. A ResNet would have other
# losses; the times are those of the clock. Local SGD and CoCoD-SGD have period 8.

# %%
STEP_SECONDS, BYTES = 0.1, 45e6


def exchange_seconds(gbits):
    link = timeline.Link(latency=50e-6, bandwidth=gbits * 1.25e8)
    return link.seconds(BYTES, WORKERS)


def clock(algorithm, gbits, steps):
    """Workers that keep step: one of them stands for all."""
    compute = timeline.Compute(STEP_SECONDS, workers=1)
    return timeline.simulate(
        algorithm, compute, exchange_seconds(gbits), steps=steps
    )


# %%
LOOKS = style.ALGORITHMS  # names and colours
LINES = {
    SSGD: (*LOOKS["ssgd"], "-"),
    PIPE_SGD: (*LOOKS["pipe_sgd"], "--"),
    timeline.CoCoDSGD(8, 0): (*LOOKS["local_sgd"], "-"),
    timeline.CoCoDSGD(8, 8): (*LOOKS["cocod"], "-"),
}


def steps_of(algorithm, split):
    """The local steps after which there is a loss."""
    rounds_done = np.arange(1, len(curves[algorithm, split]) + 1)
    return rounds_done * rounds[algorithm].period


def draw(axis, algorithm, split, x, label, colour, line):
    axis.plot(x, curves[algorithm, split], line, color=colour, label=label)
    axis.set(yscale="log", ylim=(0.03, 3))


# %%
fig, axes = plt.subplots(
    2, 3, figsize=(10, 5.6), layout="constrained", sharey=True
)
for row, split in zip(axes, shards, strict=True):
    for algorithm, look in LINES.items():
        steps = steps_of(algorithm, split)
        sent = BYTES / 1e6 * steps / algorithm.period
        seconds = clock(algorithm, 1, STEPS).step_ends[0, steps - 1]
        for axis, x in zip(row, (steps, sent, seconds), strict=True):
            draw(axis, algorithm, split, x, *look)
    row[0].set_ylabel(f"{split}\nloss of the consensus")
    row[1].set_xscale("log")
for axis, label in zip(
    axes[1], ("steps", "MB exchanged", "seconds"), strict=True
):
    axis.set_xlabel(label)
for axis in fig.axes:
    style.tidy(axis)
axes[0, 2].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# On a random split all four need the same number of steps, so sending less and hiding
# it is a plain gain. On data sorted by label, the workers of Local SGD and CoCoD-SGD
# run apart between merges, and each of their steps is worth less. At this bandwidth
# that eats up the time they save.
#
# ## The price of period and delay
#
# Delay 0 is Local SGD, and delay k is CoCoD-SGD.

# %%
MERGES = {
    0: ("delay 0", "o", "local_sgd"),
    1 / 2: ("delay k/2", "D", "just_in_time"),
    1: ("delay k", "^", "cocod"),
}
fig, axes = plt.subplots(
    1, 2, figsize=(9, 3.4), layout="constrained", sharey=True
)
for axis, split in zip(axes, shards, strict=True):
    for part, (label, marker, algorithm) in MERGES.items():
        last = [
            curves[timeline.CoCoDSGD(k, int(part * k)), split][-1]
            for k in PERIODS
        ]
        _, colour = LOOKS[algorithm]
        axis.plot(PERIODS, last, marker=marker, color=colour, label=label)
    name, colour = LOOKS["ssgd"]
    axis.axhline(curves[SSGD, split][-1], color=colour, label=name)
    axis.set(title=split, xlabel="period k", xticks=PERIODS, yscale="log")
    style.tidy(axis)
axes[0].set_ylabel(f"loss after {STEPS} steps")
axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# On even data the period and the delay cost almost nothing. On data sorted by label
# both do, and most of what CoCoD-SGD loses to Local SGD it loses by the second half of
# the delay:

# %%
for period in PERIODS:
    even, by_label = (
        [
            curves[timeline.CoCoDSGD(period, int(d * period)), s][-1]
            for d in DELAYS
        ]
        for s in shards
    )
    at_once, halfway, at_the_end = by_label
    late = (at_the_end - halfway) / (at_the_end - at_once)
    print(
        f"period {period:2}: {late:.0%} of the delay's price "
        "is that of its second half"
    )
    assert max(even) < 1.25 * curves[SSGD, "random split"][-1]
    assert at_once > 1.25 * curves[SSGD, "split by label"][-1]
    assert late > 0.5

# %% [markdown]
# So merge as soon as the mean is there, not at the end of the round: the just-in-time
# merge.
#
# ## Turn the knobs
#
# The curves are computed; only the clock runs again, so this reacts at once.


# %%
def redraw(gbits, period, delay):
    chosen = timeline.CoCoDSGD(period, int(delay * period))
    _, colour = LOOKS["cocod"]
    looks = {
        SSGD: (*LOOKS["ssgd"], "-"),
        timeline.CoCoDSGD(period, 0): (*LOOKS["local_sgd"], "-"),
        chosen: (f"period {period}, delay {chosen.delay}", colour, "-"),
    }
    clocks = {a: clock(a, gbits, 2 * period) for a in looks}
    timeline.gantt({looks[a][0]: clocks[a] for a in looks})
    _, axes = plt.subplots(
        1, 2, figsize=(9, 3), layout="constrained", sharey=True
    )
    for axis, split in zip(axes, shards, strict=True):
        for algorithm, look in looks.items():
            ends = clock(algorithm, gbits, STEPS).step_ends[0]
            ends = ends[steps_of(algorithm, split) - 1]
            draw(axis, algorithm, split, ends, *look)
        axis.set(title=split, xlabel="seconds", xlim=(0, 150))
        style.tidy(axis)
    axes[0].set_ylabel("loss of the consensus")
    axes[0].legend(frameon=False, fontsize=9)
    plt.show()


# %%
widgets.interactive(
    redraw,
    gbits=widgets.FloatLogSlider(
        1, min=-1, max=1.5, step=0.1, description="Gbit/s"
    ),
    period=widgets.SelectionSlider(options=PERIODS, value=8),
    delay=widgets.SelectionSlider(
        options=[("0", 0), ("k/2", 1 / 2), ("k", 1)], value=1
    ),
)

# %% [markdown]
# Try 10 Gbit/s: synchronous SGD hides its exchange, and there is nothing to gain. Try
# 0.3 Gbit/s: even a period of 16 does not hide everything.
#
# ## Ask for advice
#
# For your own numbers, a step and an exchange in seconds, the library has the sentence:

# %%
print(cj.advise(STEP_SECONDS, exchange_seconds(1), WORKERS, period=16))

# %% [markdown]
# ## What this does not show
#
# * One seed, one small network, one learning rate. Differences of a few per cent mean
#   nothing; take several seeds before you decide.
# * The clock knows constant times here. `timeline.Compute` also has jitter, stragglers
#   and unequal speeds, and workers that wait for each other lose more than this.
# * Other learning rates move the curves. A period that is too long for the learning
#   rate shows as a distance between workers (`metrics.distance`) that grows together
#   with the loss.
