"""Findings from NVML's counters: growth during the suite run, pending repairs, and XID errors; pure.

A counter that the driver does not have is not judged.
"""

from __future__ import annotations

from bench.nvml.counters import Counters
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.node import SuiteRun

_CRC_PER_S = 100.0

_ZERO_TOLERANCE = {
    "ecc_uncorrectable": ("E401", "{} uncorrectable memory errors during the validation"),
    "nvlink_recovery": ("E404", "{} NVLink recoveries during the validation"),
}
_PROGRAM_XIDS = ("13", "31", "43", "45")
"""XIDs that the driver's table attributes to the program: exception, page fault, reset channel, preemptive removal."""

_PENDING: dict[str, tuple[str, str]] = {
    "remap_failure": ("E402", "a row could not be remapped"),
    "remap_pending": ("E402", "a row remapping is pending"),
    "recovery_action": ("E407", "the driver asks for recovery action {}"),
}


def judge_growth(suite_run: SuiteRun) -> list[Finding]:
    """A finding for each XID error, and for each counter of a GPU that grew or is pending."""
    seconds = max(sum(phase.wall_s for phase in suite_run.phases), 1.0)
    findings = [_judge_xid(text) for text in suite_run.xids]
    for gpu, (before, after) in enumerate(zip(suite_run.before, suite_run.after, strict=False)):
        findings += [
            Finding(verdict, code, f"gpu{gpu}", message, "counters")
            for verdict, code, message in _judge_gpu(before, after, seconds)
        ]
    return findings


def _judge_xid(text: str) -> Finding:
    """``gpu 2: XID 79``. An XID that a program can cause, or its end by us, is not a fault of the GPU."""
    gpu, _, number = text.partition(": XID ")
    is_program = number.split(",")[0] in _PROGRAM_XIDS
    return Finding(NodeVerdict.WARN if is_program else NodeVerdict.FAIL, "E403", gpu.replace(" ", ""), text, "counters")


def _judge_gpu(before: Counters, after: Counters, seconds: float) -> list[tuple[NodeVerdict, str, str]]:
    def growth(name: str) -> int:
        old, new = before.values.get(name), after.values.get(name)
        return 0 if old is None or new is None else new - old

    findings = []
    for name, (code, text) in _ZERO_TOLERANCE.items():
        if growth(name) > 0:
            findings.append((NodeVerdict.FAIL, code, text.format(growth(name))))
    for name, (code, text) in _PENDING.items():
        if after.values.get(name):
            findings.append((NodeVerdict.FAIL, code, text.format(after.values[name])))
    if growth("nvlink_crc") / seconds > _CRC_PER_S:
        findings.append(
            (NodeVerdict.FAIL, "E405", f"{growth('nvlink_crc') / seconds:.0f} NVLink CRC errors per second")
        )
    if growth("nvlink_replay") > 0:
        findings.append((NodeVerdict.WARN, "E406", f"{growth('nvlink_replay')} NVLink replays during the validation"))
    if growth("links_up") < 0:
        findings.append((NodeVerdict.FAIL, "E103", f"{-growth('links_up')} NVLinks went down during the validation"))
    return findings
