"""What cannot be a parameter is refused where it is given, by its name."""

import types
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.rounds._checks import check_params

CALLS = {
    "params": check_params,
    "every": cj.every(2, optax.adam(0.1), cj.cocod("workers")).init,
    "replicate": lambda tree: cj.replicate(tree, 2),
}
NO_ARRAYS = [
    (jax.nn.relu, "custom_jvp"),
    (jnp.tanh, "PjitFunction|function"),
    ("relu", "'relu', of type str"),
    # To NumPy these are dtypes.
    ("float32", "'float32', of type str"),
    (np.float32, "<class 'numpy.float32'>, of type type"),
    (
        types.SimpleNamespace(rate=0.1),
        r"namespace\(rate=0.1\), of type SimpleNamespace",
    ),
    (Fraction(1, 2), "of type Fraction"),
    (np.array(["relu"]), "of type ndarray"),
    (np.array([None]), "of type ndarray"),
    (np.datetime64("2020"), "of type datetime64"),
    (jax.ShapeDtypeStruct((2,), jnp.float32), "of type ShapeDtypeStruct"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("leaf", "words"), NO_ARRAYS, ids=lambda v: str(v)[:20])
def test_a_leaf_that_is_no_array_is_named(call, leaf, words):
    name = "tree" if call == "replicate" else "params"
    tree = {"w": jnp.ones(2), "layers": [{"activation": leaf}]}
    with pytest.raises(TypeError) as raised:
        CALLS[call](tree)
    found = rf"{name}\['layers'\]\[0\]\['activation'\] is .*({words}).*eqx\.partition"
    assert raised.match(found)
    with pytest.raises(TypeError, match=f"^{name} is "):
        CALLS[call](leaf)


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (3, "int32"),
        (np.arange(3), "int32|int64"),
        (jnp.arange(3, dtype=jnp.uint8), "uint8"),
        (True, "bool"),
        (jnp.zeros(2, bool), "bool"),
        (jax.random.key(0), "key<"),
    ],
    ids=str,
)
def test_a_leaf_without_a_gradient_is_named(leaf, dtype):
    with pytest.raises(TypeError) as raised:
        check_params({"w": jnp.ones(2), "embedding": (leaf,)})
    words = (
        rf"params\['embedding'\]\[0\] has the dtype ({dtype}).*trainable=.*partition"
    )
    assert raised.match(words)
    # They may be elsewhere in a state, and gradients of every's come from outside.
    cj.replicate({"n": leaf}, 2)
    if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jnp.number):
        CALLS["every"]({"n": leaf})


@pytest.mark.parametrize("call", CALLS)
def test_arrays_and_numbers_are_parameters(call):
    numbers = {"python": 1.0, "numpy": np.float32(1), "complex": 1j, "none": None}
    arrays = [np.ones(2), jnp.ones(2, jnp.bfloat16), jnp.ones(2, complex)]
    tree = {"numbers": numbers, "arrays": arrays, "masked": optax.MaskedNode()}
    jax.eval_shape(CALLS[call], tree)
    CALLS[call](tree)
    CALLS[call]({})


def test_the_leaf_of_a_state_is_named_by_its_field():
    round_ = cj.make_round(
        lambda w, b: w, optax.sgd(0.1), cj.cocod("workers"), period=1
    )
    state = round_.init(jnp.array(1.0))._replace(model_state={"name": "bn"})
    with pytest.raises(
        TypeError, match=r"tree\.model_state\['name'\] is 'bn', of type str"
    ):
        cj.replicate(state, 2)
