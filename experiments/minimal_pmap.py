"""CoCoD-SGD as a plain multi-GPU pmap script: ``python -m experiments.minimal_pmap``.

Every device is a worker. The all-reduce of the workers' snapshots runs while they
take their next local steps. Without a GPU it runs on four CPU devices.
"""

import jax

jax.config.update("jax_num_cpu_devices", 4)  # CPUs only: must come before any JAX use

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import cocod_jax as cj  # noqa: E402

PERIOD, BATCH, ROUNDS = 8, 16, 200

# Data: 1,797 real 8x8 digits; worker i draws from its own part of the first 1,500.
images, labels = map(np.asarray, load_digits(return_X_y=True))
images = (images / 16).astype(np.float32)
devices = jax.devices()
parts = np.array_split(np.arange(1500), len(devices))
rng = np.random.default_rng(0)


def draw_batches():
    """One batch for every local step of every worker: [N, period, batch, ...]."""
    chosen = np.stack([rng.choice(part, (PERIOD, BATCH)) for part in parts])
    return images[chosen], labels[chosen]


def predict(params, image):
    return jnp.tanh(image @ params["hidden"]) @ params["out"]


def loss_fn(params, batch):
    image, label = batch
    logits = predict(params, image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


params = {"hidden": rng.normal(size=(64, 64)) / 8, "out": np.zeros([64, 10])}

inner = optax.sgd(0.1, momentum=0.9)  # the local optimizer: any optax transform
rule = cj.cocod("workers")  # the mean of stale snapshots plus own progress
round_ = cj.make_round(loss_fn, inner, rule, period=PERIOD)
state = cj.replicate(round_.init(params), len(devices), devices=devices)
run = jax.pmap(round_.run, axis_name="workers", donate_argnums=0)

for r in range(ROUNDS):
    state, metrics = run(state, draw_batches())
    if r % 50 == 49:
        print(f"round {r + 1:3d}   loss {metrics.loss.mean():.4f}")

model = cj.consensus(state)  # the mean of the workers: the model to evaluate
correct = predict(model, images[1500:]).argmax(axis=-1) == labels[1500:]
print(f"test accuracy of the consensus: {correct.mean():.1%}")
