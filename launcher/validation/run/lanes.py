"""Lanes limit how many nodes are validated at once; finds the jobs that block a lane; pure.

The jobs of a lane have one name, and Slurm runs one of them at a time, the oldest first (singleton): as many lanes, as
many nodes at once, also after the command has ended. A job that waits for a busy node blocks its lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.jobs.slurm import JobState

BLOCKING_LOOKS = 5
"""Looks in a row at which a job is first in its lane and waits, before it counts as blocking."""


class Lanes:
    """Counts the looks at which each job was first in its lane and waited."""

    def __init__(self, lane_of: Mapping[str, int]) -> None:
        """``lane_of``: the lane of each node."""
        self._lane_of = lane_of
        self._looks: Counter[str] = Counter()

    def find_blocking(self, jobs: Mapping[str, str], states: Mapping[str, JobState]) -> dict[str, set[str]]:
        """Counts one more look; the nodes whose jobs block their lanes, each with the nodes that wait behind it.

        ``jobs``: the job of each node. A job behind another waits for a dependency; the first of a lane waits for
        anything else.
        """
        waiting = {node: states[job] for node, job in jobs.items() if job in states and states[job].state == "PENDING"}
        behind = {node for node, state in waiting.items() if state.reason == "Dependency"}
        first = [node for node in waiting if node not in behind and node in self._lane_of]
        self._looks = Counter({jobs[node]: self._looks[jobs[node]] + 1 for node in first})
        blocking = {}
        for node in first:
            if self._looks[jobs[node]] >= BLOCKING_LOOKS:
                del self._looks[jobs[node]]  # counting starts again: the next time is as many looks away
                blocking[node] = {other for other in behind if self._lane_of.get(other) == self._lane_of[node]}
        return {node: others for node, others in blocking.items() if others}
