"""The text for a bug report: it says what matters, and names nobody."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import optax
import pytest

import cocod_jax as cj
from cocod_jax.observe.report import report

A100 = SimpleNamespace(
    platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0"
)
H100 = SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0"
)
MI300 = SimpleNamespace(
    platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942"
)
V5E = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def facts():
    return dict(line.split(": ", 1) for line in report().splitlines())


def test_versions_are_those_that_are_imported():
    found = facts()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cocod_jax"] == cj.__version__
    assert found["jax"] == jax.__version__
    assert found["optax"] == optax.__version__


def test_what_is_not_installed_is_not_named(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "flax":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "flax" not in facts()
    assert "optax" in facts()


def test_devices_are_counted_by_kind(monkeypatch):
    found = facts()
    assert (found["platform"], found["processes"]) == ("cpu", "1")
    assert found["devices"] == "8 x cpu"
    monkeypatch.setattr(jax, "devices", lambda: [A100, A100, H100])
    assert facts()["devices"] == "2 x NVIDIA A100, 1 x NVIDIA H100"


@pytest.mark.parametrize(
    ("device", "flag"),
    [
        (A100, "--xla_gpu_enable_latency_hiding_scheduler=true"),
        (H100, "none"),
        (MI300, "unknown"),
        (V5E, "none is known to be safe"),
        (jax.devices()[0], "none"),
    ],
)
def test_the_scheduler_is_recommended_where_it_is_off(device, flag, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert facts()["recommended XLA_FLAGS"].startswith(f"{flag};")


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


@pytest.mark.parametrize("installed", [True, False])
def test_it_says_how_to_install_the_compiler(installed, monkeypatch):
    monkeypatch.setattr(
        "cocod_jax.observe.report.compiler_available", lambda: installed
    )
    said = facts()["compiler for certificates"]
    assert said.startswith("installed") is installed
    assert ("python -m cocod_jax.certify --install" in said) is not installed


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
    assert "recommended XLA_FLAGS: none" in printed
    assert home not in printed
    assert sys.prefix not in printed


def test_a_platform_that_does_not_start_is_reported():
    printed = from_a_shell(JAX_PLATFORMS="abacus")
    assert "devices: none; Unable to initialize backend 'abacus'" in printed
    assert "compiler for certificates: " in printed
