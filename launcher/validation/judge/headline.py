"""The finding that decides a node's verdict, and the short reason to drain the node; pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from launcher.validation.codes import Finding, NodeVerdict, worst
from launcher.validation.node import Node

_SPEED_LAYERS = ("physics", "reference", "inside", "stability", "context", "fleet", "confirmation")


class Headline(NamedTuple):
    """Verdict, code and reason of a node. ``short`` fits the 20 columns of sinfo: code, place and ratio."""

    verdict: NodeVerdict
    code: str
    short: str
    reason: str


def choose_headline(findings: list[Finding]) -> Headline:
    """The first of the worst findings.

    A wrong result goes before a slow one, and a slow GPU before a slow pair or a slow node, because these may follow
    from it.
    """
    verdict = worst([finding.verdict for finding in findings])
    if verdict is NodeVerdict.PASS:
        return Headline(verdict, "", "ok", "every check passed")
    first = min((finding for finding in findings if finding.verdict is verdict), key=_rank_consequence)
    ratio = re.search(r"\b0\.\d\dx\b", first.message)
    short = ":".join(filter(None, [first.code, first.where]))
    return Headline(verdict, first.code, f"{short} {ratio[0]}" if ratio else short, first.message)


def _rank_consequence(finding: Finding) -> tuple[bool, int]:
    """Higher where the finding is more likely to follow from another."""
    return finding.layer in _SPEED_LAYERS, len(finding.where.split(">")) if finding.where else 3


def drain_reason(node: Node) -> str:
    """The short reason to drain a node: a fault that is certain or confirmed. Empty if there is none.

    Empty too if faults were injected, and for ranks without GPUs.
    """
    if node.faults or node.dry_run:
        return ""
    is_confirmed = node.complete and len(node.suite_runs) > 1
    faults = [
        finding
        for finding in node.findings
        if finding.verdict in (NodeVerdict.FAIL, NodeVerdict.HANG)
        and finding.code != "E208"
        and (is_confirmed or not finding.needs_confirmation)
    ]
    return choose_headline(faults).short if faults else ""
