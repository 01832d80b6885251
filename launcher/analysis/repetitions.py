"""From the repetitions of a point in the final to one time for each of their places; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.records import Role
from bench.stats import Floats
from launcher.store.table import ROLES, Rows

BoolArray = npt.NDArray[np.bool_]


class Repetition(NamedTuple):
    """One timed run of a point in the final, corrected for the power cap.

    ``place``: the number of its round in its process group. ``gemms_us``: when overlapped GEMMs ended, else empty.
    ``is_again``: an earlier one in the same place was off.
    """

    place: int
    samples_us: Floats
    gemms_us: Floats
    is_again: bool


def are_again(rows: Rows) -> BoolArray:
    """Which records measure once more what was off before them in the same group; of shape (rows,).

    Those whose role says so, and the controls that their group has measured before.
    """
    seen: set[tuple[int, ...]] = set()
    again: BoolArray = rows["role"] == ROLES.index(Role.AGAIN)
    for index in np.flatnonzero(rows["role"] == ROLES.index(Role.CONTROL)).tolist():
        place = tuple(int(rows[index][name]) for name in ("point", "shard", "group", "round"))
        again[index] = place in seen
        seen.add(place)
    return again


def times_by_place(repetitions: Sequence[Repetition], *, mean: bool) -> dict[int, float]:
    """The median of the samples of each place, or their ``mean``, in order of place.

    Iterations that overlap take one of two times, and a program pays their mean: a median would be a majority vote.
    Where a repetition was measured again, the later one counts, of three the median.
    """
    first: dict[int, list[Floats]] = defaultdict(list)
    again: dict[int, list[float]] = defaultdict(list)
    for repetition in repetitions:
        if repetition.is_again:
            again[repetition.place].append(float(np.median(repetition.samples_us)))
        else:
            first[repetition.place].append(repetition.samples_us)
    times = {place: _centre(values, mean=mean) for place, values in first.items()}
    for place, medians in again.items():
        known = [times[place]] if place in times and len(medians) > 1 else []
        times[place] = float(np.median([*known, *medians]))
    return dict(sorted(times.items()))


def gemms_by_place(repetitions: Sequence[Repetition]) -> dict[int, float]:
    """When the overlapped GEMMs ended, the mean of each place; empty without GEMMs."""
    ends: dict[int, list[Floats]] = defaultdict(list)
    for repetition in repetitions:
        if len(repetition.gemms_us):
            ends[repetition.place].append(repetition.gemms_us)
    return {place: _centre(values, mean=True) for place, values in sorted(ends.items())}


def _centre(values: Sequence[Floats], *, mean: bool) -> float:
    samples = np.concatenate(values)
    return float(samples.mean() if mean else np.median(samples))
