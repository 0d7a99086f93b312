"""The text for a bug report: it says what matters, and names nobody."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import jax
import optax
import pytest

import cocod_jax as cj
from cocod_jax.observe.report import report


def a_device(**attributes):
    """One that is not here."""
    device = Mock(spec=jax.Device)
    device.configure_mock(**attributes)
    return device


A100 = a_device(platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0")
H100 = a_device(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
MI300 = a_device(
    platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942"
)
V5E = a_device(platform="tpu", device_kind="TPU v5 lite")
V6E = a_device(platform="tpu", device_kind="TPU v6 lite")
V4 = a_device(platform="tpu", device_kind="TPU v4")
V5P = a_device(platform="tpu", device_kind="TPU v5")


def facts():
    return dict(line.split(": ", 1) for line in report().splitlines())


def test_versions_are_those_that_are_imported():
    found = facts()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cocod_jax"] == cj.__version__
    assert found["jax"] == jax.__version__
    assert found["optax"] == optax.__version__


@pytest.mark.parametrize("missing", ["flax", "cocod_jax"])
def test_what_is_not_installed_is_not_named(missing, monkeypatch):
    real = metadata.version

    def version(name):
        if name == missing:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert missing not in facts()
    assert "optax" in facts()


def test_devices_are_counted_by_kind(monkeypatch):
    found = facts()
    assert (found["platform"], found["processes"]) == ("cpu", "1")
    assert found["devices"] == "8 x cpu"
    monkeypatch.setattr(jax, "devices", lambda: [A100, A100, H100])
    assert facts()["devices"] == "2 x NVIDIA A100, 1 x NVIDIA H100"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (A100, "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true; without"),
        (H100, "none; "),
        (MI300, "unknown; "),
        (V5E, "LIBTPU_INIT_ARGS='--xla_enable_async_all_reduce=true "),
        (V6E, "LIBTPU_INIT_ARGS='--xla_tpu_enable_sparse_core_collective_"),
        (V5P, "LIBTPU_INIT_ARGS='--xla_tpu_enable_sparse_core_collective_"),
        (V4, "unknown; "),
        (jax.devices()[0], "none; "),
    ],
)
def test_flags_are_those_of_the_platform(device, said, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert facts()["flags for the overlap"].startswith(said)


def test_what_no_schedule_shows_is_not_promised(monkeypatch):
    for device in (MI300, V4, V5E, V6E, V5P):
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        said = facts()["flags for the overlap"]
        assert "no schedule" in said or "no TPU has run" in said


def test_flags_of_tpus_are_shown_where_they_are_set(monkeypatch):
    assert "LIBTPU_INIT_ARGS" not in facts()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_a=true --xla_dump_to=/home/alice/x")
    assert facts()["LIBTPU_INIT_ARGS"] == "--xla_a=true --xla_dump_to=<path>"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("", "not set"),
        ("--xla_a=true --xla_b", "--xla_a=true --xla_b"),
        ("--xla_dump_to=/home/alice/x --xla_a=1", "--xla_dump_to=<path> --xla_a=1"),
        ("/home/alice/flags", "<path>"),
        (r"--xla_dump_to=C:\\Users\\alice", "--xla_dump_to=<path>"),
    ],
)
def test_flags_are_shown_without_paths(flags, shown, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert facts()["XLA_FLAGS"] == shown


def test_it_says_how_to_install_the_compilers(monkeypatch):
    there = lambda kind: kind == "tpu"
    monkeypatch.setattr("cocod_jax.observe.report.compiler_available", there)
    found = facts()
    assert found["compiler for TPUs"] == "installed"
    said = found["compiler for NVIDIA GPUs"]
    assert said == "not installed; python -m cocod_jax.certify --install"


def from_a_shell(**environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cocod_jax"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_from_a_shell_and_names_nobody():
    home = str(Path.home())
    printed = from_a_shell(XLA_FLAGS=f"--xla_dump_to={home}/dump")
    assert "flags for the overlap: none" in printed
    assert home not in printed
    assert sys.prefix not in printed


def test_a_platform_that_does_not_start_is_reported():
    printed = from_a_shell(JAX_PLATFORMS="abacus")
    assert "devices: none; Unable to initialize backend 'abacus'" in printed
    assert "compiler for TPUs: " in printed
