"""Shows the progress of a shard on stderr: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.records import Failed, Record

_LINE_EVERY_S = 5.0


class ShardProgress:
    """Counts the points of one shard and prints each failure when it happens."""

    def __init__(self, *, name: str, quiet: bool = False) -> None:
        """``name`` begins every line; ``quiet`` prints none."""
        self._name, self._step = name, ""
        self._total = self._done = self._failed = 0
        self._began = self._printed = time.monotonic()
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("points, {task.fields[failed]} failed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=None, failed=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._print()

    def expect(self, count: int, *, what: str) -> None:
        """Announces a step of the work, ``what``, with its number of points."""
        self._total, self._step = self._done + count, what
        self._bar.update(self._task, total=self._total, description=f"{self._name}, {what}")

    def restart(self) -> None:
        """Counts from 0 again: what follows takes another time for each point."""
        self._print()
        self._total = self._done = self._failed = 0
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def add(self, record: Record) -> None:
        """Counts the record of one more point."""
        if isinstance(record.outcome, Failed):
            self._failed += 1
            self.note(f"{self._name}: {record.point.label} failed: {record.outcome.failure}: {record.outcome.message}")
        self.advance()

    def advance(self) -> None:
        """Counts one more point that needs no record."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, failed=self._failed)
        if not self._console.is_terminal and time.monotonic() - self._printed > _LINE_EVERY_S:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        if self._console.is_terminal or self._console.quiet:
            return
        left_s = (self._printed - self._began) / max(self._done, 1) * (self._total - self._done)
        print(
            f"{self._name}, {self._step}: {self._done}/{self._total} points, {self._failed} failed, "
            f"about {left_s:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
