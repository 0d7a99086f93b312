"""The language model: what it computes, how it is divided, and what it writes."""

import functools
import math
import re
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from experiments.config import Size
from experiments.models import transformer
from experiments.models.sampling import sample
from experiments.models.sharding import partition_specs
from experiments.models.transformer import SIZES, rotary
from tests.published import shown

ROOT = Path(__file__).parent.parent

VOCABULARY = 11


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """What is compiled here runs for seconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def build(**options):
    return transformer.build("tiny", vocabulary=VOCABULARY, **options)


@functools.cache
def initial(seed=0):
    # The default generator takes the compiler seconds for each shape.
    return jax.jit(build().init)(jax.random.key(seed, impl="rbg"))[0]


@functools.cache
def jitted(**options):
    model = build(**options)
    return jax.jit(lambda params, tokens: model.apply(params, {}, tokens, train=True))


def logits(params, tokens, **options):
    return jitted(**options)(params, tokens)[0]


def tokens(batch=2, length=8, seed=0):
    return np.random.default_rng(seed).integers(VOCABULARY, size=(batch, length))


# ------------------------------------------------------------------ what it computes


def test_one_logit_for_each_token_that_may_follow():
    out, model_state = jitted()(initial(), tokens())
    assert out.shape == (2, 8, VOCABULARY)
    assert out.dtype == jnp.float32
    assert model_state == {}
    # At the start nothing is known: the loss is that of a guess.
    loss = optax.softmax_cross_entropy_with_integer_labels(out, tokens(seed=1)).mean()
    assert loss == pytest.approx(np.log(VOCABULARY), abs=0.3)


def norm(x, scale):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def turned(x):
    """Rotary positions as multiplication by complex numbers."""
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(x.shape[1]), 10_000.0 ** -(np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return jnp.concatenate([z.real, z.imag], axis=-1)


def written_out(p, tokens):
    """The transformer from its tree, layer by layer."""
    heads = SIZES["tiny"].heads
    x = p["embedding"]["embedding"][tokens]
    mask = np.tril(np.ones([tokens.shape[1]] * 2, bool))
    for i in range(SIZES["tiny"].layers):
        q = p["blocks"][i]
        y = norm(x, q["before_attention"]["scale"]) @ q["attention"]["qkv"]["kernel"]
        y = y.reshape(*tokens.shape, heads, 3, -1)
        query, key, value = turned(y[..., 0, :]), turned(y[..., 1, :]), y[..., 2, :]
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        y = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(x.shape)
        x = x + y @ q["attention"]["out"]["kernel"]
        y = norm(x, q["before_feed_forward"]["scale"])
        f = q["feed_forward"]
        gate = y @ f["gate"]["kernel"]
        y = gate * jax.nn.sigmoid(gate) * (y @ f["up"]["kernel"])
        x = x + y @ f["down"]["kernel"]
    return norm(x, p["norm"]["scale"]) @ p["embedding"]["embedding"].T


def larger(params):
    """Parameters with which every layer matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params
    )


def test_it_equals_the_network_written_out():
    params = larger(initial())
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(written_out)(params, tokens())
    assert np.abs(expected).max() > 1
    # Sums in another order, layer upon layer.
    np.testing.assert_allclose(logits(params, tokens()), expected, rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_no_earlier_logits():
    params, changed = larger(initial()), tokens()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
    before, after = logits(params, tokens()), logits(params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=(0, 2)).all()


def test_rotary_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.tile(rng.normal(size=(1, 1, 2, 8)), (1, 9, 1, 1)) for _ in range(2))
    q, k = (np.asarray(rotary(jnp.asarray(x, jnp.float32))) for x in (q, k))
    products = np.einsum("bqhc,bkhc->hqk", q, k)
    for distance in range(9):
        along = np.diagonal(products, distance, 1, 2)
        # Cosines of float32 angles.
        np.testing.assert_allclose(along, along[:, :1] + 0 * along, atol=1e-4)
    assert (np.abs(products[:, 0, 1:] - products[:, 0, :1]) > 1e-3).all()
    np.testing.assert_allclose(
        (q**2).sum(-1), (q[:, :1] ** 2).sum(-1) + np.zeros([1, 9, 2]), rtol=1e-5
    )


def test_remat_changes_no_number():
    def gradient(**options):
        loss = lambda params: logits(params, tokens(), **options).std()
        return jax.jit(jax.grad(loss))(initial())

    plain, again = gradient(), gradient(remat=True)
    for one, other in zip(*map(jax.tree.leaves, (plain, again)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    for options, times in (({"remat": True}, SIZES["tiny"].layers), ({}, 0)):
        program = str(jax.make_jaxpr(jitted(**options))(initial(), tokens()))
        assert len(re.findall(r"\bremat\w*\[", program)) == times


def test_bfloat16_is_for_computing_alone():
    params = larger(initial())
    narrow = logits(params, tokens(), dtype="bfloat16")
    assert narrow.dtype == jnp.float32
    wide = logits(params, tokens())
    # 8 bits, in numbers of size 1 and some layers.
    np.testing.assert_allclose(narrow, wide, atol=0.1)
    assert (narrow != wide).any()
    made = jax.eval_shape(build(dtype="bfloat16").init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_a_few_steps_learn_to_count():
    """Each token is the one before it plus one."""
    model, optimizer = build(), optax.adam(1e-2)
    data = (tokens(8, 1) + np.arange(9)) % VOCABULARY

    def loss_fn(params):
        out, _ = model.apply(params, {}, data[:, :-1], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(out, data[:, 1:]).mean()

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), loss

    start = initial(), optimizer.init(initial())
    run = jax.jit(lambda start: jax.lax.scan(step, start, length=40))
    (params, _), losses = run(start)
    assert losses[0] > 2
    assert losses[-1] < 0.2
    for path, leaf in jax.tree.leaves_with_path(params):
        assert (leaf != functools.reduce(lambda t, k: t[k.key], path, initial())).any()

    logits_of = lambda params, tokens: model.apply(params, {}, tokens, train=False)[0]
    write = functools.partial(sample, logits_of, params, np.array([3, 4]))
    # Longer than the context, of which it needs the last token only.
    written = write(jax.random.key(0), 0.0, length=12, context=8)
    np.testing.assert_array_equal(written, np.arange(5, 17) % VOCABULARY)


def test_a_sample_is_drawn_by_the_temperature_and_the_seed():
    """From logits 0, 1, 2: with the temperature 2 they are 0, 0.5, 1."""
    logits_of = lambda params, tokens: jnp.broadcast_to(params, (*tokens.shape, 3))
    draw = functools.partial(sample, logits_of, jnp.arange(3.0), np.array([0]))
    options = {"length": 2000, "context": 4}
    drawn = draw(jax.random.key(0), 2.0, **options)
    shares = np.bincount(drawn, minlength=3) / 2000
    # Three deviations of a share are at most 0.034.
    expected = jax.nn.softmax(jnp.arange(3) / 2)
    np.testing.assert_allclose(shares, expected, atol=0.034)
    np.testing.assert_array_equal(drawn, draw(jax.random.key(0), 2.0, **options))
    assert (drawn != draw(jax.random.key(1), 2.0, **options)).any()
    assert (draw(jax.random.key(0), 0.0, **options) == 2).all()


# --------------------------------------------------------------------------- its size


@functools.cache
def shapes(size):
    """The parameters of a size, with an odd vocabulary; big ones take a second."""
    return jax.eval_shape(
        transformer.build(size, vocabulary=65).init, jax.random.key(0)
    )[0]


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_as_many_as_the_documentation_says(size):
    layers, heads, width = SIZES[size]
    hidden = SIZES[size].hidden
    assert hidden == pytest.approx(8 / 3 * width, abs=32)
    # Attention, feed-forward, the norms, and the last one.
    expected = layers * (4 * width**2 + 3 * width * hidden + 2 * width) + width
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes(size)))
    assert counted == expected + 65 * width
    cells = re.escape(f"| `{size}` | {layers} | {heads} | {width} | ")
    page = (ROOT / "docs" / "how-to" / "language-model.md").read_text()
    (said,) = re.findall(rf"^{cells}(.*) million \|$", page, re.M)
    assert shown(said, (expected + 256 * width) / 1e6)


def test_sizes_have_names_and_fit_rotary_positions():
    assert set(SIZES) == set(get_args(Size))
    for shape in SIZES.values():
        assert shape.width % (2 * shape.heads) == 0
    size: Any = "7b"
    with pytest.raises(ValueError, match=r"size='7b' must be one of \['tiny', "):
        transformer.build(size, vocabulary=2)


# ------------------------------------------------------------ how a worker divides it


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 1}])
def test_every_parameter_is_divided_evenly_by_its_role(size, mesh):
    params = shapes(size)
    specs = partition_specs(params)
    flat = jax.tree.leaves_with_path(params)
    roles = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    whole = divided = 0
    for (path, leaf), spec in zip(flat, roles, strict=True):
        assert len(spec) == leaf.ndim, path
        axes = [axis if isinstance(axis, tuple) else (axis,) for axis in spec]
        ways = [math.prod(mesh.get(name, 1) for name in names) for names in axes]
        assert not any(n % w for n, w in zip(leaf.shape, ways, strict=True)), path
        # Nothing but the norms is kept whole on all devices of "fsdp".
        assert any("fsdp" in names for names in axes) == (leaf.ndim > 1), path
        whole += leaf.size if leaf.ndim == 1 else 0
        divided += leaf.size
    assert whole < 0.01 * divided
    block = specs["blocks"][0]
    # What one matrix divides, the next one sums over.
    for first, last in (
        (("attention", "qkv"), ("attention", "out")),
        (
            ("feed_forward", "up"),
            ("feed_forward", "down"),
        ),
    ):
        enters, leaves = (block[part][name]["kernel"] for part, name in (first, last))
        assert enters[1] == leaves[0] == "tensor"


def test_an_unknown_parameter_is_an_error():
    for params in ({"blocks": {0: {"mystery": {"kernel": 0}}}}, {"kernel": 0}):
        with pytest.raises(ValueError, match=r"params.*\['kernel'\] is none of"):
            partition_specs(params)


def test_the_operations_of_the_training_are_those_that_xla_counts():
    """Three times the forward pass; XLA counts additions and norms as well."""
    model = transformer.build("10m", vocabulary=256)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    forward = lambda params, tokens: model.apply(params, {}, tokens, train=True)[0]
    tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    costs: Any = jax.jit(forward).lower(params, tokens).cost_analysis()
    ours = transformer.flops("10m", vocabulary=256, context=256)
    assert 3 * costs["flops"] / tokens.size == pytest.approx(ours, rel=0.01)
