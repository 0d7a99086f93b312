"""The fast form of convolutions: the same numbers, and only where it is fast."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export, lax

import cocod_jax as cj
from cocod_jax.rounds._convolutions import fast_in_loops

# Spatial rank, layouts, and what else a convolution can have.
FORMS = [
    (1, ("NWC", "WIO", "NWC"), {}),
    (2, ("NHWC", "HWIO", "NHWC"), {"window_strides": (2, 1), "padding": "SAME"}),
    (2, ("NCHW", "OIHW", "NCHW"), {"rhs_dilation": (2, 2)}),
    (2, ("NHWC", "OIHW", "CNHW"), {"padding": ((0, 1), (2, 0))}),
    (2, ("HWCN", "HWIO", "NHWC"), {"feature_group_count": 2}),
    (2, ("NHWC", "HWIO", "NHWC"), {"lhs_dilation": (2, 1), "padding": ((0, 0),) * 2}),
    (3, ("NDHWC", "DHWIO", "NDHWC"), {"precision": "highest"}),
]

# The same products, summed in another order in float32: where values reach 45, as they
# do here, they were seen to differ by 7e-6.
ROUNDING = {"rtol": 1e-6, "atol": 3e-5}


def convolution(rank, layouts, options):
    """``(image, kernel) -> out`` and arrays for it."""
    groups = options.get("feature_group_count", 1)
    sizes = {"N": 2, "C": 4, "O": 6, "I": 4 // groups}
    rng = np.random.default_rng(0)
    draw = lambda layout, space: rng.normal(
        size=[sizes.get(letter, space) for letter in layout]
    ).astype(np.float32)
    options = {"window_strides": (1,) * rank, "padding": "VALID"} | options
    convolve = lambda image, kernel: lax.conv_general_dilated(
        image, kernel, dimension_numbers=layouts, **options
    )
    return convolve, draw(layouts[0], 7), draw(layouts[1], 3)


def gradients(convolve):
    loss = lambda image, kernel: jnp.sum(jnp.sin(convolve(image, kernel)))
    return jax.value_and_grad(loss, argnums=(0, 1))


@pytest.mark.parametrize(("rank", "layouts", "options"), FORMS)
def test_values_and_gradients_stay_the_same(rank, layouts, options):
    convolve, *args = convolution(rank, layouts, options)
    for function in (convolve, gradients(convolve)):
        expected = function(*args)
        chex.assert_trees_all_close(
            jax.jit(fast_in_loops(function))(*args), expected, **ROUNDING
        )


# Where a function can hold a convolution.
NESTS = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "scan": lambda f: lambda *args: lax.scan(lambda c, _: (c, f(*args)), 0, length=2),
    "cond": lambda f: lambda *args: lax.cond(args[0].sum() > 0, f, f, *args),
}


def forms_in_a_loop(function, image, kernel):
    """The forms of the convolutions in a compiled loop that calls the function."""

    def repeat(n, image):
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, image, kernel))
        add = lambda j, carry: jax.tree.map(jnp.add, carry, function(image + j, kernel))
        return lax.fori_loop(0, n, add, zeros)

    compiled = str(jax.jit(repeat).lower(2, image).compile().as_text())
    return set(re.findall(r" convolution\(.* dim_labels=([\w>-]+)", compiled))


@pytest.mark.parametrize("nest", NESTS)
def test_every_convolution_is_found(nest):
    convolve, *args = convolution(*FORMS[1])
    nested = gradients(lambda *args: jax.tree.leaves(NESTS[nest](convolve)(*args))[-1])
    fast = fast_in_loops(nested)
    assert forms_in_a_loop(fast, *args) == {"b01f_01io->b01f"}
    chex.assert_trees_all_close(fast(*args), nested(*args), **ROUNDING)


def test_a_round_has_the_fast_form():
    """Its local steps are a loop, whose convolutions would be slow on CPUs."""
    convolve, image, kernel = convolution(*FORMS[1])
    loss = lambda kernel, image: jnp.sum(jnp.sin(convolve(jnp.sin(image), kernel)))
    round_ = cj.make_round(loss, optax.sgd(0.1), cj.independent(), period=2)
    program = jax.jit(round_.run).lower(round_.init(kernel), np.stack([image] * 2))
    compiled = str(program.compile().as_text())
    forms = re.findall(r" convolution\(.* dim_labels=([\w>-]+)", compiled)
    assert set(forms) == {"b01f_01io->b01f"}


def test_xla_would_not_do_it():
    """When this fails, the rewriting has become superfluous."""
    convolve, *args = convolution(*FORMS[1])
    assert len(forms_in_a_loop(gradients(convolve), *args)) > 1


def test_gpus_get_the_convolutions_as_they_are():
    """Their libraries know the gradients of a convolution by their form."""
    convolve, *args = convolution(*FORMS[1])
    function = gradients(convolve)

    def forms(function, platform):
        exported = export.export(jax.jit(function), platforms=[platform])(*args)
        return set(re.findall(r"dim_numbers = (.*?), window", exported.mlir_module()))

    fast = fast_in_loops(function)
    assert forms(fast, "cuda") == forms(function, "cuda")
    assert forms(fast, "cpu") == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
