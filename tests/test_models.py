"""The networks of the experiments as pure functions."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models
from experiments.models.resnet import batch_norm


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """What is compiled here runs once or twice."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


NAMES = ("resnet18", "vgg16", "cnn")
WITH_BATCH_NORM = ("resnet18", "vgg16")
CHANNELS, CLASSES = 3, 10


@functools.cache
def build(name, width=4):
    """A narrow network: quick, and of the same structure."""
    return models.build(name, num_classes=CLASSES, channels=CHANNELS, width=width)


@functools.cache
def initial(name, seed=0):
    """Its parameters and its batch statistics."""
    # The default generator takes the compiler seconds for each shape.
    return jax.jit(build(name).init)(jax.random.key(seed, impl="rbg"))


def images(batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, 32, 32, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_173_962), ("vgg16", 14_728_266), ("cnn", 94_538)],
)
def test_the_default_width_is_that_of_the_literature(name, parameters):
    assert models.parameter_count(build(name, None).init) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_the_width_scales_every_stage(name):
    wide, narrow = (models.parameter_count(build(name, w).init) for w in (32, 16))
    # All but the ends of a network grows with the square of its width.
    assert 3.5 < wide / narrow < 4


@pytest.mark.parametrize("name", NAMES)
def test_trees_are_plain_nested_dicts_of_float32(name):
    def check(node):
        if type(node) is dict:
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    params, model_state = initial(name)
    check(params)
    check(model_state)
    assert bool(model_state) == (name in WITH_BATCH_NORM)


@functools.cache
def jitted(name, train):
    """Through jit, as a round runs it, and compiled once for all tests."""
    return jax.jit(functools.partial(build(name).apply, train=train))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("train", [False, True])
def test_apply_is_pure_and_gives_one_logit_a_class(name, train):
    before = jax.tree.map(np.array, initial(name))
    run = functools.partial(jitted(name, train), *initial(name), images())
    logits, model_state = run()
    chex.assert_shape(logits, (2, CLASSES))
    chex.assert_type(logits, jnp.float32)
    chex.assert_trees_all_equal((logits, model_state), run())
    chex.assert_trees_all_equal_shapes_and_dtypes(model_state, before[1])
    chex.assert_trees_all_equal(before, initial(name))


def test_apply_gives_the_same_without_jit():
    plain, _ = build("cnn").apply(*initial("cnn"), images(), train=True)
    compiled, _ = jitted("cnn", True)(*initial("cnn"), images())
    # float32 sums that fusion reorders.
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_only_training_changes_the_batch_statistics(name):
    params, model_state = initial(name)
    _, trained = jitted(name, True)(params, model_state, images())
    _, evaluated = jitted(name, False)(params, model_state, images())
    chex.assert_trees_all_equal(evaluated, model_state)
    for old, new in zip(
        jax.tree.leaves(model_state), jax.tree.leaves(trained), strict=True
    ):
        assert (old != new).any()


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_evaluation_uses_the_statistics_that_it_is_given(name):
    params, model_state = initial(name)
    shifted = jax.tree.map(lambda leaf: leaf + 1, model_state)
    first, _ = jitted(name, False)(params, model_state, images())
    other, _ = jitted(name, False)(params, shifted, images())
    assert not np.allclose(first, other)


@pytest.mark.parametrize("train", [False, True])
def test_only_training_mixes_the_images_of_a_batch(train):
    changed = images()
    changed[1] *= 2
    first, _ = jitted("resnet18", train)(*initial("resnet18"), images())
    other, _ = jitted("resnet18", train)(*initial("resnet18"), changed)
    assert np.array_equal(first[0], other[0]) != train


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_on_every_worker(name):
    model, workers = build(name), 2

    def loss(params, model_state, images):
        logits, model_state = model.apply(params, model_state, images, train=True)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), model_state

    stack = lambda leaf: jnp.stack([leaf] * workers)
    gradient, model_state = jax.pmap(jax.grad(loss, has_aux=True), "workers")(
        *jax.tree.map(stack, initial(name)),
        images(4).reshape(workers, 2, 32, 32, CHANNELS),
    )
    chex.assert_trees_all_equal_structs(gradient, initial(name)[0])
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path
    for leaf in jax.tree.leaves(model_state):
        # Each worker keeps the statistics of its own images.
        assert (leaf[0] != leaf[1]).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_key_decides_the_initial_parameters(name):
    chex.assert_trees_all_equal(initial(name), initial.__wrapped__(name))
    kernel = lambda values: max(jax.tree.leaves(values[0]), key=lambda p: p.ndim)
    assert (kernel(initial(name)) != kernel(initial(name, seed=1))).any()


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"name='lenet' must be one of \['cnn', "):
        models.build("lenet", num_classes=2, channels=1)


WRONG_WIDTHS: list[Any] = [0, -8, 1.5, True, "64"]


@pytest.mark.parametrize("width", WRONG_WIDTHS)
def test_a_width_that_is_no_positive_integer_is_an_error(width):
    with pytest.raises(ValueError, match=r"width=.* must be an integer of at least 1"):
        models.build("cnn", num_classes=2, channels=1, width=width)


def conv(x, kernel, stride=1):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def norm(x, params, state):
    x = (x - state["mean"]) / jnp.sqrt(state["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def resnet18(p, s, x):
    """He et al. 2016, section 4.2, layer by layer from the trees."""
    x = jax.nn.relu(norm(conv(x, p["stem"]["kernel"]), p["norm"], s["norm"]))
    for i in range(8):
        q, t, stride = p["blocks"][i], s["blocks"][i], 2 if i in (2, 4, 6) else 1
        y = conv(x, q["conv1"]["kernel"], stride)
        y = jax.nn.relu(norm(y, q["norm1"], t["norm1"]))
        y = norm(conv(y, q["conv2"]["kernel"]), q["norm2"], t["norm2"])
        if stride == 2:
            one, two = q["shortcut"]["layers"][0], q["shortcut"]["layers"][1]
            x = conv(x, one["kernel"], stride)
            x = norm(x, two, t["shortcut"]["layers"][1])
        x = jax.nn.relu(x + y)
    return x.mean(axis=(1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


def vgg16(p, s, x):
    for i in range(13):
        c = p["convs"][i]
        x = jax.nn.relu(
            norm(conv(x, c["kernel"]) + c["bias"], p["norms"][i], s["norms"][i])
        )
        if i in (1, 3, 6, 9, 12):
            n, h, w, d = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, d).max(axis=(2, 4))
    return x[:, 0, 0] @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize(
    ("name", "reference"), [("resnet18", resnet18), ("vgg16", vgg16)]
)
def test_evaluation_equals_the_network_written_out(name, reference):
    model = build(name)
    rng = np.random.default_rng(0)
    # No scale of 1 and no mean of 0: each layer's own numbers matter.
    params, state = jax.tree.map(
        lambda leaf: leaf + rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32),
        initial(name),
    )
    image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = jax.jit(lambda *a: model.apply(*a, train=False)[0])
    # rank promotion is allowed here: the formulas are those of the paper.
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(reference)(params, state, image)
    # Sums in another order, layer upon layer: they were seen to differ by 2e-7.
    np.testing.assert_allclose(ours(params, state, image), expected, rtol=1e-5)


def test_batch_norm_keeps_nine_tenths_of_its_statistics():
    layer = batch_norm(1, nnx.Rngs(0))
    x = np.array([3.0, 5.0], np.float32).reshape(2, 1, 1, 1)
    y = layer(x)
    np.testing.assert_allclose(layer.mean[...], [0.9 * 0 + 0.1 * 4], rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], [0.9 * 1 + 0.1 * 1], rtol=1e-6)
    assert y.shape == x.shape


def test_kernels_of_the_resnet_start_with_the_variance_of_he_by_fan_out():
    init = build("resnet18", 16).init
    draw = jax.jit(lambda key: init(key)[0]["stem"]["kernel"])
    # 27 x 16 draws: 3.4 % is one deviation of the estimate.
    stem = np.asarray(draw(jax.random.key(0, impl="rbg")))
    np.testing.assert_allclose(stem.std(), np.sqrt(2 / (9 * 16)), rtol=0.15)


def test_vgg_refuses_images_that_vanish():
    image = jnp.zeros([1, 28, 28, CHANNELS])
    with pytest.raises(ValueError, match=r"\(28, 28\) pixels are too small"):
        build("vgg16").apply(*initial("vgg16"), image, train=False)
