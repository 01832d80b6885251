"""Repeats run in the job of the final, at the sweep and when they are appended."""

from __future__ import annotations

from pathlib import Path

from bench.records import Host
from launcher.config.plan import FINAL, repeat_index
from launcher.store.records_file import read_shard
from launcher.store.run_folder import RunFolder
from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab


def _jobs(folder: Path, index: int) -> set[str | None]:
    return {line.job_id for line in read_shard(RunFolder.open(folder), index) if isinstance(line, Host)}


def test_repeats_run_in_the_final_s_job_and_more_are_appended_by_a_job_of_their_own(
    lab: SlurmLab, tmp_path: Path
) -> None:
    done = sweeps.sweep(lab, tmp_path, "workload.num_tokens=32", "search.final_groups=2", "repeat=1")
    assert done.status == 0, done.stderr
    folder = done.folder
    (first,) = sweeps.submissions(folder, "final")
    assert _jobs(folder, FINAL) == _jobs(folder, repeat_index(1)) == {first["array_id"]}

    before = {file: file.read_bytes() for file in folder.glob("shards/*/records.jsonl")}
    resumed = sweeps.run(lab, "launcher.resume", str(folder), "repeat=1")
    assert resumed.status == 0, resumed.stderr
    assert "repeats of the final: 1 before, 2 from now on" in resumed.stderr
    _, second = sweeps.submissions(folder, "final")
    assert len(sweeps.submissions(folder)) == 1
    assert _jobs(folder, repeat_index(2)) == {second["array_id"]}
    assert {file: file.read_bytes() for file in before} == before
    assert "How much times scatter" in (folder / "OPTIMAL_CONFIGS.md").read_text()
