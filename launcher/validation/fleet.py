"""The nodes together: what only the fleet can show, what became of nodes without a result; pure."""

from __future__ import annotations

import math
from collections import defaultdict

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from launcher.validation.judge import headline
from launcher.validation.node import Node, Rate
from launcher.validation.settings import Thresholds
from launcher.validation.verdict import WORST_FIRST, Finding, Verdict

_FAIL_FROM, _WARN_FROM = 8, 4
_FALSE_ALARMS = 0.01
_MAD_SCALE = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""

_ALREADY = ("E201", "E203", "E204", "E206", "E207")


class Row(msgspec.Struct, frozen=True):
    """One node of the summary. ``node`` may have no file; then ``result`` is None and the reason is Slurm's."""

    name: str
    verdict: Verdict
    code: str
    short: str
    reason: str
    job_id: str | None = None
    result: Node | None = None


class Fleet(msgspec.Struct, frozen=True):
    """Every row, worst first, and what the fleet layer could do: group of nodes -> what it says."""

    rows: list[Row]
    layer: dict[str, str]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of every node."""
        return [row.verdict for row in self.rows]

    @property
    def medians(self) -> dict[str, float]:
        """Of each rate over the nodes that have it."""
        values: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            for key, value in rates_of(row.result).items():
                values[key].append(value)
        return {key: float(np.median(found)) for key, found in values.items()}


def rates_of(result: Node | None) -> dict[str, float]:
    """A node's rates by key, those of its GPUs and pairs by their median."""
    found: dict[str, list[Rate]] = defaultdict(list)
    for rate in result.rates if result is not None else []:
        found[rate.key].append(rate)
    return {key: float(np.median([rate.median for rate in rates])) for key, rates in found.items()}


def judge(rows: list[Row], thresholds: Thresholds) -> Fleet:
    """Adds what each node is among its fleet: those with the same GPUs, links and versions.

    One-sided, on the logarithm of each rate: z = log(x / median) / max(1.4826 MAD, floor). Below -z it is FAIL from 8
    nodes on and WARN from 4. The limit grows with the number of values that are looked at, so that a healthy fleet is
    flagged at most once in a hundred runs (a normal tail; Bonferroni).
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if row.result is not None and row.result.complete and row.result.rates:
            groups[row.result.fingerprint].append(at)
    judged = list(rows)
    layer = {}
    for fingerprint, members in sorted(groups.items(), key=lambda item: str(item[0])):
        name = ", ".join(str(part) for part in fingerprint[:3])
        if len(members) < _WARN_FROM:
            layer[name] = f"absent: {len(members)} nodes, {_WARN_FROM} are needed"
            continue
        verdict = Verdict.FAIL if len(members) >= _FAIL_FROM else Verdict.WARN
        slow = _slow([rates_of(rows[at].result) for at in members], thresholds)
        layer[name] = f"judged: {len(members)} nodes, {len(slow)} below"
        for position, (key, ratio, z) in slow.items():
            at = members[position]
            judged[at] = _with(judged[at], verdict, key, ratio, z)
    return Fleet(sorted(judged, key=lambda row: (WORST_FIRST.index(row.verdict), row.name)), layer)


def _slow(rates: list[dict[str, float]], thresholds: Thresholds) -> dict[int, tuple[str, float, float]]:
    """Position of each slow node, with its worst rate, its ratio to the median, and z."""
    keys = sorted(set.intersection(*(set(one) for one in rates)))
    if not keys:
        return {}
    logs = np.log(np.array([[one[key] for key in keys] for one in rates]))
    centre = np.median(logs, axis=0)
    scale = np.maximum(_MAD_SCALE * np.median(np.abs(logs - centre), axis=0), thresholds.fleet_floor)
    z = (logs - centre) / scale
    limit = max(thresholds.fleet_z, float(scipy_stats.norm.isf(_FALSE_ALARMS / z.size)))
    worst = z.argmin(axis=1)
    return {
        at: (keys[column], math.exp(logs[at, column] - centre[column]), float(z[at, column]))
        for at, column in enumerate(worst)
        if z[at, column] < -limit
    }


def _with(row: Row, verdict: Verdict, key: str, ratio: float, z: float) -> Row:
    assert row.result is not None
    finding = Finding(verdict, "E208", "", f"{key} is {ratio:.2f}x the median of its fleet (robust z {z:.1f})", "fleet")
    findings = [*row.result.findings, finding]
    if row.code in _ALREADY and WORST_FIRST.index(row.verdict) <= WORST_FIRST.index(verdict):
        result = msgspec.structs.replace(row.result, findings=findings)
        return msgspec.structs.replace(row, result=result)  # known already, and by a better name
    new, code, short, reason = headline(findings)
    result = msgspec.structs.replace(
        row.result, findings=findings, verdict=new, code=code, reason_short=short, reason=reason
    )
    return Row(row.name, new, code, short, reason, row.job_id, result)


_BY_STATE = {
    "TIMEOUT": (Verdict.HANG, "E603", "the job ran into its time limit"),
    "NODE_FAIL": (Verdict.NO_RESULT, "E604", "the node failed while it was validated"),
    "BOOT_FAIL": (Verdict.NO_RESULT, "E604", "the node did not boot"),
    "OUT_OF_MEMORY": (Verdict.SETUP, "U904", "the job was out of memory"),
    "CANCELLED": (Verdict.SKIPPED, "U905", "the job was cancelled"),
    "PREEMPTED": (Verdict.SKIPPED, "U906", "the job was preempted"),
    "DEADLINE": (Verdict.SKIPPED, "U907", "the node was busy until the deadline"),
    "PENDING": (Verdict.SKIPPED, "U907", "the node was busy until the deadline"),
    "RUNNING": (Verdict.NO_RESULT, "U901", "the job is still running"),
}


def row_of(name: str, job_id: str | None, state: str | None, result: Node | None) -> Row:
    """A node by its file, or where that is missing or not complete by Slurm's word for its job."""
    if result is not None and result.complete:
        return Row(name, result.verdict, result.code, result.reason_short, result.reason, job_id, result)
    verdict, code, why = _BY_STATE.get(
        state or "", (Verdict.NO_RESULT, "U901", f"the job ended ({state or 'unknown'}) without a verdict")
    )
    if result is not None:
        why = f"{why}; {result.reason}"
    place = f" in {result.reason.rpartition('phase ')[2]}" if result is not None and "in phase" in result.reason else ""
    return Row(name, verdict, code, f"{code}{place}", why, job_id, result)


def skipped(name: str, code: str, why: str) -> Row:
    """A node that no job was submitted for."""
    verdict = Verdict.NO_RESULT if code == "U909" else Verdict.SKIPPED
    return Row(name, verdict, code, code, why)
