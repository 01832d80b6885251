"""Findings from counters: what grew while the suite ran, and what stands pending; pure.

A counter that the driver does not have is not judged.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.nvml.counters import Counters
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.node import SuiteRun

_CRC_PER_S = 100.0

_ZERO_TOLERANCE = {
    "ecc_uncorrectable": ("E401", "{} uncorrectable memory errors while it ran"),
    "nvlink_recovery": ("E404", "{} recoveries of NVLinks while it ran"),
}
_OF_PROGRAMS = ("13", "31", "43", "45")
"""XIDs that the driver's table lays to the program: exception, page fault, reset channel, preemptive removal."""

_PENDING: dict[str, tuple[str, str]] = {
    "remap_failure": ("E402", "a row could not be remapped"),
    "remap_pending": ("E402", "a row remapping is pending"),
    "recovery_action": ("E407", "the driver asks for recovery action {}"),
}


def judge_growth(attempt: SuiteRun) -> list[Finding]:
    """Of every GPU, and the XID errors that were heard."""
    seconds = max(sum(phase.wall_s for phase in attempt.phases), 1.0)
    found = [_xid(said) for said in attempt.xids]
    for number, (before, after) in enumerate(zip(attempt.before, attempt.after, strict=False)):
        found += [
            Finding(verdict, code, f"gpu{number}", message, "counters")
            for verdict, code, message in _of(_growth(before, after), after, seconds)
        ]
    return found


def _xid(said: str) -> Finding:
    """``gpu 2: XID 79``. What a program may cause itself, or the end that we put to it, is no fault of the GPU."""
    where, _, number = said.partition(": XID ")
    own = number.split(",")[0] in _OF_PROGRAMS
    return Finding(NodeVerdict.WARN if own else NodeVerdict.FAIL, "E403", where.replace(" ", ""), said, "counters")


def _growth(before: Counters, after: Counters) -> Callable[[str], int]:
    def grown(name: str) -> int:
        old, new = before.values.get(name), after.values.get(name)
        return 0 if old is None or new is None else new - old

    return grown


def _of(grown: Callable[[str], int], after: Counters, seconds: float) -> list[tuple[NodeVerdict, str, str]]:
    found = []
    for name, (code, text) in _ZERO_TOLERANCE.items():
        if grown(name) > 0:
            found.append((NodeVerdict.FAIL, code, text.format(grown(name))))
    for name, (code, text) in _PENDING.items():
        if after.values.get(name):
            found.append((NodeVerdict.FAIL, code, text.format(after.values[name])))
    if grown("nvlink_crc") / seconds > _CRC_PER_S:
        found.append((NodeVerdict.FAIL, "E405", f"{grown('nvlink_crc') / seconds:.0f} CRC errors a second"))
    if grown("nvlink_replay") > 0:
        found.append((NodeVerdict.WARN, "E406", f"{grown('nvlink_replay')} replays while it ran"))
    if grown("links_up") < 0:
        found.append((NodeVerdict.FAIL, "E103", f"{-grown('links_up')} NVLinks went down while it ran"))
    return found
