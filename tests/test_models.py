"""The networks of the experiments as pure functions."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models

NAMES = ("resnet18", "vgg16", "cnn")
WITH_BATCH_NORM = ("resnet18", "vgg16")
CHANNELS, CLASSES = 3, 10


@functools.cache
def build(name, seed=0):
    """A narrow network: quick, and of the same structure."""
    return models.build(
        name,
        num_classes=CLASSES,
        channels=CHANNELS,
        width=4,
        # The default generator takes the compiler seconds for each shape.
        key=jax.random.key(seed, impl="rbg"),
    )


def images(batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, 32, 32, CHANNELS)).astype(np.float32)


def count(name, width=None):
    """The number of parameters, without making them."""

    def params(key):
        return models.build(
            name, num_classes=CLASSES, channels=CHANNELS, width=width, key=key
        ).params

    return models.parameter_count(jax.eval_shape(params, jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_173_962), ("vgg16", 14_728_266), ("cnn", 94_538)],
)
def test_the_default_width_is_that_of_the_literature(name, parameters):
    assert count(name) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_the_width_scales_every_stage(name):
    # All but the ends of a network grows with the square of its width.
    assert 3.5 < count(name, 32) / count(name, 16) < 4


@pytest.mark.parametrize("name", NAMES)
def test_trees_are_plain_nested_dicts_of_float32(name):
    def check(node):
        if type(node) is dict:
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    model = build(name)
    check(model.params)
    check(model.model_state)
    assert bool(model.model_state) == (name in WITH_BATCH_NORM)


@functools.cache
def jitted(name, train):
    """Through jit, as a round runs it, and compiled once for all tests."""
    return jax.jit(functools.partial(build(name).apply, train=train))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("train", [False, True])
def test_apply_is_pure_and_gives_one_logit_a_class(name, train):
    model = build(name)
    before = jax.tree.map(np.array, model[1:])
    run = functools.partial(jitted(name, train), *model[1:], images())
    logits, model_state = run()
    chex.assert_shape(logits, (2, CLASSES))
    chex.assert_type(logits, jnp.float32)
    chex.assert_trees_all_equal((logits, model_state), run())
    chex.assert_trees_all_equal_shapes_and_dtypes(model_state, model.model_state)
    chex.assert_trees_all_equal(before, model[1:])


def test_apply_gives_the_same_without_jit():
    model = build("cnn")
    plain, _ = model.apply(*model[1:], images(), train=True)
    compiled, _ = jitted("cnn", True)(*model[1:], images())
    # float32 sums that fusion reorders.
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_only_training_changes_the_batch_statistics(name):
    model = build(name)
    _, trained = jitted(name, True)(*model[1:], images())
    _, evaluated = jitted(name, False)(*model[1:], images())
    chex.assert_trees_all_equal(evaluated, model.model_state)
    for old, new in zip(
        jax.tree.leaves(model.model_state), jax.tree.leaves(trained), strict=True
    ):
        assert (old != new).any()


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_evaluation_uses_the_statistics_that_it_is_given(name):
    model = build(name)
    shifted = jax.tree.map(lambda leaf: leaf + 1, model.model_state)
    first, _ = jitted(name, False)(model.params, model.model_state, images())
    other, _ = jitted(name, False)(model.params, shifted, images())
    assert not np.allclose(first, other)


@pytest.mark.parametrize("train", [False, True])
def test_only_training_mixes_the_images_of_a_batch(train):
    model = build("resnet18")
    changed = images()
    changed[1] *= 2
    first, _ = jitted("resnet18", train)(*model[1:], images())
    other, _ = jitted("resnet18", train)(*model[1:], changed)
    assert np.array_equal(first[0], other[0]) != train


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_on_every_worker(name):
    model, workers = build(name), 2

    def loss(params, model_state, images):
        logits, model_state = model.apply(params, model_state, images, train=True)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), model_state

    stack = lambda leaf: jnp.stack([leaf] * workers)
    gradient, model_state = jax.pmap(jax.grad(loss, has_aux=True), "workers")(
        *jax.tree.map(stack, model[1:]), images(4).reshape(workers, 2, 32, 32, CHANNELS)
    )
    chex.assert_trees_all_equal_structs(gradient, model.params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path
    for leaf in jax.tree.leaves(model_state):
        # Each worker keeps the statistics of its own images.
        assert (leaf[0] != leaf[1]).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_key_decides_the_initial_parameters(name):
    chex.assert_trees_all_equal(build(name).params, build.__wrapped__(name).params)
    kernel = lambda model: max(jax.tree.leaves(model.params), key=lambda p: p.ndim)
    assert (kernel(build(name)) != kernel(build(name, seed=1))).any()


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"name='lenet' must be one of \['cnn', "):
        models.build("lenet", num_classes=2, channels=1, key=jax.random.key(0))


WRONG_WIDTHS: list[Any] = [0, -8, 1.5, True, "64"]


@pytest.mark.parametrize("width", WRONG_WIDTHS)
def test_a_width_that_is_no_positive_integer_is_an_error(width):
    with pytest.raises(ValueError, match=r"width=.* must be an integer of at least 1"):
        models.build(
            "cnn", num_classes=2, channels=1, width=width, key=jax.random.key(0)
        )
