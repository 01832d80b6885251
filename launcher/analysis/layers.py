"""Whole layers: the time of a full dispatch, the expert GEMMs and a combine with each pair of configs; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench.backends import split_pair
from bench.records import Dtype, Op, Point
from bench.stats import MIN_GROUPS, Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.config.plan import Plan


class Layer(msgspec.Struct, frozen=True):
    """One layer with one pair, in microseconds; ``training``: with the operations of its backward pass.

    ``dispatch`` and ``combine``: all knobs of each. ``by_round``: the time in each pass. ``gemms``: what the GEMMs of
    the forward pass multiply.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    training: bool
    median_us: float
    ci95_us: Interval
    by_round: Mapping[int, float]
    gemms: Dtype = Dtype.BF16

    def is_of(self, pair: Pair) -> bool:
        """Whether it ran just these two configs."""
        return (self.dispatch, self.combine) == (pair.dispatch.point.knobs, pair.combine.point.knobs)


class Gain(msgspec.Struct, frozen=True):
    """How many times as long as ``layer`` the layer of ``default`` takes, paired over the passes."""

    default: Layer
    layer: Layer
    ratio: float
    ci95: Interval


def layers_of(plan: Plan, measurements: Sequence[Measurement]) -> list[Layer]:
    """Every layer of the plan's library that was measured, and whose configs are correct; fastest first."""
    correct = {measurement.point.key for measurement in measurements}
    dtype, found = plan.spec.workload.dtype, []
    for measurement in measurements:
        point = measurement.point
        if point.backend != plan.backend or point.op not in (Op.LAYER, Op.LAYER_TRAINING):
            continue
        dispatch, combine = split_pair(point)
        parts = (
            Point(point.backend, Op.DISPATCH, dtype, dispatch),
            Point(point.backend, Op.COMBINE, Dtype.BF16, combine),
        )
        if all(part.key in correct for part in parts):
            training = point.op is Op.LAYER_TRAINING
            median_us, ci95_us = measurement.median_us, measurement.ci95_us
            layer = Layer(dispatch, combine, training, median_us, ci95_us, measurement.by_round, measurement.gemms)
            found.append(layer)
    return sorted(found, key=lambda layer: (layer.training, layer.median_us))


def layer_of(layers: Sequence[Layer], pair: Pair | None, *, training: bool) -> Layer | None:
    """The layer of a pair; None where it was not measured."""
    same = (layer for layer in layers if pair is not None and layer.training == training and layer.is_of(pair))
    return next(same, None)


def gain(layers: Sequence[Layer], default: Pair | None, pair: Pair | None, *, training: bool) -> Gain | None:
    """What replacing the default by the pair gains; None where too few passes measured both."""
    before, after = (layer_of(layers, each, training=training) for each in (default, pair))
    if before is None or after is None:
        return None
    return compare(before, after)


def compare(before: Layer, after: Layer) -> Gain | None:
    """One layer over another, of whichever libraries; None where too few passes measured both."""
    common = sorted(before.by_round.keys() & after.by_round.keys())
    if len(common) < MIN_GROUPS:
        return None
    times = [[layer.by_round[number] for number in common] for layer in (before, after)]
    return Gain(before, after, paired_ratio(*times, robust=False), paired_ratio_interval(*times, robust=False))
