"""The samples of one point from every rank, as the outcome of a record."""

from __future__ import annotations

import numpy as np

from bench import protocol
from bench.records import Failed, FailureKind, Measured
from bench.stats import UNSTABLE_SPREAD, Floats, spread


class Samples:
    """Every rank's samples of one point, in microseconds, and the first incorrect output if there is one."""

    def __init__(self, responses: list[protocol.Timed]) -> None:
        """``responses``: one per rank, in order of rank, each with the same number of iterations."""
        self._total_us = np.array([response.samples_us for response in responses])  # [num_ranks, iterations]
        self._compute_us = np.array([response.compute_us for response in responses])  # the same, or [num_ranks, 0]
        self._gemms = responses[0].gemms
        self.busy_s = max(response.busy_s for response in responses)
        self.incorrect = first_incorrect([response.wrong for response in responses], phase="time")

    @property
    def is_unstable(self) -> bool:
        """Whether the interquartile range of the iterations exceeds UNSTABLE_SPREAD of their median."""
        return spread(self._total_us.max(axis=0)) > UNSTABLE_SPREAD

    def extend(self, responses: list[protocol.Timed]) -> None:
        """Appends further iterations of the same ranks."""
        more = Samples(responses)
        self._total_us = np.concatenate([self._total_us, more._total_us], axis=1)
        self._compute_us = np.concatenate([self._compute_us, more._compute_us], axis=1)
        self.busy_s += more.busy_s
        self.incorrect = self.incorrect or more.incorrect

    def to_measured(self, *, extended: bool) -> Measured:
        """The outcome: the sample of an iteration is that of its slowest rank."""
        return Measured(
            samples_us=rounded(self._total_us.max(axis=0)),
            rank_median_us=rounded(np.median(self._total_us, axis=1)),
            extended=extended,
            compute_us=rounded(self._compute_us.max(axis=0)),
            gemms=self._gemms,
        )


def rounded(values_us: Floats) -> list[float]:
    """Microseconds to the nanosecond."""
    return [round(float(value), 3) for value in values_us]


def first_incorrect(mismatches: list[str | None], *, phase: str) -> Failed | None:
    """The failure of the first rank with a mismatch, None where every rank has None."""
    for rank, mismatch in enumerate(mismatches):
        if mismatch is not None:
            return Failed(FailureKind.INCORRECT, f"rank {rank}: {mismatch}", phase, rank)
    return None
