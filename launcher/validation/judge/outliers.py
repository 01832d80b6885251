"""Which nodes of a fleet are slower than the others, by their rates alone; pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from launcher.validation.node import Rate

MIN_NODES = 4
"""The fewest nodes that a rate is judged over."""

FLEET_Z = 3.5
"""Robust deviations below the median that make an outlier: Iglewicz and Hoaglin, How to Detect and Handle Outliers."""

FLEET_FLOOR = 0.01
"""Least deviation, as a share of the median: among nearly equal nodes a trifle would make an outlier."""

GPU_SCATTER = 0.02
"""Standard deviation of the GEMMs of the healthy GPUs of one node, which differ at their power cap.

1.3 % over the four published H200s, 3.3 % over the two H100s; 2.0 % pooled.
"""

_FALSE_ALARMS = 0.01
_MAD_SCALE = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""

PlaceRates = Mapping[str, Sequence[float]]
"""A node's rates by key: one for each GPU, pair, or the node."""


class Outlier(NamedTuple):
    """A slow rate of a node: its key, ratio to the fleet's median, robust z, and the number of nodes compared."""

    key: str
    ratio: float
    z: float
    num_nodes: int


def is_pooled(key: str) -> bool:
    """Whether the GPUs of a node are pooled for this rate. GEMMs: each GPU's differ, their mean differs less."""
    return key.split(" ", 1)[0] == "compute"


def deviation(num_gpus: int, *, floor: float = FLEET_FLOOR, scatter: float = GPU_SCATTER) -> float:
    """The standard deviation of the mean GEMM rate of a healthy node, as a share.

    Nodes differ by ``floor``, and the GPUs of a node by ``scatter``, of which the mean keeps 1 / sqrt(GPUs).
    """
    return math.hypot(floor, scatter / math.sqrt(num_gpus))


def place_rates(rates: Sequence[Rate]) -> dict[str, list[float]]:
    """The medians of the blocks by key, in the order of the GPUs or pairs."""
    places: dict[str, list[float]] = defaultdict(list)
    for rate in rates:
        places[rate.key].append(rate.median)
    return dict(places)


def find_outliers(nodes: Sequence[PlaceRates], *, floor: float = FLEET_FLOOR) -> dict[int, list[Outlier]]:
    """The slow rates of each slow node, by position, the slowest first.

    One-sided, on the logarithm of each rate: z = log(x / median) / max(1.4826 MAD, floor), below a limit that grows
    with the number of values tested. A rate is judged where at least four nodes have it.
    """
    keys = sorted({key for rates in nodes for key in rates})
    limit = max(FLEET_Z, float(scipy_stats.norm.isf(_FALSE_ALARMS / max(len(keys) * len(nodes), 1))))
    found: dict[int, list[Outlier]] = defaultdict(list)
    for key in keys:
        members = [index for index, rates in enumerate(nodes) if key in rates]
        if len(members) < MIN_NODES:
            continue
        for index, outlier in zip(members, _score(key, [nodes[index][key] for index in members], floor), strict=True):
            if outlier.z < -limit:
                found[index].append(outlier)
    return {index: sorted(slow, key=lambda outlier: outlier.z) for index, slow in found.items()}


def _score(key: str, rates: list[Sequence[float]], floor: float) -> list[Outlier]:
    """The deviation of each node in one rate."""
    places = [[math.log(value) for value in values] for values in rates]
    logs = np.array([statistics.fmean(one) if is_pooled(key) else statistics.median(one) for one in places])
    centre = float(np.median(logs))
    least = _estimate_deviation(places, floor) if is_pooled(key) else floor
    scale = max(_MAD_SCALE * float(np.median(np.abs(logs - centre))), least)
    return [Outlier(key, math.exp(log - centre), (log - centre) / scale, len(rates)) for log in logs.tolist()]


def _estimate_deviation(places: list[list[float]], floor: float) -> float:
    """The deviation of a node's mean, with the scatter of the GPUs inside the nodes as the whole fleet shows it.

    The median over the nodes of the variance inside one, over that of a chi-square: a node with one slow GPU does not
    widen it.
    """
    num_gpus = min(map(len, places))
    if num_gpus < 2:
        return deviation(num_gpus, floor=floor)
    freedom = num_gpus - 1
    variance = statistics.median(statistics.variance(one) for one in places)
    scatter = math.sqrt(variance * freedom / float(scipy_stats.chi2.median(freedom)))
    return deviation(num_gpus, floor=floor, scatter=max(scatter, GPU_SCATTER))
