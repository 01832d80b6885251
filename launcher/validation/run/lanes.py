"""Nodes take turns in lanes: which job heads its lane and cannot start, while others wait behind it; pure.

Of jobs with one name Slurm runs one at a time (singleton), the oldest first: so many lanes, so many in flight. A node
that somebody else keeps busy would hold up its lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.jobs.slurm import JobState

STUCK_LOOKS = 5
"""Looks in a row at which a job heads its lane and waits, before it has to go to the back."""


class Lanes:
    """What was seen at the looks so far. ``of``: the lane of each node."""

    def __init__(self, of: Mapping[str, int]) -> None:
        self._of = of
        self._looks: Counter[str] = Counter()

    def stuck(self, jobs: Mapping[str, str], states: Mapping[str, JobState]) -> dict[str, set[str]]:
        """After one more look: nodes whose jobs have headed their lanes for long, and the nodes that wait behind each.

        ``jobs``: of each node. A job behind another waits for a dependency; the head of a lane for anything else.
        """
        waiting = {node: states[job] for node, job in jobs.items() if job in states and states[job].state == "PENDING"}
        behind = {node for node, state in waiting.items() if state.reason == "Dependency"}
        heads = [node for node in waiting if node not in behind and node in self._of]
        self._looks = Counter({jobs[node]: self._looks[jobs[node]] + 1 for node in heads})
        found = {
            node: {other for other in behind if self._of.get(other) == self._of[node]}
            for node in heads
            if self._looks[jobs[node]] >= STUCK_LOOKS
        }
        for node in found:
            del self._looks[jobs[node]]  # whatever becomes of it, the next time is so many looks away
        return {node: others for node, others in found.items() if others}
