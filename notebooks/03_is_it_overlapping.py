# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it overlapping?
#
# An exchange that waits and one that hides give the same numbers, so a test of numbers
# cannot tell them apart. The certificate can: it asks the compiler. You will see
#
# * the certificate of a good round, as text and as a picture,
# * four rounds that look right and wait, each with its reason,
# * two faults that only the compiler knows of,
# * the same questions for a model of your own.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`, and once,
# for NVIDIA's compiler, which needs no GPU:
#
# ```bash
# python -m cocod_jax.certify --install
# ```
#
# Without the compiler this notebook runs as well, and shows what the data flow allows
# in place of what the compiler does.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax import lax

import cocod_jax as cj
from cocod_jax.certify import certify, compiler_available, dataflow

print(
    "compiler for GPUs:",
    "installed" if compiler_available() else "not installed",
)

# %% [markdown]
# ## A good round
#
# Nothing is trained here, and shapes are enough: the batches never exist.

# %%
WORKERS, PERIOD = 8, 8

net = nn.Sequential([nn.Dense(128), nn.tanh, nn.Dense(10)])
batches = (
    jax.ShapeDtypeStruct((WORKERS, PERIOD, 16, 64), jnp.float32),
    jax.ShapeDtypeStruct((WORKERS, PERIOD, 16), jnp.int32),
)


def loss_fn(params, batch):
    image, label = batch
    logits = net.apply(params, image)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy.mean()


# %%
def make_round(optimizer, rule, **options):
    return cj.make_round(loss_fn, optimizer, rule, period=PERIOD, **options)


def shapes(round_):
    """The state of all workers, as shapes."""
    params = net.init(jax.random.key(0), jnp.zeros([1, 64]))
    return jax.eval_shape(
        lambda p: cj.replicate(round_.init(p), WORKERS), params
    )


sgd = optax.sgd(0.1, momentum=0.9)
good = make_round(sgd, cj.cocod("workers"))

# %% [markdown]
# ### What the program allows
#
# The data flow is read from the program before any compiler, on any machine. Steps
# *before* a collective are those that it waits for, steps *after* wait for it. It can
# hide only behind those *beside* it.

# %%
(collective,) = dataflow(good, shapes(good), batches)
print(collective)
assert collective.beside == PERIOD

# %% [markdown]
# ### What the compiler does
#
# The certificate compiles the round for GPUs that are not there, and reads the
# schedule that they would follow. Without the compiler it says what is missing.

# %%
try:
    certificate = certify(good, shapes(good), batches, target="h100")
    print(certificate)
except ImportError as missing:
    certificate = None
    print(missing)

# %% [markdown]
# The row of the all-reduce starts before the local steps and ends after them: hidden.
# Widths are an order, not durations: no compiler knows how long both take. The same as
# a picture:

# %%
if certificate is not None:
    assert certificate.hidden
    certificate.plot()
    plt.show()


# %% [markdown]
# For what follows, one question: the certificate, or else what the data flow allows.


# %%
def ask(program, *args, **options):
    """The certificate, printed; None without the compiler."""
    if compiler_available():
        certificate = certify(program, *args, **options)
        print(certificate)
        return certificate
    print(*dict.fromkeys(dataflow(program, *args)), sep="\n")
    return None


# %% [markdown]
# ## Four rounds that wait
#
# **1. Local SGD** merges before its steps, which need the mean to begin. That is the
# algorithm, not a mistake; the certificate only says what it costs.

# %%
local_sgd = make_round(sgd, cj.cocod("workers"), delay=0)
waiting = {
    "Local SGD": ask(local_sgd, shapes(local_sgd), batches, target="h100")
}

# %% [markdown]
# **2. Synchronous SGD** averages gradients in every step of the loop.

# %%
ssgd = make_round(
    optax.chain(cj.mean_gradients("workers"), sgd), cj.independent(), delay=0
)
waiting["S-SGD"] = ask(ssgd, shapes(ssgd), batches, target="h100")


# %% [markdown]
# **3. A loss that is averaged inside of the round**, for the log. Four bytes, and the
# overlap is gone: the compiler merges the two all-reduces into one, which then waits
# for the loss. This is why a round returns the metrics of each worker.


# %%
def with_mean_loss(state, batches):
    state, metrics = good.run(state, batches)
    return state, lax.pmean(metrics.loss.mean(), "workers")


waiting["mean loss"] = ask(
    with_mean_loss, shapes(good), batches, target="h100"
)


# %% [markdown]
# **4. An exchange in a conditional**, to send in every second round only. A conditional
# ends before anything else runs.


# %%
def every_second_round(state, batches):
    snapshot = state.params
    sends = state.count % (2 * PERIOD) == 0
    average = cj.mean("workers").average
    arriving = lax.cond(sends, average, lambda own: own, snapshot)
    state, metrics = lax.scan(good.step, state, batches)
    move = lambda m, x, s: m + (x - s)
    params = jax.tree.map(move, arriving, state.params, snapshot)
    return state._replace(params=params), metrics


waiting["conditional"] = ask(
    every_second_round, shapes(good), batches, target="h100"
)

# %% [markdown]
# All four as pictures. Where the all-reduce is in a loop or in a conditional (2 and 4),
# the picture shows the exchange alone, without the steps around it.

# %%
if compiler_available():
    fig, axes = plt.subplots(4, figsize=(10, 6.5), layout="constrained")
    for axis, (name, certificate) in zip(axes, waiting.items(), strict=True):
        assert not certificate.hidden
        certificate.plot(axis)
        axis.set_title(f"{name}: {certificate.verdict}", fontsize=10)
        axis.set_xlabel("")
    plt.show()

# %% [markdown]
# ## What only the compiler knows
#
# The data flow of the next two programs is that of the good round. The fault is in what
# the compiler makes of it.
#
# **Many leaves.** Each large array that is sent for itself becomes an all-reduce of its
# own, and only one of them can be in flight beside the steps. `cj.mean` packs them into
# one buffer; an average that you wrote yourself may not.

# %%
leaf = jax.ShapeDtypeStruct((2, 1000, 2000), jnp.float32)
big = [leaf] * 5  # 40 MB in five leaves
inputs = jax.ShapeDtypeStruct((2, PERIOD, 8, 1000), jnp.float32)


def leaf_by_leaf(params, inputs):
    loss = lambda params, x: sum(jnp.mean((x @ leaf) ** 2) for leaf in params)
    step = lambda params, x: (
        jax.tree.map(
            lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x)
        ),
        None,
    )
    arriving = lax.pmean(params, "workers")
    reached, _ = lax.scan(step, params, inputs)
    return jax.tree.map(lambda m, x, s: m + (x - s), arriving, reached, params)


certificate = ask(leaf_by_leaf, big, inputs, target="h100")

# %% [markdown]
# **An A100.** On GPUs before Hopper the compiler overlaps nothing unless a flag is set,
# whatever the program. The certificate names the flag, and tries it:

# %%
for options in (None, cj.compiler_options("gpu")):
    ask(
        good,
        shapes(good),
        batches,
        target="a100",
        compiler_options=options,
    )
    print()

# %% [markdown]
# ## Your own model
#
# Put your loss, your optimizer and the shapes of your batches here. This one has batch
# norm and dropout, trains with AdamW, and is to run on four hosts.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(
            nn.BatchNorm(use_running_average=not train)(nn.Dense(256)(x))
        )
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))


def own_loss(params, batch_stats, batch, key):
    image, label = batch
    logits, updated = Net().apply(
        {"params": params, "batch_stats": batch_stats},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, label
    ).mean()
    return loss, updated["batch_stats"]


# %%
own = cj.make_round(
    own_loss,
    optax.adamw(1e-3),
    cj.cocod("workers"),
    period=PERIOD,
    delay=3,
    stateful=True,
)


def initial_state():
    variables = Net().init(jax.random.key(0), jnp.zeros([1, 64]), train=False)
    state = own.init(variables["params"], variables["batch_stats"])
    return cj.replicate(state, WORKERS)


state = jax.eval_shape(initial_state)
certificate = ask(own, state, batches, target="h100", devices=32, hosts=4)

# %% [markdown]
# With delay 3 the exchange hides behind three steps of eight, and the merge is early.
# That is enough when an exchange takes no longer than three steps.
#
# In a test, `certify(...).check()` raises an error with all of the above when something
# is exposed. From a shell, for a script with a function `certifiable` (this one in a
# clone, with `pip install -e '.[experiments]'`):
#
# ```bash
# python -m cocod_jax.certify experiments.train --target h100 --devices 8
# ```
#
# ## What a certificate is not
#
# It is about the schedule: what may run while the exchange is in flight. It does not
# say how fast either is, nor whether the GPU has room for both. For that, measure.
