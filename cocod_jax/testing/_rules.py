"""Invariants of merge rules, each on its own and all together.

Each function merges a few times with random snapshots and progress, on simulated
workers under ``vmap``. None needs a device besides the default one. The workers' shares
are given to the rule with each merge, as a round does; :func:`assert_own_weights`
compares with a merge without them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._checks import check_non_negative
from cocod_jax._text import shown
from cocod_jax.exchanges._base import workers_axis
from cocod_jax.rules import MergeRule

_WORKERS = 4


def assert_mean_preserved(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    r"""The merge leaves the weighted mean of the workers unchanged.

    .. math:: \sum_i p_i \, \mathrm{merge}(m, x_i, s_i) = \sum_i p_i \, x_i

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance; the values are of order 1, in float32.

    Raises:
      AssertionError: when the mean moved.
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_mean_preserved(cj.cocod("workers", weights=(1, 2, 3)))
    """
    workers, weights = _workers(rule)
    snapshot, progress = _tree(workers, seed=0), _tree(workers, seed=1)
    merged = _merge(rule, axis_name, snapshot, progress, weights)
    mean = lambda leaf: np.tensordot(weights, leaf, axes=1)
    before = jax.tree.map(lambda s, p: mean(s + p), snapshot, progress)
    after = jax.tree.map(mean, merged)
    _assert_close(
        after,
        before,
        atol,
        "the merge moved the weighted mean (merge returns the parameters, and the "
        "exchange counts each worker with the weight that it is given; a rule that "
        "moves the mean on purpose is checked with the other functions one by one)",
    )


def assert_identical_workers_agree(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    """Identical workers stay identical, and each follows a single worker.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance of the comparison with a single worker.

    Raises:
      AssertionError: when two of them differ in any bit, or when they differ from a
        single worker (not compared when the rule's weights fix their number).
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_identical_workers_agree(cj.cocod("workers"))
    """
    workers, weights = _workers(rule)
    one = (_tree(1, seed=0), _tree(1, seed=1))
    same = jax.tree.map(lambda leaf: np.repeat(leaf, workers, axis=0), one)
    merged = _merge(rule, axis_name, same[0], same[1], weights)
    first = jax.tree.map(lambda leaf: leaf[:1], merged)
    for worker in range(1, workers):
        other = jax.tree.map(lambda leaf, i=worker: leaf[i : i + 1], merged)
        _assert_close(other, first, 0.0, "identical workers became different")
    if rule.weights is None:
        alone = _merge(rule, axis_name, one[0], one[1], np.ones(1, np.float32))
        _assert_close(first, alone, atol, "identical workers differ from a single one")


def assert_order_irrelevant(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    """Permuting the workers, and their weights with them, permutes the result.

    Rules that exchange over a graph do not have this property.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance: sums in another order round differently.

    Raises:
      AssertionError: when a worker's place in the order changed its result.
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_order_irrelevant(cj.cocod("workers"))
    """
    workers, weights = _workers(rule)
    rotated, swapped = np.roll(np.arange(workers), 1), np.arange(workers)
    swapped[:2] = swapped[:2][::-1]
    snapshot, progress = _tree(workers, seed=0), _tree(workers, seed=1)
    merged = _merge(rule, axis_name, snapshot, progress, weights)
    for order in (rotated, swapped):  # these two generate all permutations
        permuted = lambda tree, order=order: jax.tree.map(
            lambda leaf: leaf[order], tree
        )
        other = _merge(
            rule, axis_name, permuted(snapshot), permuted(progress), weights[order]
        )
        _assert_close(other, permuted(merged), atol, "the order of the workers matters")


def assert_fixed_point(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    """Equal workers without progress stay where they are.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance.

    Raises:
      AssertionError: when a worker moved.
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_fixed_point(cj.cocod("workers"))
    """
    workers, weights = _workers(rule)
    snapshot = jax.tree.map(
        lambda leaf: np.repeat(leaf, workers, axis=0), _tree(1, seed=0)
    )
    still = jax.tree.map(np.zeros_like, snapshot)
    merged = _merge(rule, axis_name, snapshot, still, weights)
    _assert_close(merged, snapshot, atol, "equal workers without progress moved")


def assert_workers_approach(rule: MergeRule, *, axis_name: str | None = None) -> None:
    r"""Merges without progress bring the workers closer to each other.

    .. math:: \sum_i \lVert x_i - \bar x \rVert^2 \text{ shrinks}

    A merge with the wrong sign keeps every other invariant.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.

    Raises:
      AssertionError: when the spread of the workers did not shrink.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_workers_approach(cj.cocod("workers"))
    """
    workers, weights = _workers(rule)
    snapshot = _tree(workers, seed=0)
    still = jax.tree.map(np.zeros_like, snapshot)
    merged = _merge(rule, axis_name, snapshot, still, weights)
    spread = lambda tree: sum(leaf.var(axis=0).sum() for leaf in jax.tree.leaves(tree))
    before, after = spread(snapshot), spread(merged)
    if not after < before:
        raise AssertionError(
            f"merges without progress did not bring the workers closer: their variance "
            f"was {before:.3g} and is {after:.3g}"
        )


def assert_own_weights(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    """Without a weight the rule counts the workers as a round does.

    A round gives each worker its share of ``rule.weights``. In :func:`cocod_jax.every`,
    and wherever else the rule is an optax transform, the weights are those that its
    exchange was made with. They should be the same.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance.

    Raises:
      AssertionError: when it counts them otherwise.
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.assert_own_weights(cj.cocod("workers", weights=(1, 3)))
    """
    workers, _ = _workers(rule)
    shares = np.array(rule.weights or [1 / workers] * workers, np.float32)
    snapshot, progress = _tree(workers, seed=0), _tree(workers, seed=1)
    as_a_round = _merge(rule, axis_name, snapshot, progress, shares)
    alone = _merge(rule, axis_name, snapshot, progress, None)
    _assert_close(
        alone, as_a_round, atol, "the exchange has other weights than the rule"
    )


def check_rule(
    rule: MergeRule, *, axis_name: str | None = None, atol: float = 1e-5
) -> None:
    """All the invariants of merge rules, which CoCoD-SGD's rule has.

    A rule that lacks one on purpose is checked with the other functions one by one.

    Args:
      rule: the rule, for any number of workers, or for as many as it has weights.
      axis_name: the rule's axis; None takes it from the rule.
      atol: the absolute tolerance.

    Raises:
      AssertionError: by the first invariant that does not hold.
      ValueError: when ``atol`` is not a finite number, 0 or more.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.check_rule(cj.cocod("workers"))
    """
    for check in (
        assert_own_weights,
        assert_mean_preserved,
        assert_identical_workers_agree,
        assert_order_irrelevant,
        assert_fixed_point,
    ):
        check(rule, axis_name=axis_name, atol=atol)
    assert_workers_approach(rule, axis_name=axis_name)


def _workers(rule: MergeRule) -> tuple[int, np.ndarray]:
    """The number of workers to simulate, and their weights: the rule's, or unequal.

    Raises:
      TypeError: when it is no rule.
    """
    if not isinstance(rule, MergeRule):
        raise TypeError(
            f"rule={shown(rule)} must be a MergeRule, such as cj.cocod('workers')."
        )
    workers = len(rule.weights) if rule.weights else _WORKERS
    weights = np.array(rule.weights or range(1, workers + 1), np.float32)
    return workers, weights / weights.sum()


def _tree(workers: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (3, 2), "vector": (5,), "scalar": ()}
    return {
        name: rng.normal(size=(workers, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def _merge(
    rule: MergeRule,
    axis_name: str | None,
    snapshot: Any,
    progress: Any,
    weights: np.ndarray | None,
    merges: int = 3,
) -> Any:
    """The workers after some merges; each goes on from where the last one ended."""
    # As in a round, what a rule remembers begins alike on all workers.
    start = jax.tree.map(lambda leaf: leaf.mean(axis=0), snapshot)

    def one_worker(snapshot: Any, progress: Any, weight: Any) -> Any:
        state: Any = rule.init(start)
        params = jax.tree.map(jnp.add, snapshot, progress)
        for _ in range(merges):
            params, state = rule.merge_now(params, state, snapshot, weight)
            # The progress counts once; later merges show what the state does.
            snapshot = params
        return params

    axis_name = workers_axis(rule.exchange, axis_name)
    merged = jax.jit(jax.vmap(one_worker, axis_name=axis_name))(
        snapshot, progress, weights
    )
    return jax.tree.map(np.asarray, merged)


def _assert_close(actual: Any, desired: Any, atol: float, message: str) -> None:
    check_non_negative(atol=atol)

    def close(path: Any, one: np.ndarray, other: np.ndarray) -> None:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)

    try:
        jax.tree.map_with_path(close, actual, desired)
    except AssertionError as error:
        # Many lines of numbers: the sentence comes first.
        raise AssertionError(f"{message}\n{error}") from None
