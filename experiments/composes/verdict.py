"""What a reader is told of an optimizer: a verdict, and sentences."""

from collections.abc import Mapping

from experiments.composes.cases import Case
from experiments.composes.probe import Facts

YES, WITH_CAVEAT, NO = "composes", "with a caveat", "does not"

# Equal workers in rounds differ from the optimizer alone by rounding: by less than 1e-6
# in float32, and by up to 4 % in bfloat16, whose steps are as large as that.
_OFF = {"float32": 1e-4, "bfloat16": 0.1}
# What a merge moved stays moved, but for what weight decay takes.
_KEPT = 0.9, 1.1


def verdict(case: Case, found: Mapping[str, Facts]) -> tuple[str, str]:
    """One of the three verdicts, and what to know."""
    wide = found["float32"]
    sentences = [case.caveat]
    refused = [name for name in wide.errors if name != "shard_map"]
    if refused:
        sentences.insert(0, f"`` {wide.errors[refused[0]]} ``")
    elif "shard_map" in wide.errors:
        sentences.append("`shard_map` needs `check_vma=False`.")
    sentence = " ".join(filter(None, sentences))
    return (NO if refused else WITH_CAVEAT if sentence else YES), sentence


def unexplained(case: Case, found: Mapping[str, Facts]) -> list[str]:
    """What was found and has no sentence: an entry of ``CAVEATS`` is missing."""
    if case.caveat or found["float32"].errors.keys() - {"shard_map"}:
        return []
    findings = []
    for dtype, facts in found.items():
        if facts.errors.keys() - {"shard_map"}:
            findings.append(f"{dtype}: {facts.errors}")
        elif not (facts.finite and facts.stable and facts.off < _OFF[dtype]):
            findings.append(f"{dtype}: {facts}")
    if not _KEPT[0] < found["float32"].kept < _KEPT[1]:
        findings.append(f"{found['float32'].kept:.2f} of a merge is kept")
    return findings
