"""The nodes together: those slower than their fleet, and those without a result; pure."""

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
from launcher.validation.node import Node

_FAIL_FROM, _WARN_FROM = 8, 4
_FALSE_ALARMS = 0.01
FLEET_Z = 3.5
"""Robust deviations below the median that make an outlier: Iglewicz and Hoaglin, How to Detect and Handle Outliers."""

FLEET_FLOOR = 0.01
"""Least deviation, as a share of the median: among nearly equal nodes a trifle would make an outlier."""

_DRY_RUN_FLOOR = 0.25
"""The same for ranks without GPUs: processes that share cores scatter by tens of percent."""

_COMPUTE_FACTOR = 3.0
"""The floor of GEMMs over the others: good GPUs differ by some percent in GEMMs, at their power cap."""

_MAD_SCALE = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


class NodeRow(msgspec.Struct, frozen=True):
    """One node of the summary. ``result`` is None if the node has no file; then the reason is that of its job."""

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
        for finding in self.result.findings if self.result is not None else []:
            if finding.code == self.code and finding.message in self.reason:
                return finding.where
        return ""

    @property
    def drain_reason(self) -> str:
        """The short reason to drain it, as in NODE.json; empty if there is none.

        A fault that only the fleet shows is not a reason: validate that node again.
        """
        if self.result is None or self.verdict not in (NodeVerdict.FAIL, NodeVerdict.HANG):
            return ""
        return drain_reason(self.result)


class Fleet(msgspec.Struct, frozen=True):
    """Every row, worst first, and the report of the fleet layer for each group of nodes."""

    rows: list[NodeRow]
    layer: dict[str, str]

    @property
    def verdicts(self) -> list[NodeVerdict]:
        """The verdict of every node."""
        return [row.verdict for row in self.rows]

    @property
    def has_injected(self) -> bool:
        """Whether any node had faults injected."""
        return any(row.result is not None and row.result.faults for row in self.rows)

    @property
    def medians(self) -> dict[str, float]:
        """The median of each rate over the nodes that have it."""
        return _medians(self.rows)

    @property
    def medians_by_kind(self) -> dict[tuple[object, ...], dict[str, float]]:
        """The same for each group of nodes with the same GPUs, links and versions, by Node.fingerprint."""
        kinds: dict[tuple[object, ...], list[NodeRow]] = defaultdict(list)
        for row in self.rows:
            if row.result is not None:
                kinds[row.result.fingerprint].append(row)
        return {kind: _medians(rows) for kind, rows in kinds.items()}


def _medians(rows: list[NodeRow]) -> dict[str, float]:
    rates: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key, rate in median_rates(row.result).items():
            rates[key].append(rate)
    return {key: float(np.median(values)) for key, values in rates.items()}


def median_rates(result: Node | None) -> dict[str, float]:
    """A node's rates by key; where GPUs or pairs have one each, their median."""
    medians: dict[str, list[float]] = defaultdict(list)
    for rate in result.rates if result is not None else []:
        medians[rate.key].append(rate.median)
    return {key: float(np.median(values)) for key, values in medians.items()}


def count_nodes(number: int) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} node" if number == 1 else f"{number} nodes"


def judge_fleet(rows: list[NodeRow]) -> Fleet:
    """The rows with a finding for each node that is slower than its fleet: the same GPUs, links and versions.

    One-sided, on the logarithm of each rate: z = log(x / median) / max(1.4826 MAD, floor). A z below the limit is FAIL
    with 8 or more nodes and WARN with 4 or more. The limit grows with the number of values tested (a normal tail;
    Bonferroni at 1 %). Where nodes differ by 1 % in each rate, 1 to 2 % of healthy fleets of 8 to 64 nodes are flagged.
    Where they differ by 2 %, it is 7 % of fleets of 64 and a third of those of 8, whose MAD is itself uncertain. A
    fault that only the fleet shows is therefore never a reason to drain.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.result is not None and row.result.complete and row.result.rates:
            groups[row.result.fingerprint].append(index)
    judged = list(rows)
    layer = {}
    for fingerprint, members in sorted(groups.items(), key=lambda item: str(item[0])):
        name = _name_group(fingerprint, groups)
        if len(members) < _WARN_FROM:
            layer[name] = f"absent: {count_nodes(len(members))}, {_WARN_FROM} are needed"
            continue
        slow = find_outliers([median_rates(rows[index].result) for index in members], floor=_floor(rows[members[0]]))
        layer[name] = f"judged: {count_nodes(len(members))}, {len(slow)} slow"
        for position, outlier in slow.items():
            judged[members[position]] = _add_outlier(judged[members[position]], outlier)
    return Fleet(sorted(judged, key=lambda row: (WORST_FIRST.index(row.verdict), row.name)), layer)


def _name_group(fingerprint: tuple[object, ...], groups: Iterable[tuple[object, ...]]) -> str:
    """GPU, number and links; also driver and versions if several groups share these."""
    is_unique = sum(other[:3] == fingerprint[:3] for other in groups) == 1
    return ", ".join(str(part) for part in (fingerprint[:3] if is_unique else fingerprint) if part is not None)


class Outlier(NamedTuple):
    """The worst rate of a slow node: its key, ratio to the median, robust z, and the number of nodes compared."""

    key: str
    ratio: float
    z: float
    num_nodes: int


def _floor(row: NodeRow) -> float:
    return _DRY_RUN_FLOOR if row.result is not None and row.result.dry_run else FLEET_FLOOR


def find_outliers(rates: list[dict[str, float]], *, floor: float = FLEET_FLOOR) -> dict[int, Outlier]:
    """Each slow node, by position, with its worst rate. A rate is judged where at least four nodes have it."""
    keys = sorted({key for node_rates in rates for key in node_rates})
    limit = max(FLEET_Z, float(scipy_stats.norm.isf(_FALSE_ALARMS / max(len(keys) * len(rates), 1))))
    worst: dict[int, Outlier] = {}
    for key in keys:
        members = [index for index, node_rates in enumerate(rates) if key in node_rates]
        if len(members) < _WARN_FROM:
            continue
        logs = np.log([rates[index][key] for index in members])
        centre = float(np.median(logs))
        least = floor * (_COMPUTE_FACTOR if key.startswith("compute") else 1.0)
        scale = max(_MAD_SCALE * float(np.median(np.abs(logs - centre))), least)
        for index, value in zip(members, logs.tolist(), strict=True):
            z = (value - centre) / scale
            if z < -limit and (index not in worst or z < worst[index].z):
                worst[index] = Outlier(key, math.exp(value - centre), z, len(members))
    return worst


def _add_outlier(row: NodeRow, outlier: Outlier) -> NodeRow:
    """The row with one more finding; a fault that has a more specific code keeps it."""
    assert row.result is not None
    verdict = NodeVerdict.FAIL if outlier.num_nodes >= _FAIL_FROM else NodeVerdict.WARN
    message = (
        f"{outlier.key} is {outlier.ratio:.2f}x the median of {outlier.num_nodes} nodes of its kind "
        f"(robust z {outlier.z:.1f})"
    )
    findings = [*row.result.findings, Finding(verdict, "E208", "", message, "fleet")]
    headline = choose_headline(findings)
    result = msgspec.structs.replace(
        row.result,
        findings=findings,
        verdict=headline.verdict,
        code=headline.code,
        reason_short=headline.short,
        reason=headline.reason,
    )
    return NodeRow(row.name, *headline, row.job_id, result)


_STATE_VERDICTS = {
    "TIMEOUT": (NodeVerdict.HANG, "E603", "the job reached its time limit"),
    "NODE_FAIL": (NodeVerdict.NO_RESULT, "E604", "the node failed during the validation"),
    "BOOT_FAIL": (NodeVerdict.NO_RESULT, "E604", "the node did not boot"),
    "OUT_OF_MEMORY": (NodeVerdict.SETUP, "U904", "the job ran out of memory"),
    "CANCELLED": (NodeVerdict.SKIPPED, "U905", "the job was cancelled"),
    "PREEMPTED": (NodeVerdict.SKIPPED, "U906", "the job was preempted"),
    "DEADLINE": (NodeVerdict.SKIPPED, "U907", "the job did not begin before the deadline"),
}


def _judge_state(state: str | None) -> tuple[NodeVerdict, str, str]:
    """Verdict, code and reason of a node without a result, by its job's state.

    A state that is not one of Slurm's final ones means that the job may still leave a result.
    """
    if state is not None and state not in ENDED:
        return NodeVerdict.INCONCLUSIVE, "U916", f"the job has not ended ({state})"
    ended = f"the job ended ({state or 'unknown'}) without a verdict"
    return _STATE_VERDICTS.get(state or "", (NodeVerdict.NO_RESULT, "U901", ended))


def make_row(name: str, job_id: str | None, state: str | None, result: Node | None, *, began: bool = True) -> NodeRow:
    """The row of a node: by its file, or by the state of its job if the file is missing or incomplete.

    ``began``: whether the job got as far as running this program; otherwise nothing is known of the node.
    """
    if result is not None and result.complete and state != "OUT_OF_MEMORY":
        return NodeRow(name, result.verdict, result.code, result.reason_short, result.reason, job_id, result)
    verdict, code, why = _judge_state(state)
    if not began and code == "U901":
        verdict, code = NodeVerdict.SETUP, "U918"
        why = f"the job ended ({state or 'unknown'}) before the validation began"
    if result is None:
        return NodeRow(name, verdict, code, code, why, job_id)
    faults = select_certain_faults(result.findings)
    if faults:  # they are certain, however the job ended
        headline = choose_headline(faults)
        return NodeRow(name, *headline._replace(reason=f"{headline.reason}; {why}"), job_id, result)
    phase = result.reason.rpartition("in phase ")
    short = f"{code} in {phase[2]}" if phase[1] else code
    return NodeRow(name, verdict, code, short, f"{why}; {result.reason}", job_id, result)


def make_skipped_row(name: str, code: str, why: str) -> NodeRow:
    """The row of a node that no job was submitted for."""
    verdict = {"U909": NodeVerdict.NO_RESULT, "U917": NodeVerdict.SETUP}.get(code, NodeVerdict.SKIPPED)
    return NodeRow(name, verdict, code, code, why)
