"""Verdicts as Markdown, JUnit, Prometheus and drain lines, whatever a node is called."""

from __future__ import annotations

import io
import re
import shlex
from datetime import UTC, datetime

import junitparser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.validation.config import Spec
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import make_row
from launcher.validation.run import node_reports
from tests.nodes import (
    HOSTILE,
    attempt,
    faulty,
    fleet_of,
    judged,
    learned,
    replace,
    row,
)


def test_a_confirmed_fault_suggests_a_drain_with_its_undo_line_code_first(spec: Spec):
    found = fleet_of(faulty("gpu017", spec), judged(attempt(), of=spec))
    ((drain, undo),) = node_reports.drain_lines(
        found, run="outputs/20261124-101500-nodes-8f3a", when="2026-11-24 10:15 UTC"
    )
    assert drain == ("scontrol update NodeName=gpu017 State=DRAIN Reason='EPV:E203:gpu2 0.71x [20261124 run 8f3a]'")
    assert undo == "scontrol update NodeName=gpu017 State=RESUME"
    text = node_reports.markdown(
        found, run="outputs/20261124-101500-nodes-8f3a", when="2026-11-24 10:15 UTC", references=learned().entries
    )
    assert "| gpu017 | FAIL | E203 | gpu2 | compute bf16 is 0.71x that of the node's other GPUs | 7 |" in text
    assert re.search(r"\| gpu017 \| dispatch bf16 \| 2\d\d(\.\d)? \| 62% \| 1\.00x \| 1\.00x \|", text)
    assert drain in text
    assert f"# undo: {undo}" in text
    assert "Nothing below was executed." in text


def test_hostile_names_and_reasons_break_no_output(spec: Spec):
    wrong = {"speed: dispatch bf16": f"gpu1: {HOSTILE}"}
    node = judged(attempt(checks=wrong), of=spec, name=HOSTILE)
    found = fleet_of(node)
    text = node_reports.markdown(found, run=HOSTILE, when="now")
    assert "<script>" not in re.sub("`+[^`]*`+|```.*?```", "", text, flags=re.DOTALL)
    assert node_reports.drain_lines(found, run=HOSTILE, when="now") == []  # nobody can be meant by such a name
    named = fleet_of(replace(node, node="gpu1", reason_short=HOSTILE))
    (commands,) = node_reports.drain_lines(named, run=HOSTILE, when="now")
    assert [len(shlex.split(command)) for command in commands] == [5, 4]
    assert not any(set(command) & set("\n\x00\x07") for command in commands)
    suites = junitparser.JUnitXml.fromroot(junitparser.JUnitXml.fromstring(node_reports.junit(found))._elem)
    assert suites.failures == 2
    assert len(node_reports.nagios(found, strict=False).splitlines()) == 1
    families = list(text_string_to_metric_families(node_reports.prometheus(found)))
    assert {sample.labels["node"] for family in families for sample in family.samples} == {HOSTILE}


def test_junit_tells_a_fault_from_what_could_not_run_and_what_was_not_tried(spec: Spec):
    rows = [row(faulty("bad", spec)), row(judged(attempt(), of=spec, name="fine"))]
    rows += [make_row("lost", "9", "NODE_FAIL", None), fleet.make_skipped_row("down", "U908", "Slurm has it down")]
    found = fleet.judge_fleet(rows)
    file = io.BytesIO(node_reports.junit(found).encode())
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromfile(file)}
    counts = {name: (suite.failures, suite.errors, suite.skipped) for name, suite in suites.items()}
    assert counts == {"bad": (1, 0, 0), "fine": (0, 0, 0), "lost": (0, 1, 0), "down": (0, 0, 1)}


def test_prometheus_reads_verdicts_rates_and_the_time(spec: Spec):
    found = fleet_of(faulty("gpu1", spec))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(node_reports.prometheus(found))
        for sample in family.samples
    }
    assert samples["deepep_node_verdict", ("code", "E203"), ("node", "gpu1"), ("verdict", "FAIL")] == 1
    ended = datetime(2026, 11, 24, 10, 5, tzinfo=UTC).timestamp()
    assert samples["deepep_node_last_run_timestamp_seconds", ("node", "gpu1")] == ended
    assert samples["deepep_node_rate", ("node", "gpu1"), ("test", "dispatch bf16")] == pytest.approx(280, rel=0.01)
