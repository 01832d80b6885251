"""Waits for the jobs of a run and shows how it stands: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from launcher.config.job_options import SubmititConf
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK, UserError
from launcher.jobs import accounting, run_status, slurm
from launcher.jobs.run_status import RunStatus, table
from launcher.jobs.slurm import JobState
from launcher.report.writer import report
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import read_submissions

_ON_INTERRUPT = ("ask", "detach", "cancel")
_LINE_EVERY_S = 15.0
_LOST_AFTER = 5
"""Looks in a row at which Slurm does not know a job, before it counts as over."""
_BAD = ("FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


def check(settings: SubmititConf) -> None:
    """UserError for an on_interrupt that means nothing."""
    if settings.on_interrupt not in _ON_INTERRUPT:
        raise UserError(
            f"hydra.launcher.on_interrupt must be one of {', '.join(_ON_INTERRUPT)}, got {settings.on_interrupt}"
        )


def wait(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Returns when every job is over: then aggregates, prints the report's path, and judges the exit status."""
    try:
        last = _until_over(folder, settings)
    except KeyboardInterrupt:
        return _interrupted(folder, options, settings)
    return finish(folder, options, last)


def finish(folder: RunFolder, options: Options, last: RunStatus) -> int:
    """The report of what there is; FAILURE when a shard failed although no point is missing."""
    accounting.note(folder)
    status = report(folder, options, draw=last.aggregate != "COMPLETED")
    for row in last.rows:
        if row.state in _BAD:
            print(f"shard {row.shard}: {row.state} (job {row.job}); log in {folder.slurm}", file=sys.stderr)
    print(folder.report_file)
    failed = any(state in _BAD for state in [last.final, *(row.state for row in last.rows)])
    return FAILURE if failed and status == OK else status


def _until_over(folder: RunFolder, settings: SubmititConf) -> RunStatus:
    plan = folder.plan()
    lost = 0
    ended: dict[str, JobState] = {}
    with _shown() as show:
        while True:
            now = run_status.run_status(folder, plan, ended)
            show(now)
            if now.is_over and (now.is_known or lost >= _LOST_AFTER):
                return now
            lost = lost + 1 if now.is_over else 0
            time.sleep(settings.poll_s)


def _interrupted(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Detaches or cancels, as chosen before or now."""
    if not shall_cancel(settings):
        print(f"detached; the jobs go on. python -m launcher.status {shlex.quote(str(folder.path))}", file=sys.stderr)
        print(folder.path)
        return OK
    if not slurm.cancel(one.array_id for one in read_submissions(folder)):
        print(folder.path)
        return FAILURE
    print("cancelled; what was measured is kept", file=sys.stderr)
    try:
        last = _until_over(folder, settings)
    except KeyboardInterrupt:
        print(folder.path)
        return FAILURE
    return finish(folder, options, last)


def shall_cancel(settings: SubmititConf) -> bool:
    """What Ctrl-C means, chosen before or asked now: cancel the jobs, or let them go on; so does a second Ctrl-C."""
    if settings.on_interrupt != "ask" or not sys.stdin.isatty():
        return settings.on_interrupt == "cancel"
    try:
        answer = input("\n[d]etach and let the jobs go on, or [c]ancel them? ")
    except (KeyboardInterrupt, EOFError):
        return False
    return answer.strip().lower().startswith("c")


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[RunStatus], None]]:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda now: live.update(table(now))
        return
    yield _Lines()


class _Lines:
    """Prints the summary when it changed, and not too often."""

    def __init__(self) -> None:
        self._said, self._states = 0.0, ""

    def __call__(self, now: RunStatus) -> None:
        states = ",".join([*(row.state for row in now.rows), str(now.slurm_silent)])
        if states != self._states or time.monotonic() - self._said > _LINE_EVERY_S:
            self._said, self._states = time.monotonic(), states
            print(run_status.summary(now), file=sys.stderr, flush=True)
