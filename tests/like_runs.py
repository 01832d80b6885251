"""Pairs of published runs that measured the same things with the same software on the same kind of machine."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import msgspec
import numpy as np

from bench.records import Op
from bench.stats import Floats
from launcher.comparison import run as compared_runs
from launcher.comparison.levels import Levels, levels_of
from launcher.comparison.run import ComparedRun
from launcher.store.results_file import SavedLibrary
from tests.published import PUBLISHED, Unpack

_SAME_GRID = 0.9
"""Least share of points that two runs of one grid have in common: the finals choose a few of their own."""


_ROUND_TRIP = (Op.DISPATCH, Op.COMBINE)


class LikeRuns(NamedTuple):
    """Two published runs, named by their folders."""

    names: tuple[str, str]
    runs: tuple[ComparedRun, ComparedRun]

    @property
    def same_gpus(self) -> bool:
        """Whether the same GPUs measured both."""
        return gpus(self.runs[0]) == gpus(self.runs[1])


class Changes(NamedTuple):
    """Log (B / A) of several results [results], and their standard errors within the two runs."""

    changes: Floats
    errors: Floats


def gpus(run: ComparedRun) -> set[str]:
    return {uuid for host in run.results.hosts for uuid in host.gpu_uuids}


def find_like_runs(published: Unpack) -> list[LikeRuns]:
    """All pairs with finals, in order of time, that agree in workload, grid, kind of machine and software."""
    names = sorted({file.parent.name for file in PUBLISHED.glob("*/RESULTS_EP*")})
    runs = {name: compared_runs.read(published(name)) for name in names}
    finals = {name: run for name, run in runs.items() if run.results.search.final_groups_measured}
    in_time = sorted(finals, key=lambda name: finals[name].results.started or "")
    pairs = [LikeRuns((a, b), (finals[a], finals[b])) for a, b in itertools.combinations(in_time, 2)]
    return [pair for pair in pairs if _are_like(*pair.runs)]


def _are_like(a: ComparedRun, b: ComparedRun) -> bool:
    shared = len(a.labels & b.labels) / len(a.labels | b.labels)
    return _kind(a) == _kind(b) and shared >= _SAME_GRID


def _kind(run: ComparedRun) -> tuple[object, ...]:
    results = run.results
    libraries = tuple(library.name for library in results.libraries)
    return results.ep, msgspec.to_builtins(results.workload), libraries, msgspec.to_builtins(results.environment)


def levels_in_both_finals(pair: LikeRuns) -> tuple[Levels, Levels]:
    """Of every config, and operation, of a library that the fresh groups of both finals measured."""
    labels = _labels(pair)
    return levels_of(pair.runs[0], labels), levels_of(pair.runs[1], labels)


def times_in_both_finals(pair: LikeRuns) -> Changes:
    """Of the times in ``levels_in_both_finals``."""
    old, new = levels_in_both_finals(pair)
    return Changes(new.log - old.log, np.hypot(_errors(old), _errors(new)))


def _labels(pair: LikeRuns, *ops: Op) -> list[str]:
    a, b = pair.runs
    libraries = {library.name for library in a.results.libraries}
    return sorted(
        label
        for label in a.measured.keys() & b.measured.keys()
        if a.measured[label].is_fresh and b.measured[label].is_fresh and a.measured[label].backend in libraries
        if not ops or a.measured[label].op in ops
    )


def _errors(levels: Levels) -> Floats:
    return (levels.low + levels.high) / 2


def ratios_in_both_finals(pair: LikeRuns) -> Changes:
    """Of the default's round trip over the fastest of each num_sms, in A; of configs that both finals measured."""
    rows = [row for library in pair.runs[0].results.libraries for row in _ratios(pair, library)]
    return Changes(*np.array(rows).T)


def _ratios(pair: LikeRuns, library: SavedLibrary) -> list[tuple[float, float]]:
    """Log (B / A) of each ratio of a library, and its error."""
    measured = pair.runs[0].measured
    labels = [[label for label in _labels(pair, op) if measured[label].backend == library.name] for op in _ROUND_TRIP]
    knobs = [operation.knobs for operation in library.default.operations.values()] if library.default else []
    defaults = [
        [label for label in those if measured[label].knobs == one] for those, one in zip(labels, knobs, strict=False)
    ]
    if not all(defaults) or not defaults:
        return []
    default, fastest = _round_trip(pair, [label for (label,) in defaults]), _fastest_by_num_sms(pair, labels)
    rivals = [_round_trip(pair, rival) for rival in fastest if rival != [label for (label,) in defaults]]
    return [(change - default[0], math.hypot(error, default[1])) for change, error in rivals]


def _fastest_by_num_sms(pair: LikeRuns, labels: list[list[str]]) -> list[list[str]]:
    """The fastest dispatch and combine, in A, for each num_sms with which ``labels`` have both."""
    measured = pair.runs[0].measured
    by_sms: list[dict[int, str]] = []
    for those in labels:
        slowest_first = sorted(those, key=lambda label: -measured[label].median_us)
        by_sms.append({measured[label].knobs["num_sms"]: label for label in slowest_first})
    return [[fastest[num_sms] for fastest in by_sms] for num_sms in sorted(by_sms[0].keys() & by_sms[1].keys())]


def _round_trip(pair: LikeRuns, labels: list[str]) -> tuple[float, float]:
    """Log (B / A) of the sum of the times of these points, and its error."""
    levels = [levels_of(run, labels) for run in pair.runs]
    times = [np.exp(one.log) for one in levels]
    errors = [float(np.linalg.norm(each * _errors(one)) / each.sum()) for each, one in zip(times, levels, strict=True)]
    return math.log(times[1].sum() / times[0].sum()), math.hypot(*errors)
