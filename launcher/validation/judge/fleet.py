"""The nodes together: what only the fleet can show, what became of nodes without a result; pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from launcher.jobs.slurm import ENDED
from launcher.validation.codes import WORST_FIRST, Finding, NodeVerdict
from launcher.validation.judge.findings import select_certain_faults
from launcher.validation.judge.headline import choose_headline, drain_reason
from launcher.validation.node import Node, Rate

_FAIL_FROM, _WARN_FROM = 8, 4
_FALSE_ALARMS = 0.01
FLEET_Z = 3.5
"""Robust deviations below the median that make an outlier: Iglewicz and Hoaglin, How to Detect and Handle Outliers."""

FLEET_FLOOR = 0.01
"""Least deviation, as a share of the median: in a fleet of almost equal nodes a trifle would make an outlier."""

_DRY_RUN_FLOOR = 0.25
"""The same for ranks without GPUs: processes that share cores scatter by tens of percent."""

_COMPUTE_FACTOR = 3.0
"""The floor of GEMMs over the others: good GPUs differ by some percent in GEMMs, at their power cap."""

_MAD_SCALE = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


class NodeRow(msgspec.Struct, frozen=True):
    """One node of the summary. ``node`` may have no file; then ``result`` is None and the reason is Slurm's."""

    name: str
    verdict: NodeVerdict
    code: str
    short: str
    reason: str
    job_id: str | None = None
    result: Node | None = None

    @property
    def where(self) -> str:
        """The GPU or pair that the verdict is about; empty when it is the node."""
        findings = self.result.findings if self.result is not None else []
        return next((one.where for one in findings if one.code == self.code and one.message in self.reason), "")

    @property
    def drain_reason(self) -> str:
        """The short reason to drain it, as in NODE.json; empty where there is none.

        What only the fleet has shown is none: validate these nodes again.
        """
        if self.result is None or self.verdict not in (NodeVerdict.FAIL, NodeVerdict.HANG):
            return ""
        return drain_reason(self.result)


class Fleet(msgspec.Struct, frozen=True):
    """Every row, worst first, and what the fleet layer could do: group of nodes -> what it says."""

    rows: list[NodeRow]
    layer: dict[str, str]

    @property
    def verdicts(self) -> list[NodeVerdict]:
        """Of every node."""
        return [row.verdict for row in self.rows]

    @property
    def has_injected(self) -> bool:
        """Whether a node had faults injected on purpose."""
        return any(row.result is not None and row.result.faults for row in self.rows)

    @property
    def medians(self) -> dict[str, float]:
        """Of each rate over the nodes that have it."""
        return _medians(self.rows)

    @property
    def medians_by_kind(self) -> dict[tuple[object, ...], dict[str, float]]:
        """The same over the nodes with the same GPUs, links and versions, by Node.fingerprint."""
        kinds: dict[tuple[object, ...], list[NodeRow]] = defaultdict(list)
        for row in self.rows:
            if row.result is not None:
                kinds[row.result.fingerprint].append(row)
        return {kind: _medians(rows) for kind, rows in kinds.items()}


def _medians(rows: list[NodeRow]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key, value in rates_of(row.result).items():
            values[key].append(value)
    return {key: float(np.median(found)) for key, found in values.items()}


def rates_of(result: Node | None) -> dict[str, float]:
    """A node's rates by key, those of its GPUs and pairs by their median."""
    found: dict[str, list[Rate]] = defaultdict(list)
    for rate in result.rates if result is not None else []:
        found[rate.key].append(rate)
    return {key: float(np.median([rate.median for rate in rates])) for key, rates in found.items()}


def judge_fleet(rows: list[NodeRow]) -> Fleet:
    """Adds what each node is among its fleet: those with the same GPUs, links and versions.

    One-sided, on the logarithm of each rate: z = log(x / median) / max(1.4826 MAD, floor). Below -z it is FAIL from 8
    nodes on and WARN from 4. The limit grows with the number of values that are looked at (a normal tail; Bonferroni at
    1 %): where nodes differ by 1 % in each rate, 1 to 2 % of healthy fleets of 8 to 64 nodes are flagged. Where they
    differ by 2 % it is 7 % of fleets of 64 and a third of those of 8, whose MAD is itself uncertain: what only the
    fleet shows is never a drain.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if row.result is not None and row.result.complete and row.result.rates:
            groups[row.result.fingerprint].append(at)
    judged = list(rows)
    layer = {}
    for fingerprint, members in sorted(groups.items(), key=lambda item: str(item[0])):
        name = _name(fingerprint, groups)
        if len(members) < _WARN_FROM:
            layer[name] = f"absent: {len(members)} nodes, {_WARN_FROM} are needed"
            continue
        slow = outliers([rates_of(rows[at].result) for at in members], floor=_floor(rows[members[0]]))
        layer[name] = f"judged: {len(members)} nodes, {len(slow)} below"
        for position, outlier in slow.items():
            judged[members[position]] = _with(judged[members[position]], outlier)
    return Fleet(sorted(judged, key=lambda row: (WORST_FIRST.index(row.verdict), row.name)), layer)


def _name(fingerprint: tuple[object, ...], groups: Iterable[tuple[object, ...]]) -> str:
    """GPU, number and links, and all else where several groups share these."""
    is_alone = sum(other[:3] == fingerprint[:3] for other in groups) == 1
    return ", ".join(str(part) for part in (fingerprint[:3] if is_alone else fingerprint))


class Outlier(NamedTuple):
    """The worst rate of a slow node: which, over the median, robust z, and among how many nodes."""

    key: str
    ratio: float
    z: float
    num_nodes: int


def _floor(row: NodeRow) -> float:
    return _DRY_RUN_FLOOR if row.result is not None and row.result.dry_run else FLEET_FLOOR


def outliers(rates: list[dict[str, float]], *, floor: float = FLEET_FLOOR) -> dict[int, Outlier]:
    """By position each slow node with its worst rate; a rate is looked at where four nodes have it."""
    keys = sorted({key for one in rates for key in one})
    limit = max(FLEET_Z, float(scipy_stats.norm.isf(_FALSE_ALARMS / max(len(keys) * len(rates), 1))))
    found: dict[int, Outlier] = {}
    for key in keys:
        members = [at for at, one in enumerate(rates) if key in one]
        if len(members) < _WARN_FROM:
            continue
        logs = np.log([rates[at][key] for at in members])
        centre = float(np.median(logs))
        least = floor * (_COMPUTE_FACTOR if key.startswith("compute") else 1.0)
        scale = max(_MAD_SCALE * float(np.median(np.abs(logs - centre))), least)
        for at, value in zip(members, logs.tolist(), strict=True):
            z = (value - centre) / scale
            if z < -limit and (at not in found or z < found[at].z):
                found[at] = Outlier(key, math.exp(value - centre), z, len(members))
    return found


def _with(row: NodeRow, outlier: Outlier) -> NodeRow:
    """The row with one finding more; a fault that is known by a better name keeps it."""
    assert row.result is not None
    verdict = NodeVerdict.FAIL if outlier.num_nodes >= _FAIL_FROM else NodeVerdict.WARN
    message = (
        f"{outlier.key} is {outlier.ratio:.2f}x the median of {outlier.num_nodes} alike nodes "
        f"(robust z {outlier.z:.1f})"
    )
    findings = [*row.result.findings, Finding(verdict, "E208", "", message, "fleet")]
    new, code, short, reason = choose_headline(findings)
    result = msgspec.structs.replace(
        row.result, findings=findings, verdict=new, code=code, reason_short=short, reason=reason
    )
    return NodeRow(row.name, new, code, short, reason, row.job_id, result)


_BY_STATE = {
    "TIMEOUT": (NodeVerdict.HANG, "E603", "the job ran into its time limit"),
    "NODE_FAIL": (NodeVerdict.NO_RESULT, "E604", "the node failed while it was validated"),
    "BOOT_FAIL": (NodeVerdict.NO_RESULT, "E604", "the node did not boot"),
    "OUT_OF_MEMORY": (NodeVerdict.SETUP, "U904", "the job was out of memory"),
    "CANCELLED": (NodeVerdict.SKIPPED, "U905", "the job was cancelled"),
    "PREEMPTED": (NodeVerdict.SKIPPED, "U906", "the job was preempted"),
    "DEADLINE": (NodeVerdict.SKIPPED, "U907", "its turn did not come before the deadline"),
}


def _without_result(state: str | None) -> tuple[NodeVerdict, str, str]:
    """What a job's state says of its node; any but the ends that Slurm knows is a job that may yet have a result."""
    if state is not None and state not in ENDED:
        return NodeVerdict.INCONCLUSIVE, "U916", f"its job is not over yet ({state})"
    ended = f"the job ended ({state or 'unknown'}) without a verdict"
    return _BY_STATE.get(state or "", (NodeVerdict.NO_RESULT, "U901", ended))


def row_of(name: str, job_id: str | None, state: str | None, result: Node | None, *, began: bool = True) -> NodeRow:
    """A node by its file, or where that is missing or not complete by Slurm's word for its job.

    ``began``: whether the job came as far as to run this program, without which nothing is known of the node.
    """
    if result is not None and result.complete and state != "OUT_OF_MEMORY":
        return NodeRow(name, result.verdict, result.code, result.reason_short, result.reason, job_id, result)
    verdict, code, why = _without_result(state)
    if not began and code == "U901":
        verdict, code, why = (
            NodeVerdict.SETUP,
            "U918",
            f"the job ended ({state or 'unknown'}) before the validation began",
        )
    sure = select_certain_faults(result.findings) if result is not None else []
    if sure:  # no end of the job takes it back
        verdict, code, short, found = choose_headline(sure)
        return NodeRow(name, verdict, code, short, f"{found}; {why}", job_id, result)
    if result is not None:
        why = f"{why}; {result.reason}"
    place = f" in {result.reason.rpartition('phase ')[2]}" if result is not None and "in phase" in result.reason else ""
    return NodeRow(name, verdict, code, f"{code}{place}", why, job_id, result)


def skipped(name: str, code: str, why: str) -> NodeRow:
    """A node that no job was submitted for."""
    verdict = {"U909": NodeVerdict.NO_RESULT, "U917": NodeVerdict.SETUP}.get(code, NodeVerdict.SKIPPED)
    return NodeRow(name, verdict, code, code, why)
