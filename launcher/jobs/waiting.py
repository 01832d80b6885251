"""Waits for jobs, of a sweep or of a validation: looks, shows, pauses. Asks Slurm nothing and cancels nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from launcher.config.job_options import SubmititConf
from launcher.errors import UserError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 8.0
"""The pause between two looks doubles while no job changes its state, except on a terminal."""

_LOST_AFTER = 5
"""Looks in a row at which Slurm does not know how a job ended, before that job counts as over."""

_LINE_EVERY_S = 15.0

_ON_INTERRUPT = ("ask", "detach", "cancel")


class WaitStatus(Protocol):
    """The state of all jobs at one look."""

    @property
    def is_over(self) -> bool:
        """Whether Slurm answered and no job is left."""

    @property
    def is_known(self) -> bool:
        """Whether it is known how every job ended."""

    @property
    def states(self) -> str:
        """Differs from the last look's when a job has changed its state or Slurm has fallen silent."""

    @property
    def line(self) -> str:
        """The status in one line."""


S = TypeVar("S", bound=WaitStatus)


def wait(look: Callable[[], S], render: Callable[[S], RenderableType]) -> S:
    """The status once every job is over. Ctrl-C raises KeyboardInterrupt.

    A terminal shows ``render(status)``, kept up to date. Elsewhere a line is printed when a job changes its state, and
    every 15 s.
    """
    pause_s, states, num_lost = _FIRST_PAUSE_S, "", 0
    with _display(render) as (show, longest_pause_s):
        while True:
            status = look()
            show(status)
            if status.is_over and (status.is_known or num_lost >= _LOST_AFTER):
                return status
            num_lost = num_lost + 1 if status.is_over else 0
            is_quiet = status.states == states and not num_lost
            pause_s = min(2 * pause_s, longest_pause_s) if is_quiet else _FIRST_PAUSE_S
            states = status.states
            time.sleep(pause_s)


def check_on_interrupt(settings: SubmititConf) -> None:
    """UserError if ``hydra.launcher.on_interrupt`` is not one of its choices."""
    if settings.on_interrupt not in _ON_INTERRUPT:
        raise UserError(
            f"hydra.launcher.on_interrupt must be one of {', '.join(_ON_INTERRUPT)}, got {settings.on_interrupt}"
        )


def should_cancel(settings: SubmititConf) -> bool:
    """Whether Ctrl-C cancels the jobs, as configured or as answered now. A second Ctrl-C detaches."""
    if settings.on_interrupt != "ask" or not sys.stdin.isatty():
        return settings.on_interrupt == "cancel"
    try:
        answer = input("\n[d]etach and let the jobs go on, or [c]ancel them? ")
    except (KeyboardInterrupt, EOFError):
        return False
    return answer.strip().lower().startswith("c")


@contextlib.contextmanager
def _display(render: Callable[[S], RenderableType]) -> Iterator[tuple[Callable[[S], None], float]]:
    """How a status is shown, and the longest pause between two: on a terminal somebody watches the points."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda status: live.update(render(status)), _FIRST_PAUSE_S
        return
    yield _LinePrinter().show, _LONGEST_PAUSE_S


class _LinePrinter:
    """Prints a status when the states have changed, and every 15 s."""

    def __init__(self) -> None:
        self._states, self._printed = "", 0.0

    def show(self, status: WaitStatus) -> None:
        now = time.monotonic()
        if status.states != self._states or now - self._printed > _LINE_EVERY_S:
            self._states, self._printed = status.states, now
            print(status.line, file=sys.stderr, flush=True)
