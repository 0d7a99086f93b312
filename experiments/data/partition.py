"""How the training data are split between workers."""

from collections.abc import Sequence

import numpy as np

import cocod_jax as cj


def partition(
    labels: np.ndarray,
    workers: int,
    scheme: str,
    seed: int,
    shares: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Disjoint shards of the training data, one for each worker.

    Args:
      labels: the training data's, int [n].
      workers: the number of shards.
      scheme: ``iid``, shards drawn at random, of equal size to within one or in
        proportion to ``shares``; ``by_class``, where a class is one worker's alone, or
        shared by as few as there have to be; or ``dirichlet:ALPHA``, where each class
        is divided by a Dirichlet distribution: the smaller ALPHA, the more a worker's
        labels are skewed and the more the sizes differ. Every example is in one shard.
      seed: decides the draw.
      shares: for each worker a positive number, for shards of unequal size.

    Returns:
      For each worker the indices of its examples.

    Raises:
      ValueError: when ``workers`` is not an integer of at least 1, the scheme is
        unknown, ALPHA is not positive, or shares are given to another scheme than iid.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r} must be an integer of at least 1.")
    rng = np.random.default_rng([0, seed])  # 1 and 2 are the pipeline's
    if scheme == "iid":
        sizes = cj.workers.batch_shares(shares or [1] * workers, len(labels))
        return np.split(rng.permutation(len(labels)), np.cumsum(sizes)[:-1])
    if shares is not None:
        raise ValueError(f"partition={scheme!r} has its own sizes: shares need 'iid'.")
    if scheme == "by_class":
        return _by_class(labels, workers, rng)
    concentration = concentration_of(scheme)
    assert concentration is not None  # the schemes without one are dealt with
    shards: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        parts = rng.dirichlet(np.full(workers, concentration))
        ends = np.rint(np.cumsum(parts)[:-1] * len(members)).astype(int)
        for shard, part in zip(shards, np.split(members, ends), strict=True):
            shard.append(part)
    return [np.concatenate(shard) for shard in shards]


def concentration_of(scheme: str, name: str = "partition") -> float | None:
    """ALPHA of a scheme, None for one without.

    Raises:
      ValueError: when there is no such scheme, or ALPHA is not positive.
    """
    if scheme in ("iid", "by_class"):
        return None
    kind, _, alpha = scheme.partition(":")
    try:
        concentration = float(alpha)
    except ValueError:
        concentration = 0.0
    if kind != "dirichlet" or not 0 < concentration < np.inf:
        raise ValueError(
            f"{name}={scheme!r} must be 'iid', 'by_class' or 'dirichlet:ALPHA' with "
            "a positive ALPHA, for example 'dirichlet:0.5'."
        )
    return concentration


def _by_class(
    labels: np.ndarray, workers: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Classes in turn to the workers; more workers than classes share them in turn."""
    classes = np.unique(labels)
    shards: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for number, label in enumerate(classes):
        owners = range(number % workers, workers, len(classes))
        members = rng.permutation(np.flatnonzero(labels == label))
        for owner, part in zip(
            owners, np.array_split(members, len(owners)), strict=True
        ):
            shards[owner].append(part)
    return [np.concatenate(shard) for shard in shards]
