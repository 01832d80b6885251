"""One cluster for the session; every test starts with idle nodes and without jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.slurm import slurmlab, sweeps
from tests.slurm.slurmlab import SlurmLab


@pytest.fixture(scope="session")
def has_slurm() -> None:
    """Skips tests where Slurm is not installed; fails them under CI."""
    missing = slurmlab.missing()
    if missing:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"not installed: {', '.join(missing)}; apt-get install {slurmlab.PACKAGES}")


@pytest.fixture(scope="session")
def cluster(has_slurm: None) -> Iterator[SlurmLab]:
    """2 nodes with 4 fake GPUs each, with accounting."""
    with SlurmLab() as lab:
        yield lab


@pytest.fixture
def lab(cluster: SlurmLab) -> Iterator[SlurmLab]:
    """The cluster for one test."""
    cluster.reset()
    yield cluster
    cluster.reset()


@pytest.fixture(scope="module")
def module_lab(cluster: SlurmLab) -> Iterator[SlurmLab]:
    """The cluster for the runs that the tests of one module share."""
    cluster.reset()
    yield cluster
    cluster.reset()


@pytest.fixture
def bare_lab(has_slurm: None) -> Iterator[SlurmLab]:
    """A cluster without accounting, where sacct reports nothing."""
    with SlurmLab(accounting=False, auth="none") as lab:
        yield lab


class OutOfTime(NamedTuple):
    """A run that reaches its time limit, and its cluster."""

    lab: SlurmLab
    folder: Path


TIMED = "test_slurm_time_limit"


@pytest.fixture(scope="session", autouse=True)
def out_of_time(
    request: pytest.FixtureRequest, has_slurm: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OutOfTime | None]:
    """A run that takes some minutes, mostly asleep; it runs during the other tests, and the last test checks it.

    Slurm checks time limits every 30 s and signals up to 30 s early: here 80 to 110 s after each start of the shard.
    The shard takes longer than that in total, and measures some points in that time even on a slow machine.
    """
    if not any(TIMED in item.nodeid for item in request.session.items):
        yield None
        return
    with SlurmLab(accounting=False, auth="none") as lab:
        cells = ("grid.num_slices=[1,4,6,8]", "grid.num_in_flight=[1,2,3,4,5,6,7,8]")
        limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=10")
        yield OutOfTime(
            lab, sweeps.begin_detached(lab, tmp_path_factory.mktemp("timed"), *cells, *limits, *sweeps.slow_points(1.0))
        )
