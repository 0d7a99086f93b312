"""The main job at full width, certified: what the README promises of it."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import certify
from experiments import tasks, train
from experiments.config import TrainConfig
from tests.marks import needs_compiler

pytestmark = needs_compiler

FULL = ["--width", "64", "--data", "cifar10", "--batch-size", "32", "--period", "8"]
WORKERS = 8


def main_job(*argv):
    return train.certifiable([*FULL, *argv], WORKERS)


def bfloat16(state):
    """The shapes of a state whose parameters are bfloat16."""
    narrow = lambda x: jax.ShapeDtypeStruct(
        x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype
    )
    return state._replace(
        params=jax.tree.map(narrow, state.params),
        opt_state=jax.tree.map(narrow, state.opt_state),
    )


def through(via, round_):
    """The round as users run it."""
    if via == "pmap":
        return jax.pmap(round_.run, axis_name="workers", donate_argnums=0)

    def block(*args):
        out = round_.run(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    workers = PartitionSpec("workers")
    mesh = Mesh(jax.devices()[:WORKERS], "workers")
    run = jax.shard_map(
        block, mesh=mesh, in_specs=workers, out_specs=workers, check_vma=False
    )
    return jax.jit(run, donate_argnums=0)


CHOICES = (
    ("resnet18", "vgg16"),
    (8, 2),
    ("pmap", "shard_map"),
    ("sgd", "adamw"),
    ("float32", "bfloat16"),
)
FIRST, LAST = (0,) * len(CHOICES), (1,) * len(CHOICES)
# Any two choices, the number of hosts included, come in all their combinations.
# Fewer than six cannot do that. CI certifies the first.
PAIRS = {
    FIRST,
    (0, 0, 1, 0, 1),
    (0, 1, 0, 1, 0),
    (1, 0, 1, 1, 0),
    (1, 1, 0, 0, 1),
    LAST,
}


def hosts_of(picks):
    return 1 + sum(picks[:3]) % 2


def test_any_two_choices_come_in_all_combinations():
    rows = [(*picks, hosts_of(picks)) for picks in PAIRS]
    for one, other in itertools.combinations(zip(*rows, strict=True), 2):
        assert len(set(zip(one, other, strict=True))) == 4


def cases(always):
    """All combinations of the choices, half of them on one host and half on two.

    Args:
      always: the combinations that CI certifies; ``pytest -m matrix`` certifies
        the others, those of all pairs among them.
    """
    names = ("model", "delay", "via", "optimizer", "dtype", "hosts")
    params = [
        pytest.param(
            *(options[pick] for options, pick in zip(CHOICES, picks, strict=True)),
            hosts_of(picks),
            marks=() if picks in always else pytest.mark.matrix,
        )
        for picks in itertools.product((0, 1), repeat=len(CHOICES))
    ]
    return pytest.mark.parametrize(names, params)


def cocod(model, delay, via, optimizer, dtype):
    """The main job with CoCoD-SGD: a program, and what it takes."""
    round_, state, batches = main_job("--model", model, "--delay", str(delay))
    if optimizer == "adamw":
        task = tasks.task_of(TrainConfig(model=model, width=64, data="cifar10"))
        round_ = cj.make_round(
            task.loss_fn,
            optax.adamw(1e-3),
            cj.cocod("workers"),
            period=8,
            delay=delay,
            stateful=True,
        )
        start = lambda: cj.replicate(
            round_.init(*task.init(jax.random.key(0))), WORKERS
        )
        state = jax.eval_shape(start)
    if dtype == "bfloat16":
        state = bfloat16(state)
    return through(via, round_), state, batches


@cases({FIRST})
def test_cocod_is_hidden_on_h100(model, delay, via, optimizer, dtype, hosts):
    program = cocod(model, delay, via, optimizer, dtype)
    certificate = certify(*program, target="h100", hosts=hosts)
    certificate.check()
    assert certificate.verdict == f"hidden behind {delay} of 8 local steps"
    assert [c.dtype for c in certificate.schedule.collectives] == ["f32"]


@cases(())  # small programs show it as well
def test_a100_is_exposed_without_the_flag(model, delay, via, optimizer, dtype, hosts):
    program = cocod(model, delay, via, optimizer, dtype)
    certificate = certify(*program, target="a100", hosts=hosts)
    assert [r.id for r in certificate.reasons] == ["scheduler-off"]


@cases(())
def test_a100_is_hidden_with_the_flag(model, delay, via, optimizer, dtype, hosts):
    program = cocod(model, delay, via, optimizer, dtype)
    options = cj.compiler_options("gpu")
    certificate = certify(
        *program, target="a100", hosts=hosts, compiler_options=options
    ).check()
    assert certificate.verdict == f"hidden behind {delay} of 8 local steps"


@pytest.mark.matrix
def test_a_loop_of_one_step_hides_a_part_only():
    """The compiler dissolves the loop, and sends in the middle of its step."""
    program = cocod("resnet18", 1, "pmap", "sgd", "float32")
    certificate = certify(*program, target="h100")
    assert [r.id for r in certificate.reasons] == ["partly"]
    assert certificate.verdict.startswith("partly hidden behind 0.")
    (collective,) = certificate.schedule.collectives
    assert 0.2 < collective.steps < 0.6


@pytest.mark.parametrize(
    ("model", "algorithm", "reason"),
    [
        # Small programs show it as well.
        pytest.param("resnet18", "local_sgd", "steps-wait", marks=pytest.mark.matrix),
        pytest.param("resnet18", "ssgd", "in-loop", marks=pytest.mark.matrix),
        pytest.param("vgg16", "local_sgd", "steps-wait", marks=pytest.mark.matrix),
        pytest.param("vgg16", "ssgd", "in-loop", marks=pytest.mark.matrix),
    ],
)
def test_the_baselines_are_exposed(model, algorithm, reason):
    round_, state, batches = main_job("--model", model, "--algorithm", algorithm)
    certificate = certify(through("shard_map", round_), state, batches, target="h100")
    assert [r.id for r in certificate.reasons] == [reason]
