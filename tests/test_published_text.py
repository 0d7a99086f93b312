"""What is published of the language model is what its logs say."""

import platform

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import DOCS, RESULTS
from experiments.data import text
from experiments.figures import by_algorithm
from tests.published import check_sentence

FOLDER = RESULTS / "20261129_text"
PAGE = (FOLDER / "README.md").read_text()
HOW_TO = (DOCS / "how-to" / "language-model.md").read_text()
RUNS = by_algorithm(sorted(FOLDER.glob("*.jsonl")))
(SHAKESPEARE,) = (FOLDER / "shakespeare").glob("tinyshakespeare-*.jsonl")


def losses(algorithm: str) -> np.ndarray:
    """After the last epoch, by seed."""
    runs = sorted(RUNS[algorithm], key=lambda run: run["run"][0]["config"]["seed"])
    assert len(runs) == 3
    return np.array([run["epoch"][-1]["test_loss"] for run in runs])


def test_the_study_of_algorithms():
    for page in (PAGE, HOW_TO):
        assert (FOLDER / "table.md").read_text() in page
    for runs in RUNS.values():
        for run in runs:
            assert run["run"][0]["parameters"] == 123_200
            assert run["epoch"][-1]["epoch"] == 6
            assert run["round"][-1]["step"] == 1224
            assert run["end"] == [{"status": "finished"}]
            check_sentence(
                PAGE,
                "the unigram entropy of the held-out text is # nats",
                [run["epoch"][-1]["unigram_entropy"]],
            )
    ssgd, local, cocod, streamed = map(
        losses, ("ssgd", "local_sgd", "cocod", "streamed")
    )
    both = [streamed.mean(), local.mean()]
    check_sentence(PAGE, "Local SGD does**: # and # on average", both)
    assert len({*(streamed > local)}) == 2
    late = cocod.mean() - np.mean([local, streamed])
    check_sentence(PAGE, "is behind**, by # nats on average", [late])
    assert (cocod > np.maximum(local, streamed)).all()
    fourth = np.mean([run["epoch"][3]["test_loss"] for run in RUNS["local_sgd"]])
    assert fourth < cocod.mean()
    ahead = np.mean([local, streamed]) - ssgd.mean()
    check_sentence(PAGE, "with each seed, by # nats", [ahead])
    assert (ssgd <= np.minimum(local, streamed)).all()


def test_tiny_shakespeare():
    log = read_jsonl(SHAKESPEARE)
    last = log["epoch"][-1]
    assert log["round"][-1]["step"] == 2000
    said = [last["test_loss"]]
    for page in (PAGE, HOW_TO):
        check_sentence(page, "loss of **#**", said)
    rest = [last["test_perplexity"], last["unigram_entropy"]]
    check_sentence(PAGE, "(perplexity #, unigram entropy #)", rest)
    millions = log["run"][0]["parameters"] / 1e6
    check_sentence(PAGE, "LayerNorm and GELU, # million parameters", [millions])
    theirs = read_jsonl(FOLDER / "shakespeare" / "nanogpt.jsonl")
    millions = theirs["run"][0]["parameters"] / 1e6
    loss = theirs["epoch"][-1]["test_loss"]
    same_loop = "# million parameters) the same loop ends with a loss of #"
    check_sentence(PAGE, same_loop, [millions, loss])
    check_sentence(PAGE, "take off # nats", [loss - last["test_loss"]])


@pytest.mark.skipif(
    platform.python_version() != "3.11.7", reason="the text is that of Python 3.11.7"
)
def test_the_text_repeats_itself():
    corpus = text.load(None, "bytes")
    written = corpus.tokenizer.decode(corpus.tokens)
    end = len(written) // text.HELD_OUT
    long = [line for line in written[-end:].split("\n") if len(line) > 40]
    found = sum(line in written[:-end] for line in long)
    check_sentence(PAGE, "# of the # lines in the held-out part", [found, len(long)])
