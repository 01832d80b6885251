"""The nodes together, and what is left of them for people and for monitoring."""

from __future__ import annotations

import io
import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import junitparser
import nodes
import numpy as np
import pytest
from builders import ROOT, Command
from nodes import (
    A_TENTH_SLOWER,
    GIGABYTES,
    HOSTILE,
    attempt,
    faulty,
    fleet_of,
    judged,
    learned,
    rates,
    replace,
    row,
)
from prometheus_client.parser import text_string_to_metric_families

from launcher.errors import UserError
from launcher.jobs.slurm import JobState
from launcher.validation import codes
from launcher.validation import node as node_files
from launcher.validation.codes import MEANINGS, NodeVerdict, Status, combined, exit_status
from launcher.validation.config import REMOVED_KEYS, Spec, refuse_removed
from launcher.validation.judge import fleet, physics
from launcher.validation.judge import reference as by_reference
from launcher.validation.judge.fleet import make_row
from launcher.validation.measure import tokens
from launcher.validation.run import node_reports
from launcher.validation.run.folder import Order, ValidationFolder
from launcher.validation.run.lanes import STUCK_LOOKS, Lanes


@pytest.fixture(scope="session")
def spec() -> Spec:
    return nodes.spec()


# ---- fleet


def on_paper(slow: set[int], *, count: int = 64, seed: int = 0) -> list[dict[str, float]]:
    """Rates of nodes that differ by 1 % (a standard deviation, together and by test); the slow ones reach 0.9."""
    generator = np.random.default_rng(seed)
    nodewise = generator.normal(0, 0.007, (count, 1)) + generator.normal(0, 0.007, (count, 8))
    factors = np.exp(nodewise) * np.where(np.isin(np.arange(count), list(slow)), 0.9, 1.0)[:, None]
    keys = [*GIGABYTES, "all_to_all 64 MiB", "all_to_all 256 MiB", "compute"]
    return [dict(zip(keys, line, strict=True)) for line in (300 * factors).tolist()]


def test_of_64_nodes_the_three_that_are_a_tenth_slower_are_found_and_healthy_fleets_are_left_alone(spec: Spec):
    """In 1,000 seeds: all three each time, a healthy node wrongly in at most 1.1 % of the fleets."""
    false_alarms = 0
    for seed in range(1000):
        slow = {seed % 64, (seed * 7 + 1) % 64, (seed * 13 + 2) % 64}
        found = set(fleet.find_outliers(on_paper(slow, seed=seed)))
        assert found >= slow
        false_alarms += bool(found - slow)
    assert false_alarms <= 11


def test_a_slow_node_of_a_fleet_is_found_in_its_file_and_fails_the_command(
    run_module: Command, spec: Spec, tmp_path: Path
):
    folder = ValidationFolder.create(tmp_path, tmp_path / "fleet")
    names = [f"gpu{number:03}" for number in range(64)]
    folder.note(Order(1, 0.0, ["deepep-validate"], spec, names))
    slow = {names[3], names[17], names[42]}
    for number, name in enumerate(names):
        own = rates(scale=A_TENTH_SLOWER if name in slow else 1.0, seed=number)
        node_files.write(folder.of(name), judged(attempt(rates=own), attempt(rates=own, number=1), of=spec, name=name))
    done = run_module("launcher.validate", f"run={folder.path}")
    assert done.returncode == 2, done.stderr
    summary = json.loads((folder.path / "NODES.json").read_bytes())
    assert {one["node"] for one in summary["nodes"] if one["code"] == "E208"} == slow
    assert {one["verdict"] for one in summary["nodes"] if one["node"] not in slow} == {"PASS"}
    assert [one["node"] for one in summary["nodes"][:3]] == sorted(slow)
    assert done.stdout.startswith("DEEPEP CRITICAL - gpu003 FAIL E208 0.90x, gpu017")
    assert "scontrol" not in (folder.path / "NODES.md").read_text()  # seen once only


def test_a_small_fleet_warns_and_a_smaller_one_is_not_judged(spec: Spec):
    def verdicts(count: int) -> tuple[NodeVerdict, str]:
        of = [
            attempt(rates=rates(scale=A_TENTH_SLOWER if number == 0 else 1.0, seed=number)) for number in range(count)
        ]
        found = fleet.judge_fleet([row(judged(one, of=spec, name=f"n{at}")) for at, one in enumerate(of)])
        return found.rows[0].verdict, next(iter(found.layer.values()))

    assert verdicts(8)[0] is NodeVerdict.FAIL
    assert verdicts(4)[0] is NodeVerdict.WARN
    assert verdicts(3) == (NodeVerdict.PASS, "absent: 3 nodes, 4 are needed")


def test_unlike_nodes_are_not_compared_and_the_report_shows_them(spec: Spec):
    newer = replace(nodes.ENVIRONMENT, driver="999")
    members = [judged(attempt(rates=rates(seed=at)), of=spec, name=f"n{at}") for at in range(4)]
    odd = judged(attempt(rates=rates(scale=A_TENTH_SLOWER), environment=newer), of=spec, name="odd")
    found = fleet.judge_fleet([row(one) for one in (*members, odd)])
    assert all(one.verdict is NodeVerdict.PASS for one in found.rows)
    assert "Nodes differ in GPU, links, driver or versions" in node_reports.markdown(found, run="r", when="now")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("TIMEOUT", ("HANG", "E603")),
        ("NODE_FAIL", ("NO_RESULT", "E604")),
        ("OUT_OF_MEMORY", ("SETUP", "U904")),
        ("CANCELLED", ("SKIPPED", "U905")),
        ("PREEMPTED", ("SKIPPED", "U906")),
        ("DEADLINE", ("SKIPPED", "U907")),
        ("COMPLETED", ("NO_RESULT", "U901")),
        ("FAILED", ("NO_RESULT", "U901")),
        (None, ("NO_RESULT", "U901")),
        ("RUNNING", ("INCONCLUSIVE", "U916")),
        ("PENDING", ("INCONCLUSIVE", "U916")),
        ("COMPLETING", ("INCONCLUSIVE", "U916")),
        ("CONFIGURING", ("INCONCLUSIVE", "U916")),
        ("SUSPENDED", ("INCONCLUSIVE", "U916")),
        ("Slurm does not answer", ("INCONCLUSIVE", "U916")),
    ],
)
def test_a_node_without_a_file_gets_what_slurm_says_of_its_job(state: str | None, expected: tuple[str, str]):
    found = make_row("gpu1", "7", state, None)
    assert (found.verdict.value, found.code) == expected


def test_a_job_that_never_came_to_validate_tells_nothing_of_its_node_unless_slurm_does():
    for state, expected in (
        ("FAILED", ("SETUP", "U918")),
        (None, ("SETUP", "U918")),
        ("NODE_FAIL", ("NO_RESULT", "E604")),
    ):
        found = make_row("gpu1", "7", state, None, began=False)
        assert (found.verdict.value, found.code) == expected


def test_every_group_of_a_fleet_says_what_became_of_it_and_is_compared_with_itself(spec: Spec):
    newer = replace(nodes.ENVIRONMENT, driver="999")
    old = [judged(attempt(rates=rates(seed=at)), of=spec, name=f"n{at}") for at in range(4)]
    new = [
        judged(attempt(rates=rates(scale=0.8, seed=at), environment=newer), of=spec, name=f"m{at}") for at in range(2)
    ]
    found = fleet.judge_fleet([row(one) for one in (*old, *new)])
    assert sorted(found.layer.values()) == ["absent: 2 nodes, 4 are needed", "judged: 4 nodes, 0 slow"]
    said_of = [line for line in node_reports.markdown(found, run="r", when="now").splitlines() if "| dispatch" in line]
    assert len(said_of) == 6
    assert all(re.search(r"\| (0\.99|1\.0[01])x \|", line) for line in said_of), said_of


def test_an_unfinished_run_is_unknown_and_tells_monitoring_no_age(run_module: Command, spec: Spec, tmp_path: Path):
    """Its jobs were noted as running, and on this machine nobody can ask Slurm how they are."""
    folder = ValidationFolder.create(tmp_path, tmp_path / "unfinished")
    jobs, states = {"gpu1": "11", "gpu2": "12", "gpu3": "13"}, {"11": "COMPLETED", "12": "RUNNING"}
    folder.note(Order(1, 0.0, ["deepep-validate"], spec, list(jobs), jobs=jobs, states=states))
    node_files.write(folder.of("gpu1"), judged(attempt(), of=spec, name="gpu1"))
    done = run_module("launcher.validate", f"report={folder.path}")
    assert done.returncode == 3, done.stderr
    summary = json.loads((folder.path / "NODES.json").read_bytes())
    assert {one["node"]: (one["verdict"], one["code"]) for one in summary["nodes"]} == {
        "gpu1": ("PASS", ""),
        "gpu2": ("INCONCLUSIVE", "U916"),
        "gpu3": ("INCONCLUSIVE", "U916"),
    }
    reasons = {one["node"]: one["reason"] for one in summary["nodes"]}
    assert reasons["gpu2"] == "the job has not ended (RUNNING)"
    ages = re.findall(r'last_run_timestamp_seconds\{node="(\w+)"', (folder.path / "nodes.prom").read_text())
    assert ages == ["gpu1"]


# ---- lanes


def test_a_job_that_heads_its_lane_for_several_looks_is_stuck_where_others_wait_behind_it():
    jobs = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    found = Lanes({"a": 0, "b": 1, "c": 0, "d": 1, "e": 2})
    waits = {
        "1": JobState("PENDING", "", "Resources"),
        "2": JobState("RUNNING", "b"),
        "3": JobState("PENDING", "", "Dependency"),
        "4": JobState("PENDING", "", "Dependency"),
        "5": JobState("PENDING", "", "Priority"),  # nobody is behind it
    }
    begins = waits | {"1": JobState("RUNNING", "a")}
    for _ in range(STUCK_LOOKS - 1):
        assert found.stuck(jobs, waits) == {}
    assert found.stuck(jobs, begins) == {}  # and is counted anew
    looks = [found.stuck(jobs, waits) for _ in range(2 * STUCK_LOOKS)]
    assert [at for at, one in enumerate(looks, 1) if one] == [STUCK_LOOKS, 2 * STUCK_LOOKS]
    assert looks[-1] == {"a": {"c"}}


# ---- keys of earlier versions


def test_a_removed_key_is_refused_with_the_value_of_its_constant():
    values = {
        "block_iterations": tokens.BLOCK_ITERATIONS,
        "thresholds.dip": physics.DIP,
        "thresholds.fleet_floor": fleet.FLEET_FLOOR,
        "thresholds.fleet_z": fleet.FLEET_Z,
        "thresholds.shape": list(by_reference.TAIL),
    }
    assert {key: json.loads(value) for key, value in REMOVED_KEYS.items()} == values
    for key, value in REMOVED_KEYS.items():
        with pytest.raises(UserError, match=re.escape(f"{key} is no longer an option (it is fixed at {value})")):
            refuse_removed([f"{key}=1"])
    refuse_removed(["thresholds.variation=0.05", "blocks=9"])


# ---- outputs


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


@pytest.mark.parametrize(
    ("verdicts", "strict", "status"),
    [
        (["PASS", "WARN", "SKIPPED"], False, 0),
        (["PASS", "WARN"], True, 1),
        (["FAIL", "SETUP"], False, 2),
        (["HANG"], False, 2),
        (["NO_RESULT", "PASS"], False, 2),
        (["SETUP", "PASS"], False, 3),
        (["INCONCLUSIVE", "WARN"], True, 3),
        (["SKIPPED"], False, 3),
        ([], False, 3),
    ],
)
def test_the_exit_status_is_that_of_a_nagios_plugin(verdicts: list[str], *, strict: bool, status: int):
    assert exit_status([NodeVerdict(one) for one in verdicts], strict=strict) == status


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0, 3, 2], 2),
        ([1, 3, 0], 3),
        ([0, 1], 1),
        ([0, 0], 0),
        ([64, 64], 64),
        ([0, 64], 3),
        ([2, 64], 2),
        ([], 0),
    ],
)
def test_of_several_validations_the_worst_known_counts_before_what_is_unknown(statuses: list[int], expected: int):
    assert combined([Status(one) for one in statuses]) == expected


def test_every_code_that_the_program_can_say_has_a_meaning_and_the_guide_lists_them():
    sources = " ".join(file.read_text() for file in (ROOT / "launcher" / "validation").rglob("*.py"))
    assert set(re.findall(r"\b[EU]\d{3}\b", sources)) == set(MEANINGS)
    guide = (ROOT / "docs" / "ADMIN.md").read_text()
    assert codes.codes_table() in guide
