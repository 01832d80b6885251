"""The confirmation layer: which findings of two suite runs count; pure."""

from __future__ import annotations

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.judge.findings import select_certain
from launcher.validation.node import SuiteRun


def confirm_findings(suite_runs: list[SuiteRun], *, confirm: bool) -> tuple[list[Finding], str]:
    """The findings that count, and what the layer did.

    A finding that needs confirmation counts if the second suite run reproduces it in the same place; else it is
    INCONCLUSIVE.
    """
    first = suite_runs[0].findings
    doubtful = [finding for finding in first if finding.needs_confirmation]
    if not doubtful:
        return first, "not needed"
    if len(suite_runs) == 1 and not confirm:
        return first, "absent: switched off (confirm=false)"
    if len(suite_runs) == 1:
        unconfirmed = [_make_inconclusive(finding, "without a second suite run") for finding in doubtful]
        return [*select_certain(first), *unconfirmed], "absent: the second suite run is missing"
    second = _believe_hang(first, suite_runs[1].findings)
    confirmed = [finding for finding in doubtful if _is_among(finding, second)]
    order, counts = suite_runs[1].order, f"{len(confirmed)} of {len(doubtful)}"
    report = f"judged: the second suite run, GPUs in order {order}, reproduced {counts} findings"
    certain = {(finding.code, finding.where): finding for finding in [*select_certain(first), *select_certain(second)]}
    if confirmed:  # the fault is certain; what only one suite run found does not matter
        return [*certain.values(), *confirmed], report
    new = [finding for finding in second if finding.needs_confirmation and not _is_among(finding, doubtful)]
    unconfirmed = [
        _make_inconclusive(finding, "not reproduced by the other suite run") for finding in [*doubtful, *new]
    ]
    return [*certain.values(), *unconfirmed], report


def _believe_hang(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """The second findings. If leftover ranks of a hang blocked the second suite run, that hang replaces them.

    A rank that cannot even be killed needs no other confirmation.
    """
    left_over = [finding for finding in second if finding.code == "U902"]
    hung = [finding for finding in first if finding.needs_confirmation and finding.verdict is NodeVerdict.HANG]
    if not left_over or not hung or any(finding.code == "U902" for finding in first):
        return second
    return [*hung, *(finding for finding in second if finding not in left_over)]


def _is_among(finding: Finding, others: list[Finding]) -> bool:
    """Whether another suite run reproduced it: in the same place, under the same code or that of its cause."""
    return any(
        finding.where == other.where
        and other.needs_confirmation
        and (finding.code == other.code or "E501" in (finding.code, other.code))
        for other in others
    )


def _make_inconclusive(finding: Finding, why: str) -> Finding:
    message = f"{finding.code}, {why}: {finding.message}"
    return Finding(NodeVerdict.INCONCLUSIVE, "U911", finding.where, message, "confirmation")
