"""Several processes with one worker each give the numbers of one process."""

import functools
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import cocod_jax as cj
from docs import generate
from experiments.cluster.network import Network, free_port
from experiments.cluster.processes import run_workers
from tests import mesh_process, one_process, problems, starts


@functools.cache
def in_one_process(workers: int) -> tuple[cj.RoundState, list[jax.Array]]:
    """The end of the run, and the loss of every round."""
    round_ = one_process.make_round(workers)
    run = cj.distribute(round_, execution="split")
    state = cj.replicate(round_.init(problems.params()), workers)
    batches = problems.batches(workers=workers)
    losses = []
    for r in range(problems.ROUNDS):
        state, metrics = run(state, problems.round_batches(batches, r))
        losses.append(metrics.loss)
    return state, losses


@pytest.mark.parametrize(
    ("start_processes", "processes"),
    [
        (starts.by_hand, 1),
        (starts.by_hand, 2),
        (starts.kubernetes, 2),
        (starts.launcher, 2),
        (starts.mpirun, 2),
        (starts.srun, 2),
    ],
)
def test_processes_agree_with_one_process_to_the_bit(
    start_processes, processes, tmp_path
):
    """A sum of two has one order only, whoever computes it."""
    start_processes(
        [sys.executable, "-m", "tests.one_process", str(tmp_path)], processes
    )
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert len(records) == processes

    state, losses = in_one_process(processes)
    start = jax.tree.leaves(problems.params())
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, losses))]
    for rank, record in enumerate(records):
        assert record["bits"] == [leaf[rank].tobytes().hex() for leaf in leaves]
        assert record["start"] == [leaf.tobytes().hex() for leaf in start]
        assert record["loaded"] == record["consensus"] == record["on_own_device"]
        assert all(record["devices"])
        for leaf, own in zip(
            jax.tree.leaves(cj.consensus(state)), record["consensus"], strict=True
        ):
            np.testing.assert_allclose(own, leaf, rtol=1e-6)  # a sum in another order
    # Only the second process has another start; both must say so.
    refused = [record["refused"] for record in records]
    if processes == 1:
        assert refused == [""]
    else:
        assert "see process 1" in refused[0]
        assert "differs from the first worker's" in refused[1]
    disagreed = (
        "the processes do not agree: optimizer.rate is 0.0 in process 0 and 0.1 in "
        "process 1; width is missing in process 0 and 3 in process 1. Start all of "
        "them alike."
    )
    for record in records:
        assert record["disagreed"] == (disagreed if processes > 1 else "")


# A block that tests/test_readme.py does not run.
ALONE = r"^```\{code-block\} python\n(.*?)^```"


def test_the_page_on_processes_runs_in_two():
    """First the lines of its last block that come before JAX is used, then the rest."""
    page = (generate.DOCS / "how-to" / "processes.md").read_text()
    start, _, hide = re.findall(ALONE, page, re.M | re.S)
    assert "cj." not in start
    meeting = 'initialize("10.0.0.1:1234", num_processes=4, process_id=0)'
    before, after = hide.split("import cocod_jax as cj\n")
    assert meeting in before
    run = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    last = "state, _ = run(state, batches[:1])\nmodel = cj.consensus(state)\n"
    report = 'print(f\'{{"workers": {jax.device_count()}, "model": {model}}}\')\n'
    address = f"127.0.0.1:{free_port()}"

    def command(rank):
        own = f'initialize("{address}", num_processes=2, process_id={rank})'
        script = [before.replace(meeting, own), *run, after, last, report]
        return [sys.executable, "-c", "\n".join(script)]

    records = run_workers(Network(2, None), command, timeout=120)
    assert [record["workers"] for record in records] == [4, 4]
    assert [record["model"] for record in records] == pytest.approx([5, 5], abs=0.05)


def test_the_job_for_kubernetes_fits_its_service():
    """Pods are called by job, index and subdomain, and the subdomain by a service."""
    service, job = starts.manifest()
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    host, _, _ = values["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{name}-0.{pod['subdomain']}"
    assert spec["completionMode"] == "Indexed"
    count = int(values["JAX_NUM_PROCESSES"])
    assert spec["completions"] == spec["parallelism"] == count


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_the_page_on_processes_runs_on_ray(tmp_path):
    page = (generate.DOCS / "how-to" / "processes.md").read_text()
    _, ray, _ = re.findall(ALONE, page, re.M | re.S)
    printed = re.findall(r"^```text\n(.*?)^```", page, re.M | re.S)[0]
    (tmp_path / "script.py").write_text(ray)
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        # Ray keeps its results below HOME.
        env=os.environ
        | {"PYTHONPATH": str(generate.DOCS.parent), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert printed.strip() in run.stdout.splitlines()  # among Ray's


def test_no_other_page_has_code_of_ours_that_does_not_run():
    pages = [path for path in generate.DOCS.rglob("*.md") if "_build" not in path.parts]
    ours = [
        path.name
        for path in pages
        if any(
            "cj." in code for code in re.findall(ALONE, path.read_text(), re.M | re.S)
        )
    ]
    assert ours == ["processes.md"]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.matrix)])
def test_a_mesh_of_workers_spans_processes(processes):
    """A worker on each of two processes, and each worker on two of four.

    Sums within a worker have another order where they pass between processes.
    """
    address = f"127.0.0.1:{free_port()}"
    records = run_workers(
        Network(processes, None),
        lambda rank: [
            *(sys.executable, "-m", "tests.mesh_process"),
            *(str(rank), str(processes), address),
        ],
        timeout=300,
    )
    for streamed in (False, True):
        one = mesh_process.train(streamed)
        for record in records:
            found = record[str(streamed)]
            assert found["on_own_device"] == found["consensus"]
            assert found["weight"] == [[0.75, 0.25]]
            assert "params['in'] of worker 1 differs" in found["refused"]
            for name in ("consensus", "loss"):
                for leaf, own in zip(one[name], found[name], strict=True):
                    np.testing.assert_allclose(own, leaf, rtol=1e-5, atol=1e-6)
