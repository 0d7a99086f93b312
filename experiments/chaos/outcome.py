"""What a run has left, and what of it differs from another's."""

import json

from experiments.config import RunConfig
from experiments.job import saving

KINDS = ("round", "epoch", "sample", "alarm")


def timeless(run: RunConfig) -> tuple[list[dict], dict[str, bytes]]:
    """The log and the model of a run, but for times and circumstances."""
    kept = []
    for line in run.log.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] in KINDS:
            timed = ("second", "seconds")
            kept.append({k: record[k] for k in record if not k.endswith(timed)})
    arrays = saving.load(run.folder)[1]
    return kept, {name: array.tobytes() for name, array in arrays.items()}


def lost_bytes(whole: RunConfig, run: RunConfig) -> int:
    """How many bytes of what the first has left the second has not."""
    one, two = _as_bytes(whole), _as_bytes(run)
    differ = sum(a != b for a, b in zip(one, two, strict=False))
    return differ + abs(len(one) - len(two))


def _as_bytes(run: RunConfig) -> bytes:
    records, arrays = timeless(run)
    return b"".join([json.dumps(records).encode(), *arrays.values()])
