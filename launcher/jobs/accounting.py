"""GPU-hours of a run: from Slurm's accounting where there is one, else from the times of the attempts."""

from __future__ import annotations

from launcher.jobs import slurm
from launcher.store.accounting import Accounting, write_accounting
from launcher.store.attempts import read_attempts
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import read_submissions


def update(folder: RunFolder) -> None:
    """Writes the cost of the run into its folder: the report needs no Slurm."""
    arrays = [submission.array_id for submission in read_submissions(folder) if submission.kind != "aggregate"]
    gpu_seconds = slurm.query_gpu_seconds(arrays) if arrays and slurm.is_available() else None
    attempts = read_attempts(folder)
    if gpu_seconds is not None:
        write_accounting(folder, Accounting(gpu_seconds / 3600, "sacct"))
    elif attempts:
        gpu_seconds = sum((attempt.ended - attempt.began) * attempt.num_gpus for attempt in attempts if attempt.ended)
        write_accounting(folder, Accounting(gpu_seconds / 3600, "the times of the attempts"))
