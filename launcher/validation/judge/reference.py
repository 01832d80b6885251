"""The reference layer: rates against those of good nodes; pure."""

from __future__ import annotations

from launcher.validation import reference
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Band, Spec
from launcher.validation.judge.findings import SLOW, grade, merge
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
    if suite_run.environment is None:
        return [], "absent: nothing was measured"
    kind = reference.environment_kind(suite_run.environment)
    findings, num_judged, unknown = [], 0, set()
    for rate in suite_run.rates:
        known = reference.find(spec.references, kind, rate.key)
        if known is None:
            unknown.add(rate.key)
            continue
        num_judged += 1
        findings += _compare_rate(rate, known, spec)
    if not num_judged:
        return [], f"absent: the reference has no entry for {suite_run.environment.device} with these versions"
    missing = f"; none for {', '.join(sorted(unknown))}" if unknown else ""
    return merge(findings), f"judged: {num_judged} rates{missing}"


def _compare_rate(rate: Rate, known: Reference, spec: Spec) -> list[Finding]:
    findings = []
    code = SLOW.get(rate.test, "E203")
    ratio = rate.median / known.median
    band = spec.thresholds.by_reference(rate.test)
    if ratio < band[0]:
        message = f"{rate.key} is {ratio:.2f}x the reference of {known.num_nodes} good nodes"
        findings.append(Finding(grade(ratio, band), code, rate.where, message, "reference"))
    if spec.on_cpu or len(rate.blocks) < _MIN_BLOCKS:  # processes that share cores always have slow blocks
        return findings
    distance = reference.distance(rate.blocks, known)
    if distance > TAIL[0]:
        verdict = NodeVerdict.FAIL if distance > TAIL[1] else NodeVerdict.WARN
        message = f"{rate.key} has slow blocks: {distance:.1%} below the reference's deciles"
        findings.append(Finding(verdict, code, rate.where, message, "reference"))
    return findings
