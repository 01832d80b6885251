"""The time that one phase may take."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from bench.group import RankError
from bench.records import FailureKind


class OutOfTimeError(Exception):
    """A phase has used up its limit."""


class Clock:
    """Counts down the limit of one phase."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._ends = limit_s, time.monotonic() + limit_s

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._ends

    def left_s(self, at_most_s: float = math.inf) -> float:
        """The time left, but no more than ``at_most_s``; OutOfTimeError when none is left."""
        if self.is_over:
            raise self.out_of_time()
        return min(at_most_s, self._ends - time.monotonic())

    def out_of_time(self) -> OutOfTimeError:
        """The error to raise when the limit is used up."""
        return OutOfTimeError(f"not finished within its limit of {self._limit_s:.3g} s")

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Turns a hang into OutOfTimeError if the phase's limit ended the wait: the rank may merely be slow."""
        try:
            yield
        except RankError as failure:
            is_late = failure.failed.failure is FailureKind.HANG or failure.failed.phase == "startup"
            if is_late and self.is_over:
                raise self.out_of_time() from None
            raise
