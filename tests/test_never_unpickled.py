"""Files are data: none is run, whatever it holds."""

import gc
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from experiments.command import UsageError
from experiments.data import cifar, text
from experiments.job import saving
from tests.bad_inputs import a_state
from tests.test_data import Cifar

ROOT = Path(cj.__file__).parent.parent
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def bombs(folder: Path) -> dict[str, bytes]:
    """As a pickle itself, and in NumPy's files."""
    bomb = Bomb(folder / "exploded")
    objects = np.array([bomb], dtype=object)
    np.save(folder / "a.npy", objects, allow_pickle=True)
    np.savez(folder / "a.npz", objects)
    contents = {name: (folder / name).read_bytes() for name in ("a.npy", "a.npz")}
    pickle.loads(pickle.dumps(bomb))
    bomb.mark.unlink()  # it does explode
    return contents | {"a.pickle": pickle.dumps(bomb)}


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pickle"])
def test_a_pickle_is_never_run(name, tmp_path):
    content = bombs(tmp_path)[name]
    source = Cifar(cifar.CIFAR10, tmp_path)
    source.packed.write_bytes(content)
    with pytest.raises(ValueError, match="cifar-10"):
        source.read()
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match="no trained model"):
        saving.load(file)
    file.write_bytes(content + b"\n{}")
    with pytest.raises(ValueError, match="is no record"):
        cj.loggers.read_jsonl(file)
    if name == "a.pickle":
        with pytest.raises(UsageError, match="not UTF-8"):
            text.read(file)
    state = a_state()
    with cj.execution.Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
    for part in (tmp_path / "c" / "1").rglob("*"):
        if part.name == "checksums.json":
            part.unlink()  # or Orbax would read none of the others
        elif part.is_file():
            part.write_bytes(content)
    with (
        cj.execution.Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(ValueError, match=r"step 1 .* is damaged"),
    ):
        checkpoints.restore(state)
    assert not (tmp_path / "exploded").exists()
    gc.collect()  # of what a restore that fails leaves, or another test would be blamed


def test_no_source_unpickles():
    for folder in ("cocod_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text()
            for call in ("allow_pickle=True", "pickle.load", "joblib.load"):
                assert call not in source, path


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("text") / "text"
    file.write_bytes(content)
    try:
        content.decode()
    except UnicodeDecodeError:
        with pytest.raises(UsageError, match="not UTF-8"):
            text.read(file)
    else:
        assert text.read(file).encode() == content


@FEW
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_a_log_or_an_error_that_names_the_line(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("log") / "log.jsonl"
    file.write_bytes(b"\n".join([b'{"kind": "run"}', *lines]))
    message = ""
    try:
        assert cj.loggers.read_jsonl(file)["run"]
    except ValueError as error:
        message = str(error)
    assert not message or f"of {file} is no record" in message


@FEW
@given(st.binary(max_size=300))
def test_any_bytes_are_no_model(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="no trained model"):
        saving.load(file)


# Orbax leaves the other arrays of a restore that fails unread.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_refused_or_whole(tmp_path):
    folder, damaged = tmp_path / "checkpoints", tmp_path / "damaged"
    state = a_state()._replace(params=jax.numpy.arange(2.0))
    with cj.execution.Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, notes={"seed": 0})

    @FEW
    @given(st.integers(0), st.integers(0), st.integers(0, 7), st.booleans())
    def check(which, place, bit, cut):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        files = sorted(path for path in damaged.rglob("*") if path.is_file())
        file = files[which % len(files)]
        content = bytearray(file.read_bytes())
        if content:
            place %= len(content)
            content[place] ^= 1 << bit
        file.write_bytes(content[:place] if cut else content)
        with cj.execution.Checkpoints(damaged) as checkpoints:
            if not checkpoints.steps:
                return  # without its metadata it is none
            try:
                found = checkpoints.restore(a_state())
            except ValueError as error:
                assert "step 1" in str(error)  # noqa: PT017
                return
        assert found is not None
        leaves = map(jax.tree.leaves, (found.state, state))
        for own, wanted in zip(*leaves, strict=True):
            if not jax.numpy.issubdtype(own.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(own, wanted)

    check()
    gc.collect()  # or another test would be blamed
