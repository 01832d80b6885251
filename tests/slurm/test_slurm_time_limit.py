"""A shard that reaches its time limit stops after a point, requeues itself, and completes later."""

from __future__ import annotations

from tests.slurm import sweeps


def test_out_of_time_a_shard_finishes_its_point_requeues_itself_and_completes(out_of_time):
    lab, folder = out_of_time
    states = sweeps.wait_jobs(lab, folder, seconds=400)
    assert set(states.values()) == {"COMPLETED"}, sweeps.log_of(folder, 0)
    *earlier, last = sweeps.outcomes(folder, 0)
    assert last == "complete"
    assert set(earlier) == {"stopped"}
    assert "out of time, back into the queue" in sweeps.log_of(folder, 0)
    shown = lab.command("scontrol", "show", "job", sweeps.job_of(folder, 0))
    assert f"Restarts={len(earlier)}" in shown
    assert sweeps.is_complete(folder)
    assert [line for line in sweeps.lines(folder) if line["outcome"]["kind"] == "failed"] == []
    assert sweeps.stray_ranks(lab) == []
