"""Interrupted shards: requeued, preempted, or on a node that crashes. Each resumes from its records.

The three runs share the cluster; each has one shard with two ranks that mostly sleep.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab

REQUEUED, PREEMPTED, CRASHED = "requeued", "preempted", "crashed"
EVERY = pytest.mark.parametrize("name", [REQUEUED, PREEMPTED, CRASHED])

PLACES = {
    REQUEUED: ("hydra.launcher.nodelist=gpu1", "hydra.launcher.gpus_per_node=1"),
    PREEMPTED: ("hydra.launcher.nodelist=gpu1", "hydra.launcher.gpus_per_node=2"),
    CRASHED: ("hydra.launcher.nodelist=gpu2", "hydra.launcher.gpus_per_node=4"),
}


class Interrupted(NamedTuple):
    """The run folders by the kind of interruption, and the final state of each shard's job."""

    folders: dict[str, Path]
    states: dict[str, str]


@pytest.fixture(scope="module")
def runs(module_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """All interruptions, done once for all tests."""
    lab, base = module_lab, tmp_path_factory.mktemp("interrupted")
    site = base / "site" / "hydra" / "launcher" / "friendly.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("defaults:\n  - submitit_slurm\npartition: low\n")
    elsewhere = ("hydra/launcher=friendly", f"hydra.searchpath=['file://{base}/site']")
    folders = {}
    for name in (PREEMPTED, REQUEUED, CRASHED):
        overrides = ("grid.num_slices=[1,2,4]", *sweeps.slow_points(0.6), *PLACES[name])
        folders[name] = sweeps.begin_detached(lab, base / name, *overrides, *(elsewhere if name == PREEMPTED else ()))
        sweeps.halt(lab, folders[name], 0)
    _interrupt(lab, folders)
    states = {name: sweeps.wait_jobs(lab, folder)[sweeps.job_of(folder, 0)] for name, folder in folders.items()}
    return Interrupted(folders, states)


def _interrupt(lab: SlurmLab, folders: dict[str, Path]) -> None:
    urgent = ("--partition=main", "--nodelist=gpu1", "--gpus-per-node=2", "--output=/dev/null", "--wrap=sleep 1")
    lab.command("sbatch", *urgent)
    sweeps.wait_until(
        lambda: any(sweeps.outcomes(folders[PREEMPTED], 0))
    )  # before the GPU of the next shard is free too
    lab.command("scontrol", "requeue", sweeps.job_of(folders[REQUEUED], 0))
    lab.kill_node("gpu2")
    sweeps.wait_state(lab, sweeps.job_of(folders[CRASHED], 0), "PENDING")
    lab.start_node("gpu2")


@EVERY
def test_it_completes_in_the_end(runs: Interrupted, name: str):
    assert runs.states[name] == "COMPLETED"


@EVERY
def test_no_point_is_lost_or_measured_twice(runs: Interrupted, name: str):
    assert sweeps.is_complete(runs.folders[name])


@EVERY
def test_slurm_started_it_twice(runs: Interrupted, cluster: SlurmLab, name: str):
    shown = cluster.command("scontrol", "show", "job", sweeps.job_of(runs.folders[name], 0))
    assert "Restarts=1" in shown


@pytest.mark.parametrize(("name", "outcome"), [(REQUEUED, "terminated"), (PREEMPTED, "terminated"), (CRASHED, None)])
def test_every_attempt_is_stamped_with_its_outcome(runs: Interrupted, name: str, outcome: str | None):
    assert sweeps.outcomes(runs.folders[name], 0) == [outcome, "complete"]


def test_a_launcher_file_of_the_site_chooses_the_partition(runs: Interrupted, cluster: SlurmLab):
    shown = cluster.command("scontrol", "show", "job", sweeps.job_of(runs.folders[PREEMPTED], 0))
    assert "Partition=low" in shown


def test_no_rank_is_left(runs: Interrupted, cluster: SlurmLab):
    assert sweeps.stray_ranks(cluster) == []
