"""How long the supervisor waits for the ranks, and never beyond the budget of the shard."""

from __future__ import annotations

import time

_FACTOR = 20
"""A point may take 20 times as long as the slowest point before it."""


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
        """The deadline of the ranks' start, and of their self test."""
        return self._within_budget(self._startup_s)

    def point_s(self, backend: str) -> float:
        """The deadline of one request for a point of this backend."""
        shortest_s = self._deadline_s if self.has_used(backend) else max(self._deadline_s, self._startup_s)
        return self._within_budget(max(shortest_s, _FACTOR * self._slowest_s))

    def has_used(self, backend: str) -> bool:
        """Whether the present ranks have used the backend: its library is imported, and its buffers exist."""
        return backend in self._backends_used

    def note_use(self, backend: str) -> None:
        """Notes that the present ranks have used the backend."""
        self._backends_used.add(backend)

    def note_duration(self, duration_s: float) -> None:
        """Notes how long a point took; not for the first use of its backend, which imports the library."""
        self._slowest_s = max(self._slowest_s, duration_s)

    def note_restart(self) -> None:
        """Notes that new ranks start, which have used no backend."""
        self._backends_used.clear()

    def _within_budget(self, deadline_s: float) -> float:
        return max(0.0, min(deadline_s, self._budget_end - time.monotonic()))
