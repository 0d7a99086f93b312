"""VRL-SGD: gradients corrected by what drives a worker from the mean."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_period, check_positive
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


def vrl_sgd(
    axis_or_exchange: AxisName | Exchange,
    *,
    learning_rate: float,
    period: int,
    delay: int | None = 0,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of variance-reduced Local SGD, with its exchange hidden.

    A worker learns from every merge how far its data had driven it from the mean, and
    corrects its gradients by it from then on:

    .. math::

       g_i \leftarrow g_i - \Delta_i \quad \text{in every local step}, \qquad
       \Delta_i \leftarrow \Delta_i + \frac{m - s_i}{(k + d) \gamma}, \qquad
       x_i \leftarrow m + (x_i - s_i)

    The corrections have the weighted mean 0: the merge leaves the mean of the workers
    where it was, and with plain SGD the mean follows SGD. With delay 0 this is the
    paper's algorithm, for workers whose data differ.

    With a delay d the correction answers a snapshot that is d steps old, and what it
    lacked has been on its way since. Divided by k alone, it would swing for ever at a
    delay of a round: u'' = u' - u of the difference u from the mean. Divided by k + d,
    which is ours, u shrinks as the powers of sqrt(d / (k + d)), and the fixed point is
    the same.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      learning_rate: gamma, that of the inner optimizer, which is plain SGD.
      period: k, the round's.
      delay: d, the round's, which has to be given where it is not 0. None is k, as in
        :func:`cocod_jax.make_round`. Streamed, leave it at 0.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` whose state is the correction (per worker), as
      large as the parameters.

    Raises:
      TypeError: as :func:`cocod_jax.mean`.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, ``learning_rate`` is not positive and finite, ``period`` is not an
        integer of at least 1, or ``delay`` not one in 0..period.

    Examples:
      Two workers that pull to 0 and 4 settle on 2, and stay there between merges:

      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> rule = cj.rules.vrl_sgd("workers", learning_rate=0.1, period=4)
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=4, delay=0)
      >>> run = cj.distribute(round_, via="vmap")
      >>> state = cj.replicate(round_.init(jnp.array(9.0)), 2)
      >>> for _ in range(40):
      ...     state, _ = run(state, np.array([[0.0] * 4, [4.0] * 4], np.float32))
      >>> print(np.round(state.params, 2))
      [2. 2.]

    References:
      Liang, Shen, Liu, Pan, Chen, Cheng, `Variance Reduced Local SGD with Lower
      Communication Complexity <https://arxiv.org/abs/1912.12844>`_, 2019, Algorithm 1.

    .. note::
       Streamed, a piece is merged once in k steps, and its correction with it.

       The corrections have the mean 0 under the weights that they were learnt with,
       and would draw the workers to another point under those of
       :func:`cocod_jax.reweight`. Let them begin anew with it:
       ``state._replace(rule_state=jax.tree.map(jnp.zeros_like, state.rule_state))``.
    """
    check_positive(learning_rate=learning_rate)
    period, delay = check_period(period, delay)
    length = (period + delay) * learning_rate

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    def merge(
        arriving: Params, params: Params, state: Params, snapshot: Params
    ) -> tuple[Params, Params]:
        learn = lambda d, m, s: d + (m - s) / length
        move = lambda m, x, s: m + (x - s)
        return (
            jax.tree.map(move, arriving, params, snapshot),
            jax.tree.map(learn, state, arriving, snapshot),
        )

    def correct(state: optax.OptState, gradient: optax.Updates) -> optax.Updates:
        return optax.tree.sub(gradient, state)

    return MergeRule(
        as_exchange(axis_or_exchange, weights), merge, init=init, correct=correct
    )
