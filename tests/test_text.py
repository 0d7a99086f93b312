"""Texts: tokens, sequences, what is held out, and what cannot be read."""

import hashlib
import platform
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments import data
from experiments.data import text, tokenizers

CONTEXT, WORKERS, BATCH = 7, 3, 4

# ------------------------------------------------------------------------- tokenizers


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.text())
def test_tokens_become_the_text_again(written):
    for tokenizer in (tokenizers.bytes_of_utf8(), tokenizers.characters_of(written)):
        tokens = tokenizer.encode(written)
        assert tokenizer.decode(tokens) == written
        assert ((tokens >= 0) & (tokens < tokenizer.size)).all()


def test_a_byte_or_a_character_is_a_token():
    assert [*tokenizers.bytes_of_utf8().encode("aß")] == [97, 195, 159]
    characters = tokenizers.characters_of("cab😀a")
    assert characters.size == 4
    assert [*characters.encode("abc😀")] == [0, 1, 2, 3]


def test_bytes_that_are_no_utf8_are_shown():
    assert tokenizers.bytes_of_utf8().decode(np.array([97, 195])) == "a\ufffd"


def test_a_character_that_is_not_in_the_text_is_an_error():
    with pytest.raises(ValueError, match=r"text has 'x', which is not one of the 3"):
        tokenizers.characters_of("abc").encode("abxc")


# ------------------------------------------------------------------------ where it is


def test_the_default_text_is_pythons_language_reference(monkeypatch):
    written, _ = text.pydoc_topics()
    assert 400_000 < len(written) < 1_500_000
    assert 'The "assert" statement' in written
    digest = hashlib.sha256(written.encode()).hexdigest()
    minor = "{}.{}".format(*sys.version_info)
    monkeypatch.setitem(text.PYDOC, minor, ("9.9.9", digest))
    assert text.pydoc_topics() == (written, ())
    monkeypatch.setitem(text.PYDOC, minor, ("9.9.9", "0"))
    again, (note,) = text.pydoc_topics()
    assert again == written
    assert f"Python {platform.python_version()} is not that of 9.9.9: losses" in note
    monkeypatch.delitem(text.PYDOC, minor)
    again, (note,) = text.pydoc_topics()
    assert again == written
    assert "is not one that we know: losses" in note


def test_the_releases_that_are_known_are_of_their_minor_versions():
    for minor, (release, digest) in text.PYDOC.items():
        assert release.startswith(f"{minor}.")
        assert len(bytes.fromhex(digest)) == 32
        if platform.python_version() == release:
            assert text.pydoc_topics()[1] == ()


def test_a_python_without_its_reference_asks_for_a_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"without pydoc_data.* --data-file"):
        text.load(None, "bytes")


def test_a_file_is_read_as_it_is(tmp_path):
    file = tmp_path / "small.txt"
    file.write_bytes("Zeile\r\nß".encode())
    corpus = text.load(file, "characters")
    assert corpus.tokenizer.size == 7
    assert corpus.tokenizer.decode(corpus.tokens) == "Zeile\r\nß"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert corpus.notes == (
        f"small.txt: 8 tokens (characters), a vocabulary of 7, SHA-256 {digest[:12]}.",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data_file='.*file\.txt' cannot be read: No such file or directory\."),
        (b"abc\xff", r"data_file='.*file\.txt' is not UTF-8 at byte 3; convert it"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(content, message, tmp_path):
    file = tmp_path / "file.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        text.load(file, "bytes")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("length", [0, 7, 8, 14, 15, 100])
def test_every_token_is_predicted_once_but_for_an_incomplete_end(length):
    windows = text.packed(np.arange(length), CONTEXT).windows
    assert windows.shape == (max(length - 1, 0) // CONTEXT, CONTEXT + 1)
    targets = windows[:, 1:].ravel()
    np.testing.assert_array_equal(targets, 1 + np.arange(len(targets)))
    assert length - 1 - len(targets) < CONTEXT


def test_the_last_tenth_is_held_out():
    train, test = text.split(np.arange(1003), CONTEXT)
    assert train.windows.min() == 0
    assert train.windows.max() < 903
    assert test.windows.min() == 903
    assert 903 + len(test.windows) * CONTEXT == test.windows.max()


def test_a_text_that_is_too_short_is_an_error():
    text.split(np.arange(80), CONTEXT)
    with pytest.raises(ValueError, match=r"has 79 tokens, .* at least 80 tokens, or"):
        text.split(np.arange(79), CONTEXT)


def test_the_unigram_entropy_is_that_of_the_frequencies():
    assert text.unigram_entropy(np.array([5, 5, 5])) == 0
    assert text.unigram_entropy(np.arange(8)) == pytest.approx(np.log(8))
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert text.unigram_entropy(np.array([1, 0, 0, 0])) == pytest.approx(expected)


def pipeline(seed=0):
    """Workers on a text in which every token is another one."""
    sequences = text.packed(np.arange(1000), CONTEXT)
    shards = data.partition(np.zeros(len(sequences.windows)), WORKERS, "iid", seed)
    return data.Pipeline(sequences, shards, batch_size=BATCH, seed=seed)


def stream(source, first_step=0, period=1, steps=22):
    """The rounds one after another: [N, steps, batch, context + 1]."""
    count = steps // period
    rounds = source.rounds(first_step=first_step, period=period, count=count)
    return np.concatenate([round_["tokens"] for round_ in rounds], axis=1)


def test_workers_have_sequences_of_their_own_and_see_each_once_an_epoch():
    source = pipeline()
    # 142 sequences: a worker has 47 or 48, in batches of 4.
    assert source.steps_per_epoch == 11
    assert source.examples_per_step == WORKERS * BATCH
    tokens = stream(source)
    assert tokens.dtype == np.int32
    assert (np.diff(tokens) == 1).all()
    starts = tokens[..., 0].reshape(WORKERS, 2, 11 * BATCH)
    for worker, epochs in enumerate(starts):
        for seen in epochs:
            assert len(np.unique(seen)) == 11 * BATCH
        others = np.delete(starts, worker, axis=0)
        assert not {*epochs.flat} & {*others.flat}


def test_the_order_is_that_of_the_seed_whatever_the_period_and_the_start():
    whole = stream(pipeline())
    np.testing.assert_array_equal(whole, stream(pipeline()))
    for first_step, period in ((0, 4), (5, 2), (9, 3)):
        part = stream(pipeline(), first_step, period, steps=12)
        np.testing.assert_array_equal(part, whole[:, first_step : first_step + 12])
    assert (whole != stream(pipeline(seed=1))).any()
    assert (whole[:, :11] != whole[:, 11:]).any()
