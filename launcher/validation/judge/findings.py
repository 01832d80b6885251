"""What several layers share: grading a ratio, merging findings, and selecting the certain ones; pure."""

from __future__ import annotations

from collections import defaultdict

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Band

SLOW = {"pair_copy": "E201", "pair_sm": "E201", "all_to_all": "E204", "dispatch": "E206", "combine": "E207"}
"""The code of each test that is slow. GEMMs are those of one GPU: E203."""


def grade(share: float, band: Band) -> NodeVerdict:
    """FAIL below the second limit, else WARN."""
    return NodeVerdict.FAIL if share < band[1] else NodeVerdict.WARN


def describe_band(band: Band) -> str:
    """Both limits in words."""
    return f"{band[0]:.0%} (fail {band[1]:.0%})"


def merge(findings: list[Finding]) -> list[Finding]:
    """The worst finding of each code and place, with the number of the others: a slow GPU is one line, not six."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.code, finding.where].append(finding)
    merged = []
    for group in groups.values():
        first = min(group, key=lambda finding: finding.verdict is not NodeVerdict.FAIL)
        more = f" (and {len(group) - 1} more of the same)" if len(group) > 1 else ""
        merged.append(Finding(first.verdict, first.code, first.where, first.message + more, first.layer))
    return merged


def select_certain(findings: list[Finding]) -> list[Finding]:
    """The findings that need no confirmation."""
    return [finding for finding in findings if not finding.needs_confirmation]


def select_certain_faults(findings: list[Finding]) -> list[Finding]:
    """The faults that need no confirmation."""
    return [finding for finding in select_certain(findings) if finding.verdict is NodeVerdict.FAIL]
