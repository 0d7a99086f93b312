"""From one worker to N and back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems


def make_state(workers, weights=None, model_state=None):
    stateful = model_state is not None
    with_state = lambda params, model_state, batch, key: (
        problems.loss(params, batch),
        model_state,
    )
    round_ = cj.make_round(
        with_state if stateful else problems.loss,
        optax.adam(0.1),
        cj.cocod("workers", weights),
        period=1,
        stateful=stateful,
    )
    return cj.replicate(round_.init(problems.params(), model_state), workers)


def test_replicate_copies_everything_but_the_keys():
    state = make_state(3)
    for leaf in jax.tree.leaves(state._replace(key=())):
        assert leaf.shape[0] == 3
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    keys = jax.random.key_data(state.key)
    assert len({tuple(row) for row in np.asarray(keys).tolist()}) == 3


def test_replicate_in_parts_is_replicate_in_one(monkeypatch):
    """Two processes of two workers each hold what one of four would."""
    rule = cj.cocod("workers", (1, 2, 3, 4))
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), rule, period=1)
    state = round_.init(problems.params())
    whole = cj.replicate(state, 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        part, own = cj.replicate(state, 2), slice(2 * process, 2 * process + 2)
        keys = jax.random.key_data(whole.key)[own]
        np.testing.assert_array_equal(jax.random.key_data(part.key), keys)
        np.testing.assert_array_equal(part.weight, whole.weight[own])
        other = cj.reweight(part, (4, 3, 2, 1))
        np.testing.assert_array_equal(other.weight, whole.weight[::-1][own])


def test_states_within_a_tree_get_their_weights():
    state = make_state(2, (1, 3))
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    fresh, average = round_.init(problems.params()), problems.params()
    spread, _ = cj.replicate((fresh, average), 2)
    np.testing.assert_array_equal(spread.weight, [0.5, 0.5])
    placed, _ = cj.replicate((fresh, average), 2, devices=jax.devices()[:2])
    np.testing.assert_array_equal(placed.weight, [0.5, 0.5])
    with pytest.raises(ValueError, match="axis of 2 workers already"):
        cj.replicate(state, 2)


def test_a_program_cannot_ask_other_processes(monkeypatch):
    """Its mean would be half a model, without a word."""
    state = make_state(2)
    expected = cj.consensus(state)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(cj.consensus)(state), expected)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for ask in (cj.consensus, cj.consensus_model_state):
        with pytest.raises(ValueError, match=r"call this outside of it"):
            jax.jit(lambda state, ask=ask: ask(state))(state)


def test_every_key_of_an_array_of_keys_is_folded():
    keys = jax.random.split(jax.random.key(0), 3)
    spread = cj.replicate(keys, 2)
    assert spread.shape == (2, 3)
    alone = [cj.replicate(key, 2) for key in keys]
    np.testing.assert_array_equal(
        jax.random.key_data(spread),
        np.stack([jax.random.key_data(key) for key in alone], axis=1),
    )


class NoiseState(NamedTuple):
    """Of a transform that draws numbers."""

    rng_key: jax.Array
    seen: jax.Array


def noisy(key):
    """Sends gradients of noise; the key does not change."""
    init = lambda params: NoiseState(key, jnp.zeros(2, jnp.uint32))
    draw = lambda leaf, state: jax.random.normal(state.rng_key, leaf.shape)
    update = lambda updates, state, params=None: (
        jax.tree.map(lambda leaf: draw(leaf, state), updates),
        state,
    )
    return optax.chain(optax.GradientTransformation(init, update), optax.sgd(1.0))


def noise_of_workers(key):
    round_ = cj.make_round(lambda w, b: w, noisy(key), cj.cocod("workers"), period=1)
    state = cj.replicate(round_.init(jnp.array(1.0)), 2)
    state, _ = cj.distribute(round_, via="vmap")(state, np.zeros([2, 1]))
    return np.asarray(state.params)


def test_a_raw_key_that_all_workers_would_share_is_named():
    with pytest.warns(
        UserWarning, match=r"^tree\.opt_state\[0\]\.rng_key looks.*typed key"
    ) as warned:
        same, other = noise_of_workers(jax.random.PRNGKey(0))
    assert same == other
    assert [w.filename for w in warned] == [__file__]
    one, other = noise_of_workers(jax.random.key(0))
    assert one != other


@pytest.mark.parametrize(
    "tree",
    [
        {"rngs": {"dropout": jax.random.PRNGKey(0)}},
        {"sub_key": jax.random.split(jax.random.PRNGKey(0), 3)},
        {"PRNG": jax.random.PRNGKey(0, impl="rbg")},
    ],
)
def test_raw_keys_have_names_and_shapes(tree):
    with pytest.warns(UserWarning, match="looks like a raw PRNG key"):
        cj.replicate(tree, 2)
    for name, leaf in [
        ("count", np.zeros(2, np.uint32)),
        ("monkey", np.zeros(2, np.uint32)),
        ("key", np.zeros([2, 3], np.uint32)),
        ("key", np.zeros((), np.uint32)),
        ("key", np.zeros(2, np.int32)),
        ("key", np.zeros(2, np.float32)),
        ("key", jax.random.key(0)),
    ]:
        cj.replicate({name: leaf}, 2)
    cj.replicate(optax.noisy_sgd(0.1, key=0).init(np.zeros(2, np.float32)), 2)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
def test_replicate_refuses_a_bad_number(workers):
    with pytest.raises(ValueError, match="workers="):
        cj.replicate(problems.params(), workers)


def test_each_worker_gets_its_own_weight():
    np.testing.assert_allclose(make_state(2, (1, 3)).weight, [0.25, 0.75])
    np.testing.assert_allclose(make_state(2).weight, [0.5, 0.5])
    with pytest.raises(ValueError, match="2 weights, but 3 workers"):
        make_state(3, (1, 3))


def test_reweight():
    state = cj.reweight(make_state(2), (3, 1))
    np.testing.assert_allclose(state.weight, [0.75, 0.25])
    with pytest.raises(ValueError, match="3 weights, but 2 workers"):
        cj.reweight(state, (1, 1, 1))
    with pytest.raises(ValueError, match="1 weights, but 2 workers"):
        cj.reweight(state, (3,))
    for weights in ((1, -1), (0, 0), (1, np.inf), ()):
        with pytest.raises(ValueError, match="must be finite numbers, 0 or more"):
            cj.reweight(state, weights)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_worker_of_weight_0_is_away_and_hears_of_the_others(streamed):
    """What it does does not count, while it takes steps, and it is back at once."""
    rule = cj.cocod("workers")
    round_ = cj.make_round(
        lambda w, batch: (w * batch).sum(),
        optax.sgd(1.0),
        rule,
        period=2,
        streamed=streamed,
    )
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.zeros(2)), 3)
    state = state._replace(params=jnp.array([[1.0, 1], [3, 3], [100, 100]]))
    tokens, still = (5, 5, 0), jnp.zeros([3, 2, 2])
    state = cj.reweight(state, cj.workers.token_weights(tokens, steps=(1, 1, 0)))
    np.testing.assert_array_equal(state.weight, [0.5, 0.5, 0])
    after, metrics = run(jax.tree.map(jnp.copy, state), still.at[2].set(-8.0))
    # Of its two steps; one was taken before the second piece was sent.
    progress = np.array([16, 8 if streamed else 16])
    np.testing.assert_allclose(after.params[:2], 2)
    np.testing.assert_allclose(after.params[2], 2 + progress)
    np.testing.assert_allclose(cj.consensus(after), 2)
    assert np.isfinite(metrics.distance).all()
    back, _ = run(cj.reweight(after, (1, 1, 2)), still)
    np.testing.assert_allclose(back.params, [2 + progress / 2] * 3)


def test_weights_that_would_not_count_are_refused():
    for exchange in ("ring", "exponential"):
        rule = cj.cocod(cj.exchanges.gossip("workers", exchange))
        round_ = cj.make_round(lambda w, b: w, optax.sgd(0.1), rule, period=1)
        state = cj.replicate(round_.init(jnp.zeros([])), 4)
        cj.reweight(state, (2, 2, 2, 2))
        with pytest.raises(ValueError, match=r"differ, but .*gossip"):
            cj.reweight(state, (1, 2, 2, 2))


def test_every_worker_has_a_place():
    with pytest.raises(ValueError, match=r"shape \(4,\), but there are 2 devices"):
        cj.place(jnp.zeros(4), jax.devices()[:2])


def test_consensus_is_the_weighted_mean_in_the_leaves_own_dtypes():
    state = make_state(2, (1, 3))
    params = {"x": jnp.array([[0.0, 8], [4, 4]]), "h": jnp.array([0, 4], jnp.bfloat16)}
    mean = cj.consensus(state._replace(params=params))
    np.testing.assert_allclose(mean["x"], [3, 5])
    assert mean["h"] == 3
    assert jnp.asarray(mean["h"]).dtype == jnp.bfloat16


STRANGE = [np.inf, -np.inf, np.nan, -0.0, 0.0, 1e-40, 3.4e38, -3.4e38, 0.1, 1e8 + 8]


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 4, 5), (1, 10, 1e3), (0.1,) * 7])
def test_the_consensus_of_equal_workers_is_theirs_in_every_bit(weights):
    """Also where the shares, as floats, have not the sum 1."""
    rng = np.random.default_rng(0)
    x = np.concatenate([STRANGE, rng.normal(size=500)]).astype(np.float32)
    each = {
        "float32": x,
        "bfloat16": jnp.asarray(x[10:], jnp.bfloat16),
        "float16": jnp.asarray(x[10:], jnp.float16),
        "complex64": x[10:] + 1j * x[10:][::-1],
        "int32": np.array([2**31 - 1, -(2**31), 0, 2**24 + 1], np.int32),
        "bool": np.array([True, False]),
    }
    state = make_state(len(weights), weights)
    workers = cj.replicate(each, len(weights))
    state = state._replace(params=workers, model_state=workers)
    for found in (cj.consensus(state), cj.consensus_model_state(state)):
        for name, leaf in each.items():
            assert np.asarray(found[name]).tobytes() == leaf.tobytes(), name
    with jax.enable_x64(True):
        one = np.array([0.1, 1e300, 2.0**53 - 1])
        wide = cj.consensus(state._replace(params=np.stack([one] * len(weights))))
        assert np.asarray(wide).tobytes() == one.tobytes()


def test_the_consensus_of_what_is_not_finite_or_large():
    state = make_state(3, (1, 1, 2))
    largest = np.finfo(np.float32).max
    columns = {
        (np.inf, np.inf, 1.0): np.inf,
        (np.inf, -np.inf, 1.0): np.nan,
        (1.0, 1.0, np.nan): np.nan,
        # Their difference is not finite, and their mean is.
        (largest, largest, -largest): 0.0,
        (-0.0, -0.0, 4.0): 2.0,
    }
    params = np.array(list(columns), np.float32).T
    found = cj.consensus(state._replace(params=params))
    np.testing.assert_array_equal(found, np.array(list(columns.values()), np.float32))


def test_the_consensus_goes_to_one_device():
    """From workers with devices of their own it would be on all of these."""
    state = jax.pmap(lambda s: s)(make_state(8, model_state={"k": jax.random.key(0)}))
    state = state._replace(params={"w": state.params["w"], "n": np.arange(8)})
    for device in (None, *jax.devices()[:4:3]):
        for ask in (cj.consensus, cj.consensus_model_state):
            leaves = jax.tree.leaves(ask(state, device))
            expected = {device} if device else set(jax.devices())
            assert set().union(*(leaf.devices() for leaf in leaves)) == expected
    jax.tree.map(
        np.testing.assert_array_equal,
        cj.consensus(state, device=jax.devices()[3]),
        cj.consensus(state),
    )


def test_the_consensus_goes_to_a_device_of_this_process(monkeypatch):
    state, device = make_state(2), jax.devices()[0]
    no_device: Any = "cpu"
    for ask in (cj.consensus, cj.consensus_model_state):
        with pytest.raises(TypeError, match=r"device='cpu' must be one of jax\.local"):
            ask(state, no_device)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="belongs to process 0, and this is process 1"):
        cj.consensus(state, device)


@pytest.mark.parametrize("params", [{}, (None, {"masked": optax.MaskedNode()})])
def test_the_consensus_of_no_leaves_is_none(params):
    state = make_state(2)._replace(params=params, model_state=params)
    assert cj.consensus(state) == cj.consensus_model_state(state) == params
    cj.workers.check_equal_start(state)
    assert cj.replicate(params, 2) == params


def test_consensus_of_sharded_workers():
    """Also where every worker's arrays are on a device of their own."""
    state = jax.pmap(lambda s: s)(make_state(8))
    jax.tree.map(
        lambda mean, x: np.testing.assert_allclose(mean, x, rtol=1e-6),
        cj.consensus(state),
        problems.params(),
    )


def test_statistics_are_averaged_and_counters_take_the_maximum():
    state = make_state(2, (1, 3))._replace(
        model_state={"var": jnp.array([1.0, 2.0]), "seen": jnp.array([7, 5])}
    )
    model_state = cj.consensus_model_state(state)
    np.testing.assert_allclose(model_state["var"], 1.75)
    assert model_state["seen"] == 7


def test_unequal_starts_are_found():
    statistics = {"mean": jnp.zeros(3), "n": jnp.array(0)}
    state = make_state(3, model_state=statistics)
    cj.workers.check_equal_start(state)
    other = state.params["deep"][1]["c"].at[2, 1].add(1e-6)
    params = {**state.params, "deep": [state.params["deep"][0], {"c": other}]}
    with pytest.raises(ValueError, match=r"params\['deep'\]\[1\]\['c'\] of worker 2"):
        cj.workers.check_equal_start(state._replace(params=params))
    with pytest.raises(ValueError, match=r"model_state\['n'\] of worker 1"):
        cj.workers.check_equal_start(
            state._replace(model_state={**state.model_state, "n": jnp.arange(3)})
        )


def test_equal_infinities_and_nans_are_equal():
    state = make_state(2)
    strange = jnp.array([[np.nan, np.inf], [np.nan, np.inf]])
    for dtype in (jnp.float32, jnp.bfloat16):
        cj.workers.check_equal_start(state._replace(params=strange.astype(dtype)))


def test_keys_in_the_model_state_belong_to_their_worker():
    """NNX keeps the keys of dropout there."""
    state = make_state(2, model_state={"rng": jax.random.key(0)})
    cj.workers.check_equal_start(state)
    rng = cj.consensus_model_state(state)["rng"]
    np.testing.assert_array_equal(
        jax.random.key_data(rng), jax.random.key_data(state.model_state["rng"][0])
    )


def test_a_state_that_was_not_replicated_is_refused():
    """Stacked by hand, the workers would have no shares of their own."""
    round_ = cj.make_round(
        lambda w, b: w, optax.sgd(0.1), cj.cocod("workers"), period=1
    )
    state = round_.init(jnp.array(1.0))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    with pytest.raises(ValueError, match=r"spread the state .* cj\.replicate"):
        jax.vmap(round_.run, axis_name="workers")(stacked, jnp.zeros([2, 1]))
    calls = (
        lambda: cj.distribute(round_)(state, jnp.zeros([2, 1])),
        lambda: cj.consensus(state),
        lambda: cj.consensus_model_state(state),
        lambda: cj.reweight(state, (1, 1)),
        lambda: cj.workers.check_equal_start(state),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"no axis of workers; .*cj\.replicate"):
            call()


def test_a_start_is_equal_by_its_numbers():
    """Zeros of either sign are equal, and a NaN is what the others have, too."""
    state = make_state(2)
    same = {"x": jnp.array([[0.0, jnp.nan], [-0.0, jnp.nan]]), "n": jnp.array([3, 3])}
    cj.workers.check_equal_start(state._replace(params=same))
    other = same | {"n": jnp.array([3, 4])}
    with pytest.raises(ValueError, match=r"params\['n'\] of worker 1 differs"):
        cj.workers.check_equal_start(state._replace(params=other))
