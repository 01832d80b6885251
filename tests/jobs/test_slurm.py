"""Reading the output of Slurm's commands."""

from __future__ import annotations

import pytest

from launcher.jobs import slurm


@pytest.mark.parametrize(
    ("accounts", "expected"),
    [
        ("7|COMPLETED|10|billing=4,cpu=4,gres/gpu=4,node=1\n8|FAILED|5|gres/gpu=2\n", 50.0),
        ("7|COMPLETED|10|cpu=4,gres/gpu:h200=4,node=1\n", 40.0),
        ("7|COMPLETED|10|gres/gpu=4,gres/gpu:h200=4\n", 40.0),
        ("7|COMPLETED|10|billing=4,cpu=4,mem=1G,node=1\n", None),
        ("7|PENDING||\n8|COMPLETED|10|gres/gpu=1\n", 10.0),
    ],
)
def test_gpu_seconds_are_reported_only_where_accounting_tracks_gpus(accounts: str, expected: float | None):
    assert slurm.sum_gpu_seconds(accounts) == expected
