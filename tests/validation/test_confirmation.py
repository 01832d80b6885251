"""Unconfirmed faults and jobs that ended early: which of their faults stand and suggest a drain."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import make_row
from launcher.validation.judge.layers import find_certain_faults
from launcher.validation.node import Node, Trouble
from launcher.validation.run import node_reports
from tests import nodes
from tests.nodes import (
    faulty_node,
    fleet_of,
    grown_counters,
    judge_node,
    rates,
    replace,
    suite_run,
    verdict_of,
)


def test_a_node_whose_job_ended_before_its_second_suite_run_is_never_a_drain(spec: Spec):
    cut = replace(faulty_node("gpu1", spec), complete=False, reason="the validation ended in phase pairs")
    judgement = fleet.judge_fleet([make_row("gpu1", "7", "TIMEOUT", cut)])
    assert (judgement.rows[0].verdict, judgement.rows[0].code) == (NodeVerdict.HANG, "E603")
    assert node_reports.drain_lines(judgement, run="r", when="") == []


def interrupted_node(**changes: Any) -> Node:
    """The file of a job that ended in its first suite run, as of its last checkpoint."""
    node = judge_node(suite_run(**changes), spec=nodes.spec(), name="gpu1")
    sure = find_certain_faults(node.suite_runs[0], nodes.spec())
    return replace(node, complete=False, findings=sure, reason="the validation ended in phase speed")


@pytest.mark.parametrize("state", ["PREEMPTED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "RUNNING", None])
def test_a_fault_that_needs_no_confirmation_stands_however_the_job_ended(state: str | None, spec: Spec):
    wrong = interrupted_node(checks={"correctness: combine bf16": "gpu3: 2 of 8158 received tokens are wrong"})
    judgement = fleet.judge_fleet([make_row("gpu1", "7", state, wrong)])
    (node_row,) = judgement.rows
    assert (node_row.verdict, node_row.code, node_row.where) == (NodeVerdict.FAIL, "E301", "gpu3")
    assert "tokens are wrong; " in node_row.reason
    ((drain, _),) = node_reports.drain_lines(judgement, run="r", when="2026-11-24")
    assert "Reason='EPV:E301:gpu3 [" in drain


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": rates(scale={"compute gpu2": 0.71})},
        {"troubles": [Trouble("speed", "crash", "gpu1", "rank 1 was killed by SIGTERM")]},
        {"troubles": [Trouble("speed", "hang", "", "no answer")]},
    ],
)
def test_an_unconfirmed_fault_of_an_ended_job_is_dropped(changes: dict[str, Any], spec: Spec):
    judgement = fleet.judge_fleet([make_row("gpu1", "7", "PREEMPTED", interrupted_node(**changes))])
    assert (judgement.rows[0].verdict, judgement.rows[0].code) == (NodeVerdict.SKIPPED, "U906")
    assert node_reports.drain_lines(judgement, run="r", when="") == []


def test_unconfirmed_and_injected_faults_are_never_a_drain(spec: Spec):
    slow = suite_run(rates=rates(scale={"compute gpu2": 0.71}))
    once = judge_node(slow, spec=replace(spec, confirm=False), name="gpu1")
    assert verdict_of(once) == ("FAIL", "E203")
    injected = replace(faulty_node("gpu1", spec), faults=["slow=9000@2:compute"])
    for node in (once, injected):
        assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []
    judgement = fleet_of(injected, faulty_node("gpu2", spec))
    assert [drain.split()[2] for drain, _ in node_reports.drain_lines(judgement, run="r", when="")] == ["NodeName=gpu2"]
    assert "Faults were injected on purpose." in node_reports.markdown(judgement, run="r", when="")
    written = node_reports.to_json(judgement, run="r", when="", status=2)
    assert written["note"] == "Faults were injected on purpose."
    assert {one["node"]: one["faults"] for one in written["nodes"]} == {"gpu1": ["slow=9000@2:compute"], "gpu2": []}
    assert node_reports.to_json(fleet_of(once), run="r", when="", status=2)["note"] == ""


def test_a_certain_fault_with_an_unconfirmed_one_is_the_reason_to_drain(spec: Spec):
    both = suite_run(rates=rates(scale={"compute gpu2": 0.71}), after=grown_counters(3, ecc_uncorrectable=1))
    judgement = fleet_of(judge_node(both, spec=replace(spec, confirm=False), name="gpu1"))
    ((drain, _),) = node_reports.drain_lines(judgement, run="r", when="2026-11-24")
    assert "Reason='EPV:E401:gpu3 [" in drain


def test_out_of_memory_is_setup_whatever_the_killed_ranks_reported(spec: Spec):
    node_row = make_row("gpu1", "7", "OUT_OF_MEMORY", faulty_node("gpu1", spec))
    assert (node_row.verdict, node_row.code) == (NodeVerdict.SETUP, "U904")
