"""GPU-hours of a run: Slurm's accounting where there is any, else the stamps of the attempts."""

from __future__ import annotations

from launcher.jobs import slurm
from launcher.store.run_folder import Accounting, RunFolder


def note(folder: RunFolder) -> None:
    """Writes what the run cost into its folder, so that the report needs no Slurm."""
    arrays = [submission.array_id for submission in folder.jobs().submissions if submission.kind != "aggregate"]
    seconds = slurm.gpu_seconds(arrays) if arrays and slurm.available() else None
    attempts = folder.attempts()
    if seconds is not None:
        folder.note_accounting(Accounting(seconds / 3600, "sacct"))
    elif attempts:
        own = sum((attempt.ended - attempt.began) * attempt.num_gpus for attempt in attempts if attempt.ended)
        folder.note_accounting(Accounting(own / 3600, "the attempts' own stamps"))
