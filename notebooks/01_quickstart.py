# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# Train a small network with CoCoD-SGD on eight simulated workers. You will see
#
# * the optax optimizer: one line in a training loop that you already have,
# * the round: the same algorithm as a program that can hide its communication,
# * the consensus: the model that you keep.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`. No GPU is
# needed.

# %%
from functools import partial

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm

import cocod_jax as cj
from cocod_jax import style

# %% [markdown]
# ## Eight workers, each with its own data
#
# The data are 1,797 real digits of 8 by 8 pixels. Each worker owns an eighth of the
# training set, and draws its batches from there.

# %%
WORKERS, PERIOD, BATCH, ROUNDS = 8, 8, 16, 80

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train_x, test_x, train_y, test_y = train_test_split(
    images, labels, test_size=357, stratify=labels, random_state=0
)
shuffled = np.random.default_rng(0).permutation(len(train_x))
shards = shuffled.reshape(WORKERS, -1)


# %% [markdown]
# A **round** is a *period* of local steps. This yields the batches of one round after
# the other; every array has the axes `[workers, period, batch, ...]`.


# %%
def draw_rounds(rounds=ROUNDS, seed=0):
    """The same batches for whoever asks with the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        chosen = np.stack(
            [rng.choice(shard, (PERIOD, BATCH)) for shard in shards]
        )
        yield train_x[chosen], train_y[chosen]


# %% [markdown]
# ## A model and its loss
#
# Any pure function of parameters and one batch will do. It knows nothing of workers.

# %%
net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = net.init(jax.random.key(0), train_x[:1])


def loss_fn(params, batch):
    image, label = batch
    logits = net.apply(params, image)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy.mean()


def accuracy(params):
    return (net.apply(params, test_x).argmax(axis=-1) == test_y).mean()


# %% [markdown]
# ## One line of optax
#
# Synchronous SGD averages the gradients in every step. CoCoD-SGD takes local steps,
# and averages parameters once every eight. Both are optimizers like any other:

# %%
local = optax.sgd(0.03, momentum=0.9)

ssgd = optax.chain(cj.mean_gradients("workers"), local)
cocod = cj.every(PERIOD, local, cj.cocod("workers"))


# %% [markdown]
# `"workers"` is the name of an axis. Here `vmap` binds it: all eight workers share one
# device. The simulation gives the numbers of eight devices, needs none of them, and
# works in a notebook that has used JAX before. On real devices the same function goes
# into `pmap` or `shard_map`, as in `05_many_gpus`.


# %%
def train_step_by_step(optimizer):
    """An ordinary training loop; its losses have shape [steps, workers]."""

    @jax.jit
    @partial(jax.vmap, axis_name="workers")
    def step(params, opt_state, batch):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    own_params = cj.replicate(params, WORKERS)
    opt_state = jax.vmap(optimizer.init)(own_params)
    losses = []
    for image, label in draw_rounds():
        for t in range(PERIOD):
            batch = image[:, t], label[:, t]
            own_params, opt_state, loss = step(own_params, opt_state, batch)
            losses.append(loss)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), own_params)
    return mean, np.array(losses)


# %%
reached = {}
for name, optimizer in {"S-SGD": ssgd, "CoCoD-SGD": cocod}.items():
    model, losses = train_step_by_step(optimizer)
    reached[name] = accuracy(model)
    print(f"{name:10}  test accuracy {reached[name]:.1%}")

assert abs(reached["S-SGD"] - reached["CoCoD-SGD"]) < 0.03

# %% [markdown]
# The two end alike, to a few of the 357 test images, and CoCoD-SGD has sent an eighth
# of the bytes.
#
# ## The round
#
# A program of one step has no steps to hide an exchange behind. The round has eight:
# it sends a snapshot first, takes its local steps meanwhile, and merges what arrives.

# %%
round_ = cj.make_round(loss_fn, local, cj.cocod("workers"), period=PERIOD)
state = cj.replicate(round_.init(params), WORKERS)
run = cj.distribute(round_, via="vmap")

steps_per_epoch = len(train_x) // (WORKERS * BATCH)
print(cj.summary(round_, state, steps_per_epoch=steps_per_epoch))

# %% [markdown]
# `run` takes the state and the batches of one round. The metrics come back for every
# worker and every step.

# %%
history = []
with tqdm(draw_rounds(), total=ROUNDS, unit="round") as progress:
    for batches in progress:
        state, metrics = run(state, batches)
        history.append(jax.device_get(metrics))
        progress.set_postfix(loss=f"{history[-1].loss.mean():.3f}")

# %% [markdown]
# It follows the algorithm of the optimizer above, so the losses must be the same:

# %%
round_losses = np.concatenate([metrics.loss.T for metrics in history])
np.testing.assert_allclose(round_losses, losses, rtol=1e-3, atol=1e-4)

# %% [markdown]
# ## The consensus
#
# Between rounds the workers differ, each by its own progress. The model to evaluate
# and to keep is their mean.

# %%
model = cj.consensus(state)
print(f"test accuracy of the consensus: {accuracy(model):.1%}")
assert accuracy(model) > 0.94

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
steps = np.arange(1, len(round_losses) + 1)
left.plot(steps, round_losses, color=style.SKY_BLUE, linewidth=0.4, alpha=0.6)
left.plot(
    steps,
    round_losses.mean(axis=1),
    color=style.VERMILION,
    label="mean of 8 workers",
)
left.set(xlabel="local step", ylabel="loss of the local batch", yscale="log")
left.legend(frameon=False)
right.plot(
    [metrics.distance.mean() for metrics in history], color=style.VERMILION
)
right.set(
    xlabel="round", ylabel="distance of a worker to the mean", ylim=(0, None)
)
for axis in fig.axes:
    style.tidy(axis)
plt.show()

# %% [markdown]
# Left, the loss; thin lines are single workers. Right, how far a worker's snapshot is
# from the mean that arrives, a number to watch: when it keeps growing, and the loss
# with it, the period is too long for the learning rate. `cj.DriftAlarm` watches both.
#
# ## Where to go on
#
# * `02_which_algorithm`: what the period and the delay cost, and what they save.
# * `03_is_it_overlapping`: ask the compiler whether your round hides its exchange.
# * `04_write_your_own_rule`: another merge rule in a few lines.
# * `05_many_gpus`: from here to GPUs, processes and a cluster.
