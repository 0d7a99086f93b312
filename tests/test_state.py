"""What a round asks of a state, in every execution: its leaves, its types, its part."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj

N, PERIOD = 2, 2
EXECUTIONS = [("pmap", "fused"), ("pmap", "split"), ("shard_map", "fused")]
both = pytest.mark.parametrize(("via", "execution"), EXECUTIONS)


def loss_fn(params, batch):
    """The last value of each leaf goes to the batch's mean."""
    leaves = jax.tree.leaves(params)
    return sum(
        jnp.sum((leaf.astype(jnp.float32) - batch.mean()) ** 2) for leaf in leaves
    )


def batches(value=1.0):
    return np.full([N, PERIOD, 3], value, np.float32)


def start(
    inner,
    params,
    *,
    loss=loss_fn,
    via: Any = "pmap",
    execution: Any = "fused",
    **options,
) -> Any:
    round_ = cj.make_round(loss, inner, cj.cocod("workers"), period=PERIOD, **options)
    state = cj.replicate(round_.init(params), N)
    return round_, state, cj.distribute(round_, via=via, execution=execution)


class TestLearningRateInMidRun:
    @both
    def test_a_number_is_given_to_all_workers(self, via, execution):
        inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        _, state, run = start(inner, jnp.zeros(3), via=via, execution=execution)
        state, _ = run(state, batches())
        before = np.asarray(state.params)
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(0.0)
        state, _ = run(state, batches())
        np.testing.assert_array_equal(state.params, before)
        assert state.opt_state.hyperparams["learning_rate"].shape == (N,)

    def test_it_compiles_nothing_anew(self):
        inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        traces = []

        def loss(params, batch):
            traces.append(None)
            return loss_fn(params, batch)

        _, state, run = start(inner, jnp.zeros(3), loss=loss)
        state, _ = run(state, batches())
        traced = len(traces)
        for learning_rate in (0.05, jnp.float32(0.01), np.float32(0.02)):
            state.opt_state.hyperparams["learning_rate"] = learning_rate
            state, _ = run(state, batches())
        assert len(traces) == traced

    @both
    def test_another_length_is_named(self, via, execution):
        inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        _, state, run = start(inner, jnp.zeros(3), via=via, execution=execution)
        state.opt_state.hyperparams["learning_rate"] = jnp.zeros(3)
        with pytest.raises(ValueError, match=r"learning_rate'\] has shape \(3,\)"):
            run(state, batches())

    def test_what_is_no_number_is_named(self):
        inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        _, state, run = start(inner, jnp.zeros(3))
        state.opt_state.hyperparams["learning_rate"] = "0.1"
        with pytest.raises(TypeError, match=r"learning_rate'\] is '0\.1'"):
            run(state, batches())

    def test_parameters_of_one_worker_are_named(self):
        _, state, run = start(optax.sgd(0.1), {"w": jnp.zeros(3)})
        with pytest.raises(ValueError, match=r"state\.params\['w'\] has shape \(3,\)"):
            run(state._replace(params={"w": jnp.zeros(3)}), batches())


class TestTypesThatAStepChanges:
    @both
    def test_of_the_optimizer(self, via, execution):
        inner = optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(
            learning_rate=0.1
        )
        _, state, run = start(
            inner, jnp.zeros(3, jnp.bfloat16), via=via, execution=execution
        )
        with pytest.raises(
            TypeError, match=r"opt_state.*bfloat16\[3\] to float32\[3\]"
        ):
            run(state, batches())

    @both
    @pytest.mark.parametrize(
        ("after", "words"),
        [
            (lambda s: {"m": s["m"].astype(jnp.bfloat16)}, "float32.* to bfloat16"),
            (lambda s: {"m": s["m"] + jnp.zeros(2)}, r"float32\[\] to float32\[2\]"),
            (lambda s: {**s, "new": s["m"]}, r"'new'\] from nothing to float32"),
            (lambda s: {}, r"'m'\] from float32\[\] to nothing"),
        ],
    )
    def test_of_the_model_state(self, via, execution, after, words):
        stateful = lambda params, model_state, batch, key: (
            loss_fn(params, batch),
            after(model_state),
        )
        round_ = cj.make_round(
            stateful, optax.sgd(0.1), cj.cocod("workers"), period=2, stateful=True
        )
        state = cj.replicate(round_.init(jnp.zeros(3), {"m": jnp.float32(0)}), N)
        run = cj.distribute(round_, via=via, execution=execution)
        with pytest.raises(TypeError, match=f"model_state.*{words}"):
            run(state, batches())

    def test_of_constants_under_check_vma(self):
        """State that is a constant at first varies with the worker later."""
        inner = optax.inject_hyperparams(optax.sgd)(
            learning_rate=optax.constant_schedule(0.1)
        )
        _, state, run = start(inner, jnp.zeros(3), via="shard_map")
        state, metrics = run(state, batches())
        assert np.isfinite(metrics.loss).all()


def sees_value(updates, state, params=None, *, value):
    del params
    return jax.tree.map(lambda g: -0.1 * value * jnp.ones_like(g), updates), state


def sees_nothing(updates, state, params=None):
    del params
    return jax.tree.map(lambda g: -0.1 * g, updates), state


no_state = lambda params: optax.EmptyState()
OF_TWO_STEPS: Any = optax.MultiSteps(optax.polyak_sgd(0.1), 2)
CLASSES: list[Any] = [
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
]
UPDATES: list[Any] = [sees_value, sees_nothing, jax.jit(sees_nothing)]


class TestWhatTheInnerOptimizerGets:
    @pytest.mark.parametrize(
        "inner",
        [
            OF_TWO_STEPS,
            optax.chain(optax.clip(1.0), optax.polyak_sgd(0.1)),
            *(of(no_state, update) for of in CLASSES for update in UPDATES),
            optax.contrib.reduce_on_plateau(),
        ],
    )
    def test_value_where_the_signature_takes_it(self, inner):
        """For one worker the round is the optimizer alone, called with value=loss."""
        round_ = cj.make_round(loss_fn, inner, cj.cocod("workers"), period=PERIOD)
        state = cj.replicate(round_.init(jnp.zeros(3)), 1)
        run = cj.distribute(round_, via="vmap", execution="fused")
        state, _ = run(state, batches()[:1])

        takes_none = inner.update in UPDATES[1:]
        alone: Any = jnp.zeros(3)
        opt_state = inner.init(alone)
        for batch in batches()[0]:
            value, gradient = jax.value_and_grad(loss_fn)(alone, batch)
            extra = {} if takes_none else {"value": value}
            updates, opt_state = inner.update(gradient, opt_state, alone, **extra)
            alone = optax.apply_updates(alone, updates)
        np.testing.assert_allclose(state.params[0], np.asarray(alone), rtol=1e-6)

    def test_in_every_too(self):
        optimizer = cj.every(1, OF_TWO_STEPS, cj.cocod("workers"))
        params = jnp.zeros([1, 3])
        state = jax.vmap(optimizer.init)(params)

        def step(gradient, state, params):
            return optimizer.update(gradient, state, params, value=1.0, extra=None)

        step = jax.vmap(step, axis_name="workers")
        updates, state = step(params + 1, state, params)
        np.testing.assert_array_equal(updates, 0)
        updates, _ = step(params + 1, state, params)
        assert (updates < 0).all()


PARAMS = {
    "base": {"w": jnp.arange(6.0).reshape(2, 3), "table": jnp.arange(4)},
    "lora": jnp.zeros(3),
}
MASKS = {
    "prefix": {"base": False, "lora": True},
    "leaves": {"base": {"w": False, "table": False}, "lora": True},
    "path": lambda path, leaf: path[0].key == "lora",
    "leaf": lambda leaf: leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.inexact),
}


def lora_loss(params, batch):
    base = params["base"]["w"] + params["base"]["table"][0]
    return jnp.mean((base @ (params["lora"] - batch)) ** 2)


class TestTrainable:
    @pytest.mark.parametrize(
        ("via", "execution", "mask"),
        [
            *((*execution, "prefix") for execution in EXECUTIONS),
            *((*EXECUTIONS[0], mask) for mask in MASKS if mask != "prefix"),
        ],
    )
    def test_the_rest_is_neither_sent_nor_changed(self, via, execution, mask):
        round_, state, run = start(
            optax.adamw(0.1, weight_decay=0.1),
            PARAMS,
            loss=lora_loss,
            via=via,
            execution=execution,
            trainable=MASKS[mask],
        )
        assert cj.summary(round_, state).sent_bytes == {"float32": 12}
        assert cj.summary(round_, state).parameters == 13
        losses = []
        for t in range(8):
            state, metrics = run(state, batches(t % 2 + np.arange(N).reshape(N, 1, 1)))
            losses.append(float(metrics.loss.mean()))
        assert losses[-2] < losses[0]
        for name, leaf in PARAMS["base"].items():
            now = state.params["base"][name]
            np.testing.assert_array_equal(now, np.stack([leaf] * N))
            assert now.dtype == leaf.dtype
        assert (np.asarray(state.params["lora"]) != 0).all()
        assert (np.abs(metrics.alignment) > 0).all()  # is that of what is sent

    def test_it_is_the_round_of_the_part_alone(self):
        """To rounding: the same numbers in another program."""
        both = []
        of_part = lambda lora, batch: lora_loss({**PARAMS, "lora": lora}, batch)
        for loss, params, mask in [
            (lora_loss, PARAMS, MASKS["prefix"]),
            (of_part, PARAMS["lora"], None),
        ]:
            _, state, run = start(
                optax.adam(0.1), params, loss=loss, trainable=mask, delay=1
            )
            for t in range(3):
                data = batches(t + np.arange(N).reshape(N, 1, 1))
                state, metrics = run(state, data)
            both.append((cj.consensus(state), metrics))
        (whole, metrics), (part, expected) = both
        np.testing.assert_allclose(whole["lora"], part, rtol=1e-5)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4),
            metrics,
            expected,
        )

    def test_consensus_is_whole(self):
        _, state, _ = start(
            optax.sgd(0.1), PARAMS, loss=lora_loss, trainable=MASKS["prefix"]
        )
        jax.tree.map(np.testing.assert_array_equal, cj.consensus(state), PARAMS)

    @pytest.mark.parametrize(
        ("mask", "error", "words"),
        [
            ({"base": False}, ValueError, "no prefix"),
            ({"base": 0, "lora": 1}, TypeError, r"of \['base'\]\['table'\] it says 0"),
            (lambda a, b, c: True, TypeError, r"must take \(leaf\) or \(path, leaf\)"),
            (lambda leaf: leaf, TypeError, "must say True or False"),
            (False, ValueError, "selects none of the 3 leaves"),
        ],
    )
    def test_other_masks_are_refused(self, mask, error, words):
        with pytest.raises(error, match=words):
            start(optax.sgd(0.1), PARAMS, loss=lora_loss, trainable=mask)


class TestLeavesThatCannotBeTrained:
    @pytest.mark.parametrize(
        ("leaf", "words"),
        [
            (jnp.tanh, r"params\['extra'\] is .*eqx.partition"),
            ("relu", r"params\['extra'\] is 'relu', of type str"),
            (np.array(["a"]), r"params\['extra'\]"),
            (object(), r"params\['extra'\]"),
            (jnp.arange(3), r"params\['extra'\] has the dtype int32.*trainable"),
            (np.bool_(True), r"params\['extra'\] has the dtype bool"),
            (7, r"params\['extra'\] has the dtype int32"),
        ],
    )
    def test_are_named(self, leaf, words):
        with pytest.raises(TypeError, match=words):
            start(optax.sgd(0.1), {"w": jnp.zeros(3), "extra": leaf})

    def test_are_named_when_they_stay_as_they_are(self):
        with pytest.raises(TypeError, match=r"params\['extra'\]"):
            start(
                optax.sgd(0.1),
                {"w": jnp.zeros(3), "extra": "relu"},
                trainable={"w": True, "extra": False},
            )

    def test_complex_ones_are_trained(self):
        loss = lambda params, batch: jnp.sum(jnp.abs(params - batch.mean()) ** 2)
        _, state, run = start(optax.sgd(0.1), jnp.zeros(3, jnp.complex64), loss=loss)
        _, metrics = run(state, batches())
        assert (metrics.loss[:, 1] < metrics.loss[:, 0]).all()


def aux_loss(params, batch):
    return loss_fn(params, batch), {"first": batch[0], "row": batch, "n": jnp.int32(3)}


class TestAux:
    @pytest.mark.parametrize(
        ("via", "execution"),
        [*itertools.product(["pmap", "shard_map", "vmap"], ["fused", "split"])],
    )
    def test_it_comes_back_for_every_step(self, via, execution):
        _, state, run = start(
            optax.sgd(0.1),
            jnp.zeros(3),
            loss=aux_loss,
            via=via,
            execution=execution,
            has_aux=True,
            delay=1,
        )
        data = np.arange(N * PERIOD * 3, dtype=np.float32).reshape(N, PERIOD, 3)
        _, metrics = run(state, data)
        np.testing.assert_array_equal(metrics.aux["first"], data[..., 0])
        np.testing.assert_array_equal(metrics.aux["row"], data)
        assert metrics.aux["n"].dtype == np.int32
        numbers = cj.loggers.scalars(metrics)
        assert numbers["aux/first"] == data[..., 0].mean()
        assert numbers["aux/n"] == 3
        assert "aux/row" not in numbers
        assert cj.DriftAlarm()(metrics) is None

    def test_of_a_stateful_loss_it_is_the_last(self):
        loss = lambda params, model_state, batch, key: (
            loss_fn(params, batch),
            model_state + 1,
            batch.mean(),
        )
        round_ = cj.make_round(
            loss,
            optax.sgd(0.1),
            cj.cocod("workers"),
            period=PERIOD,
            stateful=True,
            has_aux=True,
        )
        state = cj.replicate(round_.init(jnp.zeros(3), jnp.int32(0)), N)
        state, metrics = cj.distribute(round_)(state, batches())
        np.testing.assert_array_equal(metrics.aux, np.ones([N, PERIOD]))
        np.testing.assert_array_equal(state.model_state, [PERIOD] * N)

    def test_of_micro_batches_it_is_the_mean(self):
        _, state, run = start(
            optax.sgd(0.1), jnp.zeros(3), loss=aux_loss, has_aux=True, via="vmap"
        )
        data = np.zeros([N, PERIOD, 2, 3], np.float32)
        data[:, :, 1] = 4.0
        counts = np.array([[1, 2], [2, 1]])
        _, metrics = run(state, cj.MicroBatches(data, counts))
        np.testing.assert_array_equal(metrics.aux["first"], [[0, 2], [2, 0]])
        assert metrics.aux["n"].dtype == np.float32
        np.testing.assert_array_equal(metrics.aux["n"], np.full([N, PERIOD], 3))

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            (lambda loss: loss, r"has_aux=True loss_fn must return \(loss, aux\)"),
            (lambda loss: (loss, 1, 2), "returned a tuple"),
            (lambda loss: (jnp.ones(2), loss), r"shape \(2,\) as the loss"),
        ],
    )
    def test_other_returns_are_refused(self, returned, words):
        _, state, run = start(
            optax.sgd(0.1),
            jnp.zeros(3),
            loss=lambda params, batch: returned(loss_fn(params, batch)),
            has_aux=True,
        )
        with pytest.raises(TypeError, match=words):
            run(state, batches())
