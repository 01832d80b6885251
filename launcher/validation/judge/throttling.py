"""The context layer: throttling as the cause of slowness; pure."""

from __future__ import annotations

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.node import SuiteRun

_THERMAL = {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake"}
"""Without the power cap, which is normal under load."""


def explain_slowness(findings: list[Finding], suite_run: SuiteRun) -> list[Finding]:
    """The findings, with throttling as the cause where the GPU was throttled; and throttling without slowness."""
    explained = [_explain(finding, suite_run) for finding in findings]
    named = {finding.where for finding in explained if finding.code == "E501"}
    for gpu, reasons in suite_run.throttled.items():
        thermal = sorted(_THERMAL.intersection(reasons))
        if thermal and gpu not in named:
            message = f"throttled by {', '.join(thermal)}, but nothing was slow"
            explained.append(Finding(NodeVerdict.WARN, "E501", gpu, message, "context"))
    return explained


def _explain(finding: Finding, suite_run: SuiteRun) -> Finding:
    """The finding under the code of throttling, if its GPU was throttled."""
    reasons = {
        reason
        for gpu, reasons in suite_run.throttled.items()
        for reason in reasons
        if gpu in finding.where or not finding.where
    }
    thermal = sorted(_THERMAL & reasons)
    if not thermal or finding.verdict not in (NodeVerdict.FAIL, NodeVerdict.WARN):
        return finding
    return Finding(finding.verdict, "E501", finding.where, f"{', '.join(thermal)}: {finding.message}", "context")


def describe_throttling(suite_run: SuiteRun) -> str:
    """What the layer could judge."""
    if not suite_run.after:
        return "absent: no GPU counters"
    throttled = "; ".join(f"{gpu} {', '.join(reasons)}" for gpu, reasons in suite_run.throttled.items() if reasons)
    unknown = sorted({name for counters in suite_run.after for name, value in counters.values.items() if value is None})
    clause = f"; not reported by this driver: {', '.join(unknown)}" if unknown else ""
    return f"judged: {throttled or 'no GPU was throttled'}{clause}"
