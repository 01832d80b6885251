"""Jobs at the head of their lane that cannot start."""

from __future__ import annotations

from launcher.jobs.slurm import JobState
from launcher.validation.run.lanes import BLOCKING_LOOKS, Lanes


def test_a_job_that_heads_its_lane_for_several_looks_is_stuck_where_others_wait_behind_it():
    jobs = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    lanes = Lanes({"a": 0, "b": 1, "c": 0, "d": 1, "e": 2})
    waits = {
        "1": JobState("PENDING", "", "Resources"),
        "2": JobState("RUNNING", "b"),
        "3": JobState("PENDING", "", "Dependency"),
        "4": JobState("PENDING", "", "Dependency"),
        "5": JobState("PENDING", "", "Priority"),  # no job waits behind it
    }
    begins = waits | {"1": JobState("RUNNING", "a")}
    for _ in range(BLOCKING_LOOKS - 1):
        assert lanes.find_blocking(jobs, waits) == {}
    assert lanes.find_blocking(jobs, begins) == {}  # the count starts again
    looks = [lanes.find_blocking(jobs, waits) for _ in range(2 * BLOCKING_LOOKS)]
    assert [at for at, one in enumerate(looks, 1) if one] == [BLOCKING_LOOKS, 2 * BLOCKING_LOOKS]
    assert looks[-1] == {"a": {"c"}}
