"""The reference layer: rates against those of good nodes; pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from launcher.validation import reference
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Band, Spec
from launcher.validation.judge.findings import SLOW, grade, merge
from launcher.validation.judge.outliers import FLEET_Z, deviation, is_pooled
from launcher.validation.node import Rate, SuiteRun
from launcher.validation.reference import Reference

TAIL: Band = (0.03, 0.05)
"""How far the deciles of the blocks may lie below the reference's before a warning, and before a fault.

In 5000 simulated nodes with 24 blocks that scatter by 3 %, the limit of stability, chance alone reached 0.9 % in one of
a hundred and 1.7 % in none. The healthy published nodes reach 1.0 % against their own pooled blocks.
"""

_MIN_BLOCKS = 5
"""Fewer blocks are too few for deciles."""


def compare_with_reference(suite_run: SuiteRun, spec: Spec) -> tuple[list[Finding], str]:
    """Rates below the reference's, and what the layer could judge."""
    if not spec.references:
        return [], "absent: no stored reference (learn=FILE writes one, reference=FILE uses it)"
    environment = suite_run.environment
    if environment is None:
        return [], "absent: nothing was measured"
    entries = {rate.key: reference.find(spec.references, environment, rate.key) for rate in suite_run.rates}
    known = [(rate, entry) for rate in suite_run.rates if (entry := entries[rate.key]) is not None]
    if not known:
        return [], f"absent: no reference applies to {environment.device} with these GPUs, links and versions"
    findings = [finding for rate, entry in known for finding in _compare_rate(rate, entry, spec)]
    findings += [] if spec.on_cpu else _compare_pooled(known)
    labels = " and ".join(dict.fromkeys(entry.label for _, entry in known))
    unknown = sorted(key for key, entry in entries.items() if entry is None)
    missing = f"; none for {', '.join(unknown)}" if unknown else ""
    return merge(findings), f"judged: {len(known)} rates by {labels}{missing}"


def _compare_rate(rate: Rate, known: Reference, spec: Spec) -> list[Finding]:
    """One rate. A published reference can only warn: one to three nodes do not show how much healthy ones differ."""
    code = SLOW.get(rate.test, "E203")
    ratio = rate.median / known.median
    message = f"{rate.key} is {ratio:.2f}x {known.label}"
    if known.published:
        is_slow = not is_pooled(rate.key) and ratio < spec.thresholds.published
        return [Finding(NodeVerdict.WARN, code, rate.where, message, "reference")] if is_slow else []
    findings = []
    band = spec.thresholds.by_reference(rate.test)
    if ratio < band[0]:
        findings.append(Finding(grade(ratio, band), code, rate.where, message, "reference"))
    if spec.on_cpu or len(rate.blocks) < _MIN_BLOCKS:  # processes that share cores always have slow blocks
        return findings
    distance = reference.distance(rate.blocks, known)
    if distance > TAIL[0]:
        verdict = NodeVerdict.FAIL if distance > TAIL[1] else NodeVerdict.WARN
        message = f"{rate.key} has slow blocks: {distance:.1%} below the reference's deciles"
        findings.append(Finding(verdict, code, rate.where, message, "reference"))
    return findings


def _compare_pooled(known: list[tuple[Rate, Reference]]) -> list[Finding]:
    """The GEMMs of all GPUs together: their mean scatters less than one of them, so it shows a smaller slowness.

    The limit is 3.5 standard deviations of the difference between this node and the mean of the reference's nodes.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for rate, entry in known:
        if is_pooled(rate.key):
            ratios[rate.key].append(math.log(rate.median / entry.median))
    entries = {entry.test: entry for _, entry in known}
    findings = []
    for key, logs in ratios.items():
        entry, mean = entries[key], statistics.fmean(logs)
        if mean < -FLEET_Z * deviation(len(logs)) * math.sqrt(1 + 1 / entry.num_nodes):
            message = f"{key}: {len(logs)} GPUs together reach {math.exp(mean):.2f}x {entry.label}"
            findings.append(Finding(NodeVerdict.WARN, "E209", "", message, "reference"))
    return findings
