"""Checkpoints: states come back to the bit, and others are refused by name."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import cocod_jax as cj
from cocod_jax.execution import Checkpoints
from tests import meshes, problems
from tests.problems import N


def make_round(rule=None, inner=None):
    rule = cj.rules.diloco("workers") if rule is None else rule
    inner = optax.adam(0.1) if inner is None else inner
    return cj.make_round(problems.loss, inner, rule, period=problems.PERIOD)


def trained(round_, rounds=1, state=None):
    if state is None:
        state = cj.replicate(round_.init(problems.params(), key=jax.random.key(3)), N)
    run = cj.distribute(round_)
    for _ in range(rounds):
        state, _ = run(state, problems.round_batches(problems.batches(), 0))
    return state


def bits(state):
    state = state._replace(key=jax.random.key_data(state.key))
    of = lambda leaf: np.asarray(leaf).tobytes()
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path): of(leaf) for path, leaf in leaves}


@pytest.mark.parametrize(
    "rule",
    [
        cj.rules.diloco("workers"),
        cj.cocod(cj.exchanges.narrow("workers", "int8")),
        cj.rules.vrl_sgd("workers", learning_rate=0.1, period=problems.PERIOD),
    ],
    ids=["diloco", "int8", "vrl_sgd"],
)
def test_a_state_goes_on_to_the_bit(rule, tmp_path):
    """It is donated to the next round while it is written."""
    round_ = make_round(rule)
    state = trained(round_)
    with Checkpoints(tmp_path) as checkpoints:
        saved = bits(state)
        checkpoints.save(4, state, notes={"position": [1, 2]})
        undisturbed = bits(trained(round_, 2, state))
    fresh = cj.replicate(round_.init(problems.params(), key=jax.random.key(0)), N)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(fresh)
    assert found is not None
    assert found.step == 4
    assert found.notes == {"position": [1, 2]}
    assert bits(found.state) == saved
    assert bits(trained(round_, 2, found.state)) == undisturbed


def test_a_worker_of_several_devices_gets_its_parts_back(tmp_path):
    mesh = meshes.mesh_of("2x4")
    round_ = cj.make_round(meshes.loss, optax.adam(0.1), cj.cocod("workers"), period=4)
    start = lambda value: cj.replicate(
        round_.init(
            jax.tree.map(lambda x: x + value, meshes.sharded(meshes.params(), mesh))
        ),
        mesh=mesh,
    )
    state = start(1.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        found = checkpoints.restore(start(0.0))
    assert found is not None
    for own, other in zip(*map(jax.tree.leaves, (state, found.state)), strict=True):
        assert own.sharding.is_equivalent_to(other.sharding, own.ndim)
    assert bits(found.state) == bits(state)


def test_the_last_and_the_best_stay(tmp_path):
    state = trained(make_round(), 0)
    scores = {1: None, 2: 5.0, 3: 1.0, 4: None, 5: 2.0}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.best is None
        for step, score in scores.items():
            checkpoints.save(step, state, score=score)
        checkpoints.save(5, state)  # by this one, a moment ago
        checkpoints.wait()
        assert checkpoints.steps == [2, 5]
        assert checkpoints.best == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_round(inner=optax.sgd(0.1)), "opt_state.0.mu.w is unknown here"),
        (make_round(cj.cocod("workers")), "rule_state.anchor.w is unknown here"),
        (make_round(cj.rules.slowmo("workers")), r"rule_state.outer_state.0.trace"),
    ],
)
def test_a_state_of_something_else_is_refused(other, message, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, trained(make_round(), 0))
        like = trained(other, 0)
        if "trace" in message:
            like = like._replace(params=like.params | {"w": like.params["w"][:, :1]})
            message = "params.w is float32.* is asked for"
        with pytest.raises(ValueError, match=f"of another model.*{message}"):
            checkpoints.restore(like)


def test_other_numbers_of_workers_are_refused(tmp_path):
    round_ = make_round()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, trained(round_, 0))
        with pytest.raises(ValueError, match=rf"count is int32\[{N}\], and int32\[2\]"):
            checkpoints.restore(cj.replicate(round_.init(problems.params()), 2))
        with pytest.raises(ValueError, match=r"step=7 is not in .*, which has \[0\]"):
            checkpoints.restore(trained(round_, 0), 7)


def test_another_future_is_not_dropped(tmp_path):
    """Neither one from an earlier step, nor that of a new run in an old folder."""
    round_ = make_round()
    first, second = trained(round_), trained(round_, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, first)
        checkpoints.save(8, second)
    message = r"step={} cannot be saved in .*, which has \[4, 8\]: step 8 .* remove"
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(second, 4)
        assert found is not None
        other = trained(round_, 3, found.state)
        for step in (3, 4, 6, 8):
            with pytest.raises(ValueError, match=message.format(step)):
                checkpoints.save(step, other)
    shutil.rmtree(tmp_path / "8")  # as the message says
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, other)
        found = checkpoints.restore(second)
        assert found is not None
        assert bits(found.state) == bits(other) != bits(second)


def test_bad_arguments_are_named(tmp_path):
    state = trained(make_round(), 0)
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="step=-1"):
            checkpoints.save(-1, state)
        with pytest.raises(TypeError, match="RoundState"):
            checkpoints.save(0, state.params)
        with pytest.raises(ValueError, match="axis of workers"):
            checkpoints.restore(make_round().init(problems.params()))


def test_a_torn_checkpoint_is_none(tmp_path):
    """A folder that is not complete, as a kill leaves it."""
    state = trained(make_round(), 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    torn = tmp_path / "4.orbax-checkpoint-tmp"
    torn.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(state)
        assert found is not None
        assert found.step == 3
        assert checkpoints.steps == [3]
        assert torn.exists()  # since another program may be writing it
        checkpoints.save(5, state)
        assert not torn.exists()


def test_a_bit_that_flips_is_found(tmp_path):
    """In any file of the state and the notes; TensorStore has no sums of numbers."""
    state = trained(make_round())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, notes={"seed": 0})
        checkpoints.wait()
        parts = (tmp_path / "4" / "state", tmp_path / "4" / "notes")
        files = [path for part in parts for path in part.rglob("*") if path.is_file()]
        files = [path for path in files if path.name != "commit_success.txt"]
        assert any(path.parent.name == "d" for path in files)
        for path in files:
            content = path.read_bytes()
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 1])
            path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
            with pytest.raises(ValueError, match=r"step 4 .* is damaged"):
                checkpoints.restore(state)
            path.write_bytes(content)
        found = checkpoints.restore(state)
        assert found is not None
        assert bits(found.state) == bits(state)


def test_a_file_that_is_gone_is_named_and_one_without_sums_is_read(tmp_path):
    state = trained(make_round())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state)
        checkpoints.wait()
        part, other = tmp_path / "4" / "state", tmp_path / "other"
        (part / "_METADATA").rename(other)
        with pytest.raises(ValueError, match="state/_METADATA is not what was written"):
            checkpoints.restore(state)
        other.rename(part / "_METADATA")
        notes = (tmp_path / "4" / "notes").rename(other)
        with pytest.raises(ValueError, match=r"step 4 .* is damaged: .*notes"):
            assert checkpoints.best is None
        notes.rename(tmp_path / "4" / "notes")
        for sums in tmp_path.glob("4/*/checksums.json"):
            sums.unlink()  # as earlier versions saved
        found = checkpoints.restore(state)
        assert found is not None
        assert bits(found.state) == bits(state)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with orbax.checkpoint.CheckpointManager(tmp_path / "orbax") as manager:
        args = orbax.checkpoint.args.StandardSave({"w": jnp.ones(3)})
        manager.save(3, args=args)
    photos = tmp_path / "photos" / "2024"
    photos.mkdir(parents=True)
    (photos / "one.jpg").touch()
    (photos / "commit_success.txt").touch()  # where folders cannot be renamed
    for folder, name in (("orbax", 3), ("photos", 2024)):
        message = f"something else than states of a run: {name} .* of its own"
        with pytest.raises(ValueError, match=f"folder='.*{folder}' has {message}"):
            Checkpoints(tmp_path / folder)


def test_an_array_of_no_numbers_comes_back(tmp_path):
    loss = lambda w, batch: jnp.mean((w["a"] - batch) ** 2)
    round_ = cj.make_round(loss, optax.adam(0.1), cj.cocod("workers"), period=1)
    params = {"a": jnp.ones(3), "none": jnp.zeros([0, 3])}
    state = cj.replicate(round_.init(params, key=jax.random.key(0)), N)
    state, _ = cj.distribute(round_)(state, np.zeros([N, 1, 3], np.float32))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        found = checkpoints.restore(state)
    assert found is not None
    assert bits(found.state) == bits(state)
    assert found.state.params["none"].shape == (N, 0, 3)


def test_keys_and_narrow_floats_keep_their_types(tmp_path):
    loss = lambda w, batch: jnp.mean((w.astype(jnp.float32) - batch) ** 2)
    round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    key = jax.random.key(1, impl="rbg")
    state = cj.replicate(round_.init(jnp.ones(3, jnp.bfloat16), key=key), N)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        found = checkpoints.restore(state)
    assert found is not None
    assert found.state.key.dtype == state.key.dtype
    assert found.state.params.dtype == jnp.bfloat16
    assert bits(found.state) == bits(state)
