"""deepep-status: arguments and output."""

from __future__ import annotations

import json

from tests.builders import Command, Sweep


def test_the_status_of_a_run_without_slurm_follows_from_its_attempts(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.status", str(sweep.folder), "--json")
    status = json.loads(process.stdout)
    assert {row["state"] for row in status["rows"]} == {"DONE"}
    assert (status["final"], status["aggregate"]) == ("DONE", "DONE")
