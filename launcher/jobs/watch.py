"""Waits for the jobs of a sweep, then reports. Ctrl-C detaches from them or cancels them."""

from __future__ import annotations

import shlex
import sys
from functools import partial

from launcher.config.job_options import SubmititConf
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs import accounting, run_status, slurm, waiting
from launcher.jobs.run_status import RunStatus
from launcher.report.writer import report
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import read_submissions

_BAD = ("FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


def wait_and_report(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Waits until every job is over, reports, and prints the path of the report; the exit status."""
    try:
        status = _wait(folder)
    except KeyboardInterrupt:
        return _interrupt(folder, options, settings)
    return _report(folder, options, status)


def _wait(folder: RunFolder) -> RunStatus:
    return waiting.wait(partial(run_status.run_status, folder, folder.plan(), {}), run_status.table)


def _report(folder: RunFolder, options: Options, status: RunStatus) -> int:
    """Reports all that was measured; FAILURE if a job failed although no point is missing."""
    accounting.update(folder)
    exit_status = report(folder, options, draw=status.aggregate != "COMPLETED")
    for row in status.rows:
        if row.state in _BAD:
            print(f"shard {row.shard}: {row.state} (job {row.job}); log in {folder.slurm}", file=sys.stderr)
    print(folder.report_file)
    has_failed = any(state in _BAD for state in [status.final, *(row.state for row in status.rows)])
    return FAILURE if has_failed and exit_status == OK else exit_status


def _interrupt(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Detaches, or cancels the jobs and reports, as configured or as answered; the exit status."""
    if not waiting.should_cancel(settings):
        print(f"detached; the jobs go on. python -m launcher.status {shlex.quote(str(folder.path))}", file=sys.stderr)
        print(folder.path)
        return OK
    if not slurm.cancel(submission.array_id for submission in read_submissions(folder)):
        print(folder.path)
        return FAILURE
    print("cancelled; all records so far are kept", file=sys.stderr)
    try:
        status = _wait(folder)
    except KeyboardInterrupt:
        print(folder.path)
        return FAILURE
    return _report(folder, options, status)
