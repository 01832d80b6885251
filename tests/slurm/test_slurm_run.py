"""One sweep without failures: two shards with four ranks each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab
from tests.slurm.sweeps import Done


class Run(NamedTuple):
    """A sweep and its environment."""

    done: Done
    outputs: Path
    environments: Path

    @property
    def folder(self) -> Path:
        return self.done.folder

    def environment(self, task: int) -> dict[str, str]:
        """The initial environment of a shard's Python process."""
        text = (self.environments / f"task{task}").read_text()
        return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


@pytest.fixture(scope="module")
def run(module_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder's name has spaces and quotes; hydra.launcher.python is a wrapper that notes its environment."""
    base = tmp_path_factory.mktemp("run")
    outputs = base / """it's a "folder", really"""
    wrapper = base / "python"
    wrapper.write_text(f'#!/bin/sh\nenv -0 >{base}/task$SLURM_ARRAY_TASK_ID\nexec {sweeps.sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    done = sweeps.sweep(module_lab, outputs, "ep=4", "shard.count=2", f"hydra.launcher.python={wrapper}")
    assert done.status == 0, done.stderr
    return Run(done, outputs, base)


def test_stdout_is_exactly_the_path_of_the_report(run: Run):
    (report,) = run.outputs.glob("*/OPTIMAL_CONFIGS.md")
    assert run.done.stdout == f"{report}\n"


def test_every_point_is_measured_once(run: Run):
    assert sweeps.is_complete(run.folder)


def test_one_array_of_shards_and_an_aggregate_behind_it_complete(run: Run, cluster: SlurmLab):
    (shards,), (aggregate,) = sweeps.submissions(run.folder), sweeps.submissions(run.folder, "aggregate")
    assert shards["shards"] == [0, 1]
    states = {job: state for job, state in cluster.jobs().items() if job.split("_")[0] == shards["array_id"]}
    assert states == {f"{shards['array_id']}_{task}": "COMPLETED" for task in (0, 1)}
    assert cluster.jobs()[aggregate["array_id"]] == "COMPLETED"


def test_a_shard_gets_four_gpus_and_its_cpus_on_one_node(run: Run, cluster: SlurmLab):
    shown = cluster.command("scontrol", "show", "job", sweeps.job_of(run.folder, 0))
    assert "NumNodes=1 NumCPUs=4 NumTasks=1 CPUs/Task=4" in shown
    assert "TresPerNode=gres:gpu:4" in shown
    assert run.environment(0)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_accounting_counts_four_gpus_and_the_run_records_its_gpu_hours(run: Run, cluster: SlurmLab):
    job = sweeps.job_of(run.folder, 0)
    ask = ("sacct", "-X", "-n", "-P", "-o", "AllocTRES", "-j", job)
    assert "gres/gpu=4" in sweeps.wait_until(lambda: cluster.command(*ask).strip())
    noted = json.loads((run.folder / "accounting.json").read_bytes())
    assert noted["source"] == "sacct"
    assert noted["gpu_hours"] > 0


def test_jobs_run_the_code_that_was_submitted(run: Run):
    """The copy of the code precedes the original even where jobs start in the original's folder."""
    environment = run.environment(1)
    assert environment["PYTHONPATH"].split(":")[0] == str(run.folder / "code")
    assert environment["PYTHONSAFEPATH"] == "1"


def test_a_corrupted_pickle_of_submitit_changes_nothing(run: Run, cluster: SlurmLab):
    for pickle in (run.folder / "slurm").glob("*_result.pkl"):
        pickle.write_bytes(b"no pickle")
    before = (run.folder / "OPTIMAL_CONFIGS.md").read_text()
    shown = sweeps.run(cluster, "launcher.status", str(run.folder), "--json")
    assert [row["state"] for row in json.loads(shown.stdout)["rows"]] == ["COMPLETED", "COMPLETED"]
    assert sweeps.run(cluster, "launcher.aggregate", str(run.folder)).status == 0
    assert (run.folder / "OPTIMAL_CONFIGS.md").read_text() == before


def test_the_controller_never_unpickles():
    """submitit's job.result() would unpickle, and a pickle from another version of the code is not safe."""
    sources = [
        path.read_text() for name in ("launcher", "hydra_plugins") for path in (sweeps.ROOT / name).rglob("*.py")
    ]
    of_submitit = [text for text in sources if "submitit" in text and "import" in text]
    assert len(of_submitit) >= 2
    assert not [text for text in of_submitit if re.search(r"job\w*(\[\d\])?\.(results?|exception|wait|done)\(", text)]
    assert not [text for text in sources if re.search(r"import (cloud)?pickle|pickle_load|pickle\.load", text)]


def test_no_rank_is_left(run: Run, cluster: SlurmLab):
    assert sweeps.stray_ranks(cluster) == []
