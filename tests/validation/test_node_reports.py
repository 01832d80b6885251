"""Verdicts as Markdown, JUnit, Prometheus and drain lines, with hostile names too."""

from __future__ import annotations

import io
import re
import shlex
from datetime import UTC, datetime

import junitparser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.validation.codes import Status
from launcher.validation.config import Spec
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import make_row
from launcher.validation.run import node_reports
from tests.nodes import (
    HOSTILE,
    faulty_node,
    fleet_of,
    judge_node,
    learn_reference,
    replace,
    row,
    suite_run,
)


def test_a_confirmed_fault_suggests_a_drain_with_its_undo_line_code_first(spec: Spec):
    judgement = fleet_of(faulty_node("gpu017", spec), judge_node(suite_run(), spec=spec))
    ((drain, undo),) = node_reports.drain_lines(
        judgement, run="outputs/20261124-101500-nodes-8f3a", when="2026-11-24 10:15 UTC"
    )
    assert drain == ("scontrol update NodeName=gpu017 State=DRAIN Reason='EPV:E203:gpu2 0.71x [20261124 run 8f3a]'")
    assert undo == "scontrol update NodeName=gpu017 State=RESUME"
    text = node_reports.markdown(
        judgement,
        run="outputs/20261124-101500-nodes-8f3a",
        when="2026-11-24 10:15 UTC",
        references=learn_reference().entries,
    )
    assert "| gpu017 | FAIL | E203 | gpu2 | compute bf16 is 0.71x that of the node's other GPUs | 7 |" in text
    assert re.search(r"\| gpu017 \| dispatch bf16 \| 2\d\d(\.\d)? \| 62% \| 1\.00x \| 1\.00x \|", text)
    assert drain in text
    assert f"# undo: {undo}" in text
    assert "Nothing below was executed." in text


def test_hostile_names_and_reasons_do_not_break_any_output(spec: Spec):
    wrong = {"speed: dispatch bf16": f"gpu1: {HOSTILE}"}
    node = judge_node(suite_run(checks=wrong), spec=spec, name=HOSTILE)
    judgement = fleet_of(node)
    text = node_reports.markdown(judgement, run=HOSTILE, when="now")
    assert "<script>" not in re.sub("`+[^`]*`+|```.*?```", "", text, flags=re.DOTALL)
    assert node_reports.drain_lines(judgement, run=HOSTILE, when="now") == []  # such a name cannot be drained
    named = fleet_of(replace(node, node="gpu1", reason_short=HOSTILE))
    (commands,) = node_reports.drain_lines(named, run=HOSTILE, when="now")
    assert [len(shlex.split(command)) for command in commands] == [5, 4]
    assert not any(set(command) & set("\n\x00\x07") for command in commands)
    suites = junitparser.JUnitXml.fromroot(junitparser.JUnitXml.fromstring(node_reports.junit(judgement))._elem)
    assert suites.failures == 2
    assert len(node_reports.nagios(judgement, status=Status.CRITICAL).splitlines()) == 1
    families = list(text_string_to_metric_families(node_reports.prometheus(judgement)))
    assert {sample.labels["node"] for family in families for sample in family.samples} == {HOSTILE}


def test_junit_distinguishes_faults_errors_and_skipped_nodes(spec: Spec):
    rows = [row(faulty_node("bad", spec)), row(judge_node(suite_run(), spec=spec, name="fine"))]
    rows += [make_row("lost", "9", "NODE_FAIL", None), fleet.make_skipped_row("down", "U908", "Slurm has it down")]
    judgement = fleet.judge_fleet(rows)
    file = io.BytesIO(node_reports.junit(judgement).encode())
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromfile(file)}
    counts = {name: (suite.failures, suite.errors, suite.skipped) for name, suite in suites.items()}
    assert counts == {"bad": (1, 0, 0), "fine": (0, 0, 0), "lost": (0, 1, 0), "down": (0, 0, 1)}


def test_prometheus_reads_verdicts_rates_and_the_time(spec: Spec):
    judgement = fleet_of(faulty_node("gpu1", spec))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(node_reports.prometheus(judgement))
        for sample in family.samples
    }
    assert samples["deepep_node_verdict", ("code", "E203"), ("node", "gpu1"), ("verdict", "FAIL")] == 1
    ended = datetime(2026, 11, 24, 10, 5, tzinfo=UTC).timestamp()
    assert samples["deepep_node_last_run_timestamp_seconds", ("node", "gpu1")] == ended
    assert samples["deepep_node_rate", ("node", "gpu1"), ("test", "dispatch bf16")] == pytest.approx(280, rel=0.01)
