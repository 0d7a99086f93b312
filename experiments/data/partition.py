"""How the training data are split between workers."""

import numpy as np


def partition(
    labels: np.ndarray, workers: int, scheme: str, seed: int
) -> list[np.ndarray]:
    """Disjoint shards of the training data, one for each worker.

    Args:
      labels: int [n], those of the training data.
      workers: the number of shards.
      scheme: ``iid``, shards of equal size (to within one) drawn at random; or
        ``dirichlet:ALPHA``, where each class is divided by a Dirichlet
        distribution: the smaller ALPHA, the more a worker's labels are skewed and
        the more the sizes differ. Every example is in one shard.
      seed: of the draw.

    Returns:
      For each worker the indices of its examples.

    Raises:
      ValueError: when ``workers`` is not an integer of at least 1, the scheme is
        unknown or ALPHA is not positive.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r} must be an integer of at least 1.")
    rng = np.random.default_rng([0, seed])  # 1 and 2 are the pipeline's
    if scheme == "iid":
        return np.array_split(rng.permutation(len(labels)), workers)
    kind, _, alpha = scheme.partition(":")
    try:
        concentration = float(alpha)
    except ValueError:
        concentration = 0.0
    if kind != "dirichlet" or not 0 < concentration < np.inf:
        raise ValueError(
            f"partition={scheme!r} must be 'iid' or 'dirichlet:ALPHA' with a positive "
            "ALPHA, for example 'dirichlet:0.5'."
        )
    shards: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(workers, concentration))
        ends = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for shard, part in zip(shards, np.split(members, ends), strict=True):
            shard.append(part)
    return [np.concatenate(shard) for shard in shards]
