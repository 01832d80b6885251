"""How long the supervisor waits for the ranks: never beyond the budget of the shard."""

from __future__ import annotations

import time

_FACTOR = 20
"""A point may take this many times as long as the slowest point before it."""


class Deadlines:
    """Deadlines in seconds from now, which grow with the slowest point so far."""

    def __init__(self, *, deadline_s: float, startup_s: float, budget_s: float) -> None:
        """``deadline_s`` is the shortest deadline of a point, ``startup_s`` that of the first point of a backend.

        ``budget_s``, counted from now, ends every deadline; infinity for no budget.
        """
        self._deadline_s, self._startup_s = deadline_s, startup_s
        self._budget_end = time.monotonic() + budget_s
        self._slowest_s = 0.0
        self._backends_used: set[str] = set()

    @property
    def is_budget_spent(self) -> bool:
        """Whether the budget has ended."""
        return time.monotonic() >= self._budget_end

    @property
    def startup_s(self) -> float:
        """For the start of the ranks, and for their self test."""
        return self._within_budget(self._startup_s)

    def of_point(self, backend: str) -> float:
        """For one request about a point of this backend."""
        shortest_s = self._deadline_s if self.has_used(backend) else max(self._deadline_s, self._startup_s)
        return self._within_budget(max(shortest_s, _FACTOR * self._slowest_s))

    def has_used(self, backend: str) -> bool:
        """Whether the present ranks have used the backend, so that its library is imported and its buffers exist."""
        return backend in self._backends_used

    def note_use(self, backend: str) -> None:
        """The present ranks have used the backend."""
        self._backends_used.add(backend)

    def note_duration(self, duration_s: float) -> None:
        """A point took this long, without the first use of its backend."""
        self._slowest_s = max(self._slowest_s, duration_s)

    def note_restart(self) -> None:
        """New ranks start, which have used no backend."""
        self._backends_used.clear()

    def _within_budget(self, deadline_s: float) -> float:
        return max(0.0, min(deadline_s, self._budget_end - time.monotonic()))
