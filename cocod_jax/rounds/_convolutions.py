"""Convolutions that stay fast inside loops and conditionals on CPUs.

XLA's CPU compiler has one fast convolution, for images [batch, space, channels] and
kernels [space, in, out]. It brings others into this form outside of loops and
conditionals only. Inside, the gradients of a convolution, whose forms differ, run
as naive code, many times slower. So they are brought into the form here.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun


def fast_in_loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for the body of a loop or a branch of a conditional.

    Programs for other platforms than CPUs are not changed. What is differentiated
    must be inside: the result's own gradients would have other forms again.
    """

    def fast(*args: Any) -> Any:
        traced, out = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = lax.platform_dependent(
            *jax.tree.leaves(args),
            cpu=jaxpr_as_fun(_rewritten(traced)),
            default=jaxpr_as_fun(traced),
        )
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return fast


def _rewritten(part: Any) -> Any:
    """A jaxpr with its convolutions in the fast form, however deeply nested.

    Anything else that an equation has for a parameter comes back as it is.
    """
    if isinstance(part, Jaxpr):  # first: newer versions of JAX have no other class
        return part.replace(eqns=[_rewritten_equation(eqn) for eqn in part.eqns])
    if isinstance(part, ClosedJaxpr):
        return ClosedJaxpr(_rewritten(part.jaxpr), part.consts)
    if isinstance(part, tuple) and all(isinstance(p, ClosedJaxpr) for p in part):
        return tuple(map(_rewritten, part))  # the branches of a conditional
    return part


def _rewritten_equation(eqn: JaxprEqn) -> JaxprEqn:
    if eqn.primitive.name != "conv_general_dilated":
        params = {name: _rewritten(value) for name, value in eqn.params.items()}
        return eqn.replace(params=params)
    convolve = jax.jit(functools.partial(_convolve, **eqn.params))
    (call,) = jax.make_jaxpr(convolve)(*[v.aval for v in eqn.invars]).eqns
    return call.replace(invars=eqn.invars, outvars=eqn.outvars)


def _convolve(
    image: jax.Array,
    kernel: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    **params: Any,
) -> jax.Array:
    """A convolution of any form by way of the fast one."""
    # (batch, channels, *space), (out, in, *space) and (batch, channels, *space).
    image_spec, kernel_spec, out_spec = dimension_numbers
    last = image.ndim - 1
    space = tuple(range(1, last))
    fast = lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *space),
        rhs_spec=(last, last - 1, *range(last - 1)),
        out_spec=(0, last, *space),
    )
    out = lax.conv_general_dilated(
        jnp.transpose(image, (image_spec[0], *image_spec[2:], image_spec[1])),
        jnp.transpose(kernel, (*kernel_spec[2:], kernel_spec[1], kernel_spec[0])),
        dimension_numbers=fast,
        **params,
    )
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return jnp.transpose(out, np.argsort(order).tolist())
