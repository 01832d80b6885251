"""The layer inside the node: each GPU and each pair against the median of the others; pure.

With four GPUs no z-score can find anything: |z| <= 1.5.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

from launcher.validation.codes import Finding
from launcher.validation.config import Band, Spec
from launcher.validation.judge.findings import grade, merge
from launcher.validation.node import Rate


def compare_peers(rates: list[Rate], spec: Spec) -> list[Finding]:
    """GPUs and pairs that are slower than the others of the node."""
    findings = []
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for rate in rates:
        if rate.where:
            groups[rate.key][rate.where] = rate.median
    for key, medians in groups.items():
        if ">" in next(iter(medians)):
            findings += _find_slow_pairs(key, medians, spec.thresholds.inside)
        else:
            findings += _find_slow_gpus(key, medians, spec.thresholds.inside_compute)
    return merge(findings)


def describe_peers(rates: list[Rate]) -> str:
    """What the layer could judge."""
    places = [rate.where for rate in rates if rate.where]
    has_pairs, has_gpus = any(">" in place for place in places), any(">" not in place for place in places)
    if has_pairs and has_gpus:
        return "judged: the copies of each pair and the GEMMs of each GPU against the others"
    if has_pairs:
        return "judged: the copies of each pair against the others; no GEMMs were measured"
    if has_gpus:
        return "judged: the GEMMs of each GPU against the others; no copies were measured"
    return "absent: no copies and no GEMMs were measured"


def _find_slow_gpus(key: str, medians: dict[str, float], band: Band) -> list[Finding]:
    findings = []
    for gpu, ratio in _ratios(medians).items():
        if ratio < band[0]:
            message = f"{key} is {ratio:.2f}x that of the node's other GPUs"
            findings.append(Finding(grade(ratio, band), "E203", gpu, message, "inside"))
    return findings


def _find_slow_pairs(key: str, medians: dict[str, float], band: Band) -> list[Finding]:
    """Slow pairs; a GPU with only slow pairs is named in their place.

    Two GPUs have one pair, in two directions: it cannot tell which of the two is at fault.
    """
    slow = {pair: ratio for pair, ratio in _ratios(medians).items() if ratio < band[0]}
    gpus = sorted({gpu for pair in medians for gpu in pair.split(">")})
    findings = []
    for gpu in gpus if len(gpus) > 2 else []:
        pairs = [pair for pair in medians if gpu in pair.split(">")]
        others = statistics.median(median for pair, median in medians.items() if pair not in pairs)
        if all(medians[pair] / others < band[0] for pair in pairs):
            ratio = statistics.median(medians[pair] for pair in pairs) / others
            message = f"{key}: every pair of this GPU is slow, {ratio:.2f}x the other pairs"
            findings.append(Finding(grade(ratio, band), "E203", gpu, message, "inside"))
            slow = {pair: ratio for pair, ratio in slow.items() if pair not in pairs}
    for pair, ratio in slow.items():
        message = f"{key} is {ratio:.2f}x that of the node's other pairs"
        findings.append(Finding(grade(ratio, band), "E201", pair, message, "inside"))
    return findings


def _ratios(medians: dict[str, float]) -> dict[str, float]:
    """Each place over the median of the others; empty where there are no others."""
    ratios = {}
    for place, median in medians.items():
        others = [other for where, other in medians.items() if where != place]
        if others:
            ratios[place] = median / max(statistics.median(others), 1e-12)
    return ratios
