"""The nodes together: those slower than their fleet, and those without a result; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from launcher.jobs.slurm import ENDED
from launcher.validation.codes import WORST_FIRST, Finding, NodeVerdict
from launcher.validation.judge.findings import select_certain_faults
from launcher.validation.judge.headline import choose_headline, drain_reason
from launcher.validation.judge.outliers import FLEET_FLOOR, MIN_NODES, Outlier, find_outliers, place_rates
from launcher.validation.node import Node

_FAIL_FROM = 8
"""Nodes from which an outlier is a fault. With fewer, the scatter itself is uncertain."""

_DRY_RUN_FLOOR = 0.25
"""Least deviation of ranks without GPUs: processes that share cores scatter by tens of percent."""


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
    def fingerprint(self) -> tuple[object, ...]:
        """Node.fingerprint; empty without a result."""
        return () if self.result is None else self.result.fingerprint

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

        A fault that the fleet showed only once is not a reason: validate that node again.
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


def judge_fleet(rows: list[NodeRow], *, earlier: Sequence[NodeRow] = ()) -> Fleet:
    """The rows with a finding for each node that is slower than its fleet: the same GPUs, links and versions.

    A node is FAIL among 8 or more nodes, WARN among 4 or more. One look at a fleet is no reason to drain (E208). Where
    the second suite run of the node, or an ``earlier`` validation, shows the same rate as slow, it is (E210, FAIL).
    The nodes of ``earlier`` that are not among the rows belong to the fleet, so that one node can be validated again.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if _is_measured(row):
            groups[row.fingerprint].append(index)
    known = [row.result for row in earlier if row.result is not None and _is_measured(row) and not row.result.faults]
    names, before = {row.name for row in rows}, _slow_before(known)
    judged, layer = list(rows), {}
    for fingerprint, indices in sorted(groups.items(), key=lambda item: str(item[0])):
        name = _name_group(fingerprint, groups)
        members = [result for index in indices if (result := rows[index].result) is not None]
        peers = [node for node in known if node.node not in names and node.fingerprint == fingerprint]
        count = count_nodes(len(members) + len(peers))
        if len(members) + len(peers) < MIN_NODES:
            layer[name] = f"absent: {count}, {MIN_NODES} are needed"
            continue
        slow = _judge_group(members, peers, before)
        layer[name] = f"judged: {count}, {len(slow)} slow" + _describe_earlier(peers)
        for position, (outlier, repeated_by) in slow.items():
            judged[indices[position]] = _add_outlier(judged[indices[position]], outlier, repeated_by)
    return Fleet(sorted(judged, key=lambda row: (WORST_FIRST.index(row.verdict), row.name)), layer)


def _is_measured(row: NodeRow) -> bool:
    return row.result is not None and row.result.complete and bool(row.result.rates)


def _describe_earlier(peers: list[Node]) -> str:
    return f", {len(peers)} of them validated earlier" if peers else ""


def _name_group(fingerprint: tuple[object, ...], groups: Iterable[tuple[object, ...]]) -> str:
    """GPU, number and links; also driver and versions if several groups share these."""
    is_unique = sum(other[:3] == fingerprint[:3] for other in groups) == 1
    return ", ".join(str(part) for part in (fingerprint[:3] if is_unique else fingerprint) if part is not None)


def _floor(result: Node) -> float:
    return _DRY_RUN_FLOOR if result.dry_run else FLEET_FLOOR


def _find_slow(nodes: Sequence[Node]) -> dict[int, list[Outlier]]:
    return find_outliers([place_rates(node.rates) for node in nodes], floor=_floor(nodes[0]))


def _find_slow_again(nodes: Sequence[Node]) -> dict[int, list[Outlier]]:
    """The same with the rates of the second suite run of the nodes that have one; only for these."""
    has_second = {index for index, node in enumerate(nodes) if len(node.suite_runs) > 1}
    rates = [node.suite_runs[1].rates if index in has_second else node.rates for index, node in enumerate(nodes)]
    slow = find_outliers([place_rates(one) for one in rates], floor=_floor(nodes[0])) if has_second else {}
    return {index: outliers for index, outliers in slow.items() if index in has_second}


def _slow_before(earlier: Sequence[Node]) -> dict[str, list[tuple[str, str]]]:
    """For each node that was slow in an earlier validation the slow rates, each with the start of that validation."""
    kinds: dict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in earlier:
        kinds[node.fingerprint].append(node)
    slow: dict[str, list[tuple[str, str]]] = {}
    for nodes in kinds.values():
        for position, outliers in _find_slow(nodes).items():
            slow[nodes[position].node] = [(outlier.key, nodes[position].started) for outlier in outliers]
    return slow


def _judge_group(
    members: list[Node], peers: list[Node], before: dict[str, list[tuple[str, str]]]
) -> dict[int, tuple[Outlier, str]]:
    """The worst rate of each slow member, by position, with how it was repeated; a repeated one goes first.

    ``peers``: nodes of the same kind in an earlier validation. ``before``: the rates that were slow there.
    """
    nodes = [*members, *peers]
    again = _find_slow_again(nodes)
    judged = {}
    for position, outliers in _find_slow(nodes).items():
        if position >= len(members):
            continue
        member = members[position]
        in_second = {outlier.key for outlier in again.get(position, [])}
        in_earlier = {key for key, started in before.get(member.node, []) if started != member.started}
        repeated = [outlier for outlier in outliers if outlier.key in in_second | in_earlier]
        worst = (repeated or outliers)[0]
        how = "an earlier validation" if worst.key in in_earlier else "its second suite run"
        judged[position] = (worst, how if repeated else "")
    return judged


def _add_outlier(row: NodeRow, outlier: Outlier, repeated_by: str) -> NodeRow:
    """The row with one more finding; a fault that has a more specific code keeps it."""
    assert row.result is not None
    is_fault = repeated_by or outlier.num_nodes >= _FAIL_FROM
    verdict = NodeVerdict.FAIL if is_fault else NodeVerdict.WARN
    message = (
        f"{outlier.key} is {outlier.ratio:.2f}x the median of {outlier.num_nodes} nodes of its kind "
        f"(robust z {outlier.z:.1f})" + (f", as in {repeated_by}" if repeated_by else "")
    )
    code = "E210" if repeated_by else "E208"
    findings = [*row.result.findings, Finding(verdict, code, "", message, "fleet")]
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
