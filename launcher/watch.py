"""Waits for the jobs of a run and shows how it stands: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launcher import accounting, picture, slurm
from launcher.aggregate import aggregate
from launcher.errors import FAILURE, OK
from launcher.picture import Picture
from launcher.schema import Options
from launcher.settings import SubmititConf
from launcher.store import RunFolder

_MAX_ROWS = 30
_LINE_EVERY_S = 15.0
_LOST_AFTER = 5
_BAD = ("FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


def wait(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Returns when every job is over: then aggregates, prints the report's path, and judges the exit status."""
    try:
        last = _until_over(folder, settings)
    except KeyboardInterrupt:
        return _interrupted(folder, options, settings)
    return finish(folder, options, last)


def finish(folder: RunFolder, options: Options, last: Picture) -> int:
    """The report of what there is; FAILURE when a shard failed although no point is missing."""
    accounting.note(folder)
    drawn = last.aggregate == "COMPLETED"
    status = aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed, draw=not drawn)
    for row in last.rows:
        if row.state in _BAD:
            print(f"shard {row.shard}: {row.state} (job {row.job}); log in {folder.slurm}", file=sys.stderr)
    print(folder.report_file)
    failed = any(state in _BAD for state in [last.final, *(row.state for row in last.rows)])
    return FAILURE if failed and status == OK else status


def _until_over(folder: RunFolder, settings: SubmititConf) -> Picture:
    plan = folder.plan()
    silent = 0
    with _shown() as show:
        while True:
            now = picture.take(folder, plan)
            show(now)
            if now.is_over and (all(row.state != "UNKNOWN" for row in now.rows) or silent >= _LOST_AFTER):
                return now
            silent = silent + 1 if now.is_over else 0
            time.sleep(settings.poll_s)


def _interrupted(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    """Detaches or cancels, as chosen before or now; a second Ctrl-C detaches."""
    choice = settings.on_interrupt
    if choice == "ask":
        choice = _asked() if sys.stdin.isatty() else "detach"
    if choice == "detach":
        print(f"detached; the jobs go on. python -m launcher.status {folder.path}", file=sys.stderr)
        print(folder.path)
        return OK
    slurm.cancel(one.array_id for one in folder.jobs().submissions)
    print("cancelled; what was measured is kept", file=sys.stderr)
    last = _until_over(folder, settings)
    return finish(folder, options, last)


def _asked() -> str:
    try:
        answer = input("\n[d]etach and let the jobs go on, or [c]ancel them? ")
    except (KeyboardInterrupt, EOFError):
        return "detach"
    return "cancel" if answer.strip().lower().startswith("c") else "detach"


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[Picture], None]]:
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

    def __call__(self, now: Picture) -> None:
        states = ",".join(row.state for row in now.rows)
        if states != self._states or time.monotonic() - self._said > _LINE_EVERY_S:
            self._said, self._states = time.monotonic(), states
            print(picture.summary(now), file=sys.stderr, flush=True)


def table(now: Picture) -> Table:
    """The shards, those that are at work or in trouble first."""
    shown = Table(caption=picture.summary(now), title=now.run, title_justify="left")
    for name in ("shard", "state", "job", "node", "points", "failures"):
        shown.add_column(name, justify="right" if name in ("shard", "points", "failures") else "left")
    order = sorted(now.rows, key=lambda row: (row.state in ("COMPLETED", "DONE", "PENDING"), row.shard))
    for row in order[:_MAX_ROWS]:
        shown.add_row(str(row.shard), row.state, row.job or "", row.nodes, f"{row.done}/{row.planned}", str(row.failed))
    if len(order) > _MAX_ROWS:
        shown.add_row("...", f"{len(order) - _MAX_ROWS} more", "", "", "", "")
    shown.add_row("final", now.final, "", "", "", "")
    shown.add_row("aggregate", now.aggregate, "", "", "", "")
    return shown
