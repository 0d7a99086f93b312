"""Flax models: Linen and NNX in the round, and in the usual per-step loops."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training import train_state

import cocod_jax as cj

N, PERIOD, ROUNDS = 4, 2, 10


def data():
    """Two Gaussian blobs: images [N, period, batch, 4, 4, 1] and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(ROUNDS, N, PERIOD, 8))
    images = rng.normal(size=(*labels.shape, 4, 4, 1)) + 2 * labels[..., *[None] * 3]
    return images.astype(np.float32), labels


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(2)(x)


def test_a_linen_model_with_batch_norm_and_dropout_trains():
    images, labels = data()
    model = LinenNet()
    variables = model.init(jax.random.key(0), images[0, 0, 0], train=False)

    def loss_fn(params, batch_stats, batch, key):
        image, label = batch
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return cross_entropy(logits, label), updated["batch_stats"]

    round_ = cj.make_round(
        loss_fn, optax.adam(0.02), cj.cocod("workers"), period=PERIOD, stateful=True
    )
    state = round_.init(variables["params"], variables["batch_stats"])
    state = cj.replicate(state, N)
    run = cj.distribute(round_)
    losses = []
    for batch in zip(images, labels, strict=True):
        state, metrics = run(state, batch)
        losses.append(metrics.loss)
    assert float(losses[-1].mean()) < 0.4
    # Statistics stay with their worker: each has seen its own data only.
    means = np.asarray(state.model_state["BatchNorm_0"]["mean"])
    assert len(np.unique(means, axis=0)) == N
    logits: Any = model.apply(
        {"params": cj.consensus(state), "batch_stats": cj.consensus_model_state(state)},
        images.reshape(-1, 4, 4, 1),
        train=False,
    )
    accuracy = (logits.argmax(-1) == labels.ravel()).mean()
    assert accuracy > 0.9


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.hidden(x.reshape(len(x), -1))
        return self.out(nnx.relu(self.norm(x)))


def test_an_nnx_model_trains_in_the_round():
    """Its states are trees of arrays: they go through the round as they are."""
    images, labels = data()
    graph, params, batch_stats = nnx.split(
        NNXNet(nnx.Rngs(0)), nnx.Param, nnx.BatchStat
    )

    def loss_fn(params, batch_stats, batch, key):
        model = nnx.merge(graph, params, batch_stats)
        loss = cross_entropy(model(batch[0]), batch[1])
        return loss, nnx.state(model, nnx.BatchStat)

    round_ = cj.make_round(
        loss_fn, optax.adam(0.05), cj.cocod("workers"), period=PERIOD, stateful=True
    )
    state = cj.replicate(round_.init(params, batch_stats), N)
    run = cj.distribute(round_)
    for batch in zip(images, labels, strict=True):
        state, _ = run(state, batch)
    model = nnx.merge(graph, cj.consensus(state), cj.consensus_model_state(state))
    model.eval()
    logits = model(images.reshape(-1, 4, 4, 1))
    assert (logits.argmax(-1) == labels.ravel()).mean() > 0.9


def test_every_in_a_train_state_loop():
    images, labels = data()
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), jnp.zeros([1, 16]))
    state = train_state.TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=cj.every(PERIOD, optax.adam(0.2), cj.cocod("workers")),
    )

    def step(state, image, label):
        loss_of = lambda params: cross_entropy(
            state.apply_fn(params, image.reshape(len(image), -1)), label
        )
        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradient), loss

    step = jax.pmap(step, axis_name="workers")
    state = cj.replicate(state, N)
    losses = []
    for image, label in zip(images, labels, strict=True):
        for t in range(PERIOD):
            state, loss = step(state, image[:, t], label[:, t])
            losses.append(loss)
    assert float(losses[-1].mean()) < 0.4


def test_every_in_an_nnx_optimizer_loop():
    """The model and its optimizer are one tree of arrays for each worker."""
    images, labels = data()
    model = NNXNet(nnx.Rngs(0))
    transform = cj.every(PERIOD, optax.adam(0.05), cj.cocod("workers"))
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))

    def step(state, image, label):
        model, optimizer = nnx.merge(graph, state)
        loss_of = lambda model: cross_entropy(model(image), label)
        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer)), loss

    step = jax.pmap(step, axis_name="workers")
    state = cj.replicate(state, N)
    losses = []
    for image, label in zip(images, labels, strict=True):
        for t in range(PERIOD):
            state, loss = step(state, image[:, t], label[:, t])
            losses.append(loss)
    assert float(losses[-1].mean()) < 0.4
