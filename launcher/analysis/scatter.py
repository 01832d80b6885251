"""How much a config's time scatters, by where it comes from; pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bench.between import OTHER_GPUS, SAME_GPUS
from bench.records import Op, Stage
from bench.stats import MIN_GROUPS
from launcher.analysis.measurements import Measurement

_IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution over its standard deviation."""


class Scatter(msgspec.Struct, frozen=True):
    """Standard deviations of a log time, each the median over ``configs`` of the final; 0.01 is 1 %.

    ``iterations``: of one repetition. ``groups``: of the medians of the process groups, which contain what the few
    iterations of a repetition leave. ``same_gpus``, ``other_gpus``: what a whole run adds, from published runs.
    """

    configs: int
    iterations: float
    groups: float
    same_gpus: float = SAME_GPUS.time
    other_gpus: float = OTHER_GPUS.time


def scatter_of(measurements: Sequence[Measurement]) -> Scatter | None:
    """The scatter of the dispatches and combines of the final; None where it has too few groups."""
    finals = [
        each
        for each in measurements
        if each.stage is Stage.FINAL and each.point.op in (Op.DISPATCH, Op.COMBINE) and len(each.by_round) >= MIN_GROUPS
    ]
    if not finals:
        return None
    groups = [float(np.log(list(each.by_round.values())).std(ddof=1)) for each in finals]
    iterations = [each.spread / _IQR_OF_NORMAL for each in finals]
    return Scatter(len(finals), float(np.median(iterations)), float(np.median(groups)))
