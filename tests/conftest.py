"""Fixtures for all tests: a machine without GPUs, the plan of a small sweep, and one real sweep."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from launcher.config.plan import Plan
from launcher.store.run_folder import RunFolder
from tests.builders import Command, Sweep, command, deepep_plan
from tests.published import Unpack, unpack

settings.register_profile("suite", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in the background of a script, which would disable the tests of Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


STARTS = {"run_module", "no_gpus", "on_cpus", "sweep", "chromium", "has_slurm"}
"""Fixtures of tests that start ranks, a command, a browser or Slurm."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow each test that uses one of these fixtures directly or indirectly."""
    for item in items:
        if not STARTS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def no_gpus() -> dict[str, str]:
    """Environment variables that hide the GPUs of this machine."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "HYDRA_FULL_ERROR": "0"}


@pytest.fixture(scope="module")
def on_cpus() -> Iterator[None]:
    """Ranks that this process starts see no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session")
def run_module(no_gpus: dict[str, str]) -> Command:
    """``run_module("launcher.sweep", "-m", ...)`` in a separate process, on CPUs."""
    return lambda module, *arguments: command(module, *arguments, environment=no_gpus)


@pytest.fixture(scope="session")
def sweep(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The README's first command, run once."""
    outputs = tmp_path_factory.mktemp("sweep") / "outputs"
    process = run_module("launcher.sweep", "-m", f"outputs={outputs}")
    assert process.returncode == 0, process.stderr
    return Sweep(process, outputs, Path(process.stdout.strip()).parent)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """``published("h200x2-ep2-bf16-again")``: a copy of a published folder, unpacked."""
    return functools.cache(lambda name: unpack(name, tmp_path_factory.mktemp("published")))


@pytest.fixture(scope="session")
def plan() -> Plan:
    """DeepEP on H200s at EP=4: 6 cells for each operation, 2 anchors, 2 baselines."""
    return deepep_plan()


@pytest.fixture
def folder(plan: Plan, tmp_path: Path) -> RunFolder:
    """The run folder of that plan, without measurements."""
    return RunFolder.create(plan, outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])
