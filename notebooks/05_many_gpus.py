# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From one CPU to many GPUs
#
# A round is a function of one worker. A mapping transform (`vmap`, `pmap` or
# `shard_map`) runs it on many, and all three give the same numbers up to the rounding
# of a sum. You will see
#
# * the same round under `vmap`, `pmap` and `shard_map`,
# * two processes that train together, for real,
# * what GPUs need: a flag, and a Slurm script.
#
# To install, in a clone of the repository: `pip install -e '.[notebooks]'`. No GPU is
# needed: eight CPU devices stand in for eight GPUs.

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything else uses JAX

import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj

# %% [markdown]
# On a machine with GPUs, JAX takes those instead, and there is a worker for each.

# %%
WORKERS, PERIOD, ROUNDS = jax.device_count(), 8, 20
print(f"{WORKERS} workers, one on each {jax.devices()[0].platform} device")


# %% [markdown]
# ## A problem to solve
#
# Linear regression, so that the answer is known: (1, -2, 3). Every worker draws data of
# its own, the same whoever runs it.


# %%
def loss_fn(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def draw(r, workers):
    """The batches of round r: [workers, period, batch, ...]."""
    rngs = [np.random.default_rng([r, worker]) for worker in workers]
    x = np.stack([rng.normal(size=(PERIOD, 16, 3)) for rng in rngs])
    x = x.astype(np.float32)
    return x, x @ np.float32([1, -2, 3])


rule = cj.cocod("workers")
round_ = cj.make_round(loss_fn, optax.sgd(0.02), rule, period=PERIOD)

# %% [markdown]
# ## Three mapping transforms
#
# | `via` | workers | for |
# |---|---|---|
# | `vmap` | all on one device | simulation, in a notebook |
# | `pmap` | one on each device, of all processes | GPUs, on one machine or many |
# | `shard_map` | one on each device of this process | GPUs, inside of larger programs |


# %%
def train(via):
    run = cj.distribute(round_, via=via)
    state = cj.replicate(round_.init(jnp.zeros(3)), WORKERS)
    for r in range(ROUNDS):
        state, _ = run(state, draw(r, range(WORKERS)))
    return state


states = {via: train(via) for via in ("vmap", "pmap", "shard_map")}

# %%
for via, state in states.items():
    places = len(state.params.devices())
    print(f"{via:10} on {places} of {WORKERS} devices: {cj.consensus(state)}")
    np.testing.assert_allclose(cj.consensus(state), [1, -2, 3], atol=0.05)

# %% [markdown]
# `pmap` and `shard_map` agree in every bit; `vmap` differs by rounding:

# %%
for via, state in states.items():
    rtol = 1e-5 if via == "vmap" else 0
    np.testing.assert_allclose(state.params, states["pmap"].params, rtol)

# %% [markdown]
# ### Your own `pmap`
#
# `cj.distribute` is a convenience. `round_.run` is an ordinary function of one worker,
# with a named axis; map it yourself where you want to see every part.

# %%
run = jax.pmap(round_.run, axis_name="workers", donate_argnums=0)
state = cj.replicate(round_.init(jnp.zeros(3)), WORKERS, devices=jax.devices())
for r in range(ROUNDS):
    state, metrics = run(state, draw(r, range(WORKERS)))

np.testing.assert_allclose(state.params, states["pmap"].params, rtol=1e-5)

# %% [markdown]
# ## Several processes
#
# A cluster runs one process for each GPU, or for each machine. All run the same script;
# each feeds its own workers. Two lines differ from above: the processes find each
# other, and `first` says which workers belong to this process.

# %%
SCRIPT = '''
"""One of several processes that train: worker.py [HOST:PORT NUMBER RANK]"""

import json
import sys

import jax

# Without arguments JAX asks the cluster (Slurm, Open MPI, ...) who is who.
jax.distributed.initialize(*sys.argv[1:2], *map(int, sys.argv[2:]))

import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj

PERIOD, ROUNDS = 8, 20
own = jax.local_device_count()  # workers of this process
first = own * jax.process_index()


def loss_fn(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def draw(r, workers):
    rngs = [np.random.default_rng([r, worker]) for worker in workers]
    x = np.stack([rng.normal(size=(PERIOD, 16, 3)) for rng in rngs])
    x = x.astype(np.float32)
    return x, x @ np.float32([1, -2, 3])


rule = cj.cocod("workers")
round_ = cj.make_round(loss_fn, optax.sgd(0.02), rule, period=PERIOD)
state = cj.replicate(round_.init(jnp.zeros(3)), own)
run = cj.distribute(round_)
for r in range(ROUNDS):
    state, metrics = run(state, draw(r, range(first, first + own)))

model = cj.consensus(state)  # all processes must ask for it
if jax.process_index() == 0:
    workers = jax.device_count()
    print(json.dumps({"workers": workers, "consensus": model.tolist()}))
'''

# %% [markdown]
# Two processes on this machine, with a CPU device each:

# %%
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"  # a free port

with tempfile.TemporaryDirectory() as folder:
    script = Path(folder) / "worker.py"
    script.write_text(SCRIPT)
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, "2", str(rank)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed, _ = zip(
        *(p.communicate(timeout=80) for p in processes), strict=True
    )

result = json.loads(printed[0].splitlines()[-1])
print(result)

# %% [markdown]
# The same two workers in this process give the same model:

# %%
state = cj.replicate(round_.init(jnp.zeros(3)), 2)
run = cj.distribute(round_, via="vmap")
for r in range(ROUNDS):
    state, metrics = run(state, draw(r, range(2)))

np.testing.assert_allclose(result["consensus"], cj.consensus(state), rtol=1e-5)

# %% [markdown]
# ## GPUs
#
# Nothing in the script changes. On NVIDIA's H100 and later the compiler hides the
# exchange by itself. On GPUs before Hopper (V100, A100, L4), set a flag before JAX
# starts; `cj.distribute` warns when it is missing:
#
# ```bash
# export XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true
# ```
#
# The certificate says whether it worked, before you book a GPU: see
# `03_is_it_overlapping`.

# %% [markdown]
# ## Slurm
#
# JAX reads from Slurm who is who. It expects one task for each GPU, and that a task
# sees all GPUs of its machine, so ask with `--gres`, not with `--gpus-per-task`. The
# script, below its first line, `#!/bin/bash`:
#
# ```bash
# #SBATCH --job-name=cocod
# #SBATCH --nodes=4
# #SBATCH --ntasks-per-node=8
# #SBATCH --gres=gpu:8
# #SBATCH --cpus-per-task=8
# #SBATCH --time=04:00:00
#
# export XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true
# srun python worker.py
# ```
#
# This script is a starting point and was not run here; partitions, accounts and modules
# are your cluster's.

# %% [markdown]
# ## Before a long run
#
# * **Same start.** `cj.workers.check_equal_start(state)` after `cj.replicate`.
# * **Own data.** Every worker must draw other data; derive the seed from its number.
# * **Metrics.** Each process sees the metrics of its own workers. Reduce them outside
#   of the round; inside, the overlap is lost.
# * **Period.** `cj.advise(cj.measure(round_, state, batches))`, on the cluster.
