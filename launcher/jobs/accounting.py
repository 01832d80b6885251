"""GPU-hours of a run: Slurm's accounting where there is any, else the stamps of the attempts."""

from __future__ import annotations

from launcher.jobs import slurm
from launcher.store.accounting import Accounting, write_accounting
from launcher.store.attempts import read_attempts
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import read_submissions


def note(folder: RunFolder) -> None:
    """Writes what the run cost into its folder, so that the report needs no Slurm."""
    arrays = [submission.array_id for submission in read_submissions(folder) if submission.kind != "aggregate"]
    seconds = slurm.gpu_seconds(arrays) if arrays and slurm.available() else None
    attempts = read_attempts(folder)
    if seconds is not None:
        write_accounting(folder, Accounting(seconds / 3600, "sacct"))
    elif attempts:
        own = sum((attempt.ended - attempt.began) * attempt.num_gpus for attempt in attempts if attempt.ended)
        write_accounting(folder, Accounting(own / 3600, "the attempts' own stamps"))
