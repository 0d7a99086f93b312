# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hide the exchange in your own loop
#
# You have a training loop that calls an optax optimizer step by step, and want to keep
# it. You will see
#
# * the loop with synchronous SGD, whose every step waits for an exchange,
# * one changed line, after which each step exchanges a piece of the model beside
#   itself,
# * what that does to the loss, to the workers' drift, and to the bytes on the network,
# * how to ask the compiler whether the exchange is hidden.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`. No GPU is
# needed.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import cocod_jax as cj
from cocod_jax import style
from cocod_jax.certify import certify, dataflow

# %% [markdown]
# ## A loop
#
# Eight workers have an eighth of the digits each. The step is that of one worker:
# gradient, optimizer, new parameters. `vmap` runs it for all eight on one device; on
# eight GPUs it is `jax.pmap(step, axis_name="workers")`, and nothing else changes.

# %%
WORKERS, BATCH, STEPS = 8, 16, 480

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
shards = np.random.default_rng(0).permutation(1792).reshape(WORKERS, -1)

net = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
start = net.init(jax.random.key(0), jnp.zeros([1, 64]))


def loss_fn(params, batch):
    image, label = batch
    logits = net.apply(params, image)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy.mean()


# %%
def step_with(optimizer):
    def step(params, state, batch):
        gradient = jax.grad(loss_fn)(params, batch)  # this worker's own
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def batches(seed):
    """Leaves of shape [workers, batch, ...], for one step after the other."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        chosen = np.stack([rng.choice(own, BATCH) for own in shards])
        yield images[chosen], labels[chosen]


# %% [markdown]
# Two numbers after each step: the loss of the mean of all workers, which is the model
# to keep, and the **drift**, the mean squared distance of a worker from that mean.


# %%
@jax.jit
def measure(params):
    model = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
    apart = jax.tree.map(lambda own, mean: own - mean, params, model)
    drift = optax.tree.norm(apart, squared=True) / WORKERS
    return loss_fn(model, (images, labels)), drift


def train(optimizer, seed=0):
    """The losses and the drifts, [STEPS] each."""
    step = jax.vmap(step_with(optimizer), axis_name="workers")
    # What makes the compiler for GPUs start an exchange early; {} on a CPU.
    step = jax.jit(step, compiler_options=cj.compiler_options())
    state = optimizer.init(start)
    params, state = cj.replicate((start, state), WORKERS)
    found = []
    for batch in batches(seed):
        params, state = step(params, state, batch)
        found.append(measure(params))
    return np.array(found).T


# %% [markdown]
# ## Synchronous SGD, and one changed line
#
# S-SGD averages the gradients: all workers take the same step, after an exchange as
# large as the model.

# %%
ssgd = optax.chain(cj.mean_gradients("workers"), optax.adamw(1e-3))

# %% [markdown]
# The changed line: each worker takes its own step, and meanwhile exchanges an eighth of
# the parameters, another one in every step. Then it merges what has arrived, $x
# \leftarrow m + (x - s)$: the mean $m$ of what the workers had when the step began, and
# what this worker has done since.

# %%
streamed = cj.every(8, optax.adamw(1e-3), cj.cocod("workers"), streamed=True)

# %% [markdown]
# A worker's own gradients are noisier than their mean, and Adam divides by their size,
# so that eight own steps have a shorter mean than one step of S-SGD. Both forms of
# CoCoD-SGD therefore get twice the learning rate as well. The second form is for
# comparison: all of the model at once, in every eighth step.

# %%
faster, rule = optax.adamw(2e-3), cj.cocod("workers")
optimizers = {
    "S-SGD": ssgd,
    "streamed": streamed,
    "streamed, 2e-3": cj.every(8, faster, rule, streamed=True),
    "whole, 2e-3": cj.every(8, faster, rule),
}
curves = {name: train(tx) for name, tx in optimizers.items()}

# %%
LOOKS = {
    "S-SGD": (style.BLACK, "-"),
    "streamed": (style.SKY_BLUE, "-"),
    "streamed, 2e-3": (style.BLUE, "-"),
    "whole, 2e-3": (style.VERMILION, "--"),
}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, (losses, drifts) in curves.items():
    colour, line = LOOKS[name]
    axes[0].plot(losses, line, color=colour, label=name)
    if name != "S-SGD":  # whose workers are equal
        axes[1].plot(drifts, line, color=colour, label=name)
axes[0].set_ylabel("loss of the workers' mean")
axes[1].set_ylabel("drift")
for axis in axes:
    axis.set(xlabel="step", yscale="log")
    axis.legend(frameon=False, fontsize=9)
    style.tidy(axis)
plt.show()

# %%
for name, (losses, drifts) in curves.items():
    last, mean = losses[-1], drifts.mean()
    print(f"{name:15} loss {last:.3f}, drift {mean:.3f} on average")

ends = {name: losses[-1] for name, (losses, _) in curves.items()}
drift = {name: drifts.mean() for name, (_, drifts) in curves.items()}
assert ends["S-SGD"] < 0.7 * ends["streamed"]
assert ends["streamed, 2e-3"] < 1.2 * ends["S-SGD"]
assert drift["streamed, 2e-3"] < 0.5 * drift["whole, 2e-3"]

# %% [markdown]
# At twice its learning rate, the streamed optimizer keeps up with S-SGD. It reaches the
# loss of CoCoD-SGD with less than half of its drift: what arrives is one step old, not
# eight. That is one small problem and one seed.
#
# ## What travels
#
# `dataflow` reads a program's collectives. The data are shapes; nothing runs.


# %%
def asked(question, optimizer, batch=BATCH, **options):
    """A question about the step of all workers."""
    params, state = jax.eval_shape(
        lambda params: cj.replicate((params, optimizer.init(params)), WORKERS),
        start,
    )
    image = jax.ShapeDtypeStruct((WORKERS, batch, 64), jnp.float32)
    label = jax.ShapeDtypeStruct((WORKERS, batch), jnp.int32)
    step = step_with(optimizer)
    return question(step, params, state, (image, label), **options)


sent = {}
for name, tx in optimizers.items():
    (collective,) = asked(dataflow, tx)
    sent[name] = collective.bytes
    when = "in every eighth step" if name[:5] == "whole" else "in every step"
    print(f"{name:15} {collective.bytes:6,} B {when}")

assert 8 * sent["streamed"] <= 1.01 * sent["S-SGD"]
assert sent["whole, 2e-3"] == sent["S-SGD"]

# %% [markdown]
# In eight steps the streamed optimizer sends what S-SGD sends in one, as a constant
# load and not as a burst. (An eighth of each array is rounded up to whole numbers.)
#
# ## Is it hidden?
#
# The certificate compiles the step for GPUs that are not there, and reads the schedule.
# The compiler is installed once, by `python -m cocod_jax.certify --install`. It gets
# the same options as the loop above would on a GPU, and batches of 256: with a handful
# of images per worker there would be little to hide behind.

# %%
try:
    options = cj.compiler_options("gpu")
    certificate = asked(certify, streamed, batch=256, compiler_options=options)
    print(certificate)
    assert certificate.hidden
except ImportError as missing:
    print(missing)

# %% [markdown]
# The exchange starts with the step and ends behind the backward pass: what is left is
# the optimizer and the merge. The larger the batch, the smaller their share of the
# work. Ask for your own step, on the GPUs that you will have. On a CPU nothing is
# hidden: the numbers are right, and the seconds say nothing.
#
# ## What to know
#
# * The gradients are the worker's own. Nothing may average them before `update`.
# * Workers differ. Evaluate their mean, as `measure` does.
# * The state is whole after every step: save it with the parameters, and go on.
# * Each step waits for the slowest worker of the step before. Where workers pause, a
#   round of whole exchanges is better: [notebook 2](02_which_algorithm.ipynb) compares.
