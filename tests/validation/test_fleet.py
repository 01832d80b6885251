"""The comparison of a node with its fleet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from launcher.validation import node as node_files
from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge import fleet, outliers
from launcher.validation.judge.fleet import make_row
from launcher.validation.run import node_reports
from launcher.validation.run.folder import Order, ValidationFolder
from tests import nodes
from tests.builders import Command
from tests.nodes import (
    A_TWENTIETH_SLOWER,
    GIGABYTES,
    judge_node,
    rates,
    replace,
    row,
    suite_run,
)


def on_paper(slow: set[int], *, count: int = 64, seed: int = 0) -> list[dict[str, list[float]]]:
    """Rates of nodes that differ by 1 % (standard deviation, overall and by test); slow nodes reach 0.9."""
    generator = np.random.default_rng(seed)
    nodewise = generator.normal(0, 0.007, (count, 1)) + generator.normal(0, 0.007, (count, 8))
    factors = np.exp(nodewise) * np.where(np.isin(np.arange(count), list(slow)), 0.9, 1.0)[:, None]
    keys = [*GIGABYTES, "all_to_all 64 MiB", "all_to_all 256 MiB", "compute"]
    return [{key: [rate] for key, rate in zip(keys, line, strict=True)} for line in (300 * factors).tolist()]


def test_three_nodes_of_64_that_are_a_tenth_slower_are_found_and_healthy_nodes_are_rarely_flagged(spec: Spec):
    """In 1,000 seeds, all three are found each time, and at most 1.1 % of the fleets have a false alarm."""
    false_alarms = 0
    for seed in range(1000):
        slow = {seed % 64, (seed * 7 + 1) % 64, (seed * 13 + 2) % 64}
        found = set(outliers.find_outliers(on_paper(slow, seed=seed)))
        assert found >= slow
        false_alarms += bool(found - slow)
    assert false_alarms <= 11


def fleet_folder(path: Path, names: list[str], *, slow: set[str], twice: bool, day: str = "2026-11-24") -> Path:
    """A finished validation of these nodes, with a second suite run or without."""
    folder = ValidationFolder.create(path.parent, path)
    folder.note(Order(1, 0.0, ["deepep-validate"], nodes.spec(), names))
    for name in names:
        node_rates = rates(scale=A_TWENTIETH_SLOWER if name in slow else 1.0, seed=int(name[3:]))
        runs = [suite_run(rates=node_rates, number=number) for number in range(1 + twice)]
        node = judge_node(*runs, spec=nodes.spec(), name=name)
        node_files.write(folder.node_folder(name), replace(node, started=f"{day}T10:00:00Z"))
    return folder.path


NAMES = [f"gpu{number:03}" for number in range(64)]
SLOW = {NAMES[3], NAMES[17], NAMES[42]}


def test_a_slow_node_of_a_fleet_is_found_in_its_file_and_fails_the_command(run_module: Command, tmp_path: Path):
    folder = fleet_folder(tmp_path / "fleet", NAMES, slow=SLOW, twice=False)
    done = run_module("launcher.validate", f"run={folder}")
    assert done.returncode == 2, done.stderr
    summary = json.loads((folder / "NODES.json").read_bytes())
    assert {one["node"] for one in summary["nodes"] if one["code"] == "E208"} == SLOW
    assert {one["verdict"] for one in summary["nodes"] if one["node"] not in SLOW} == {"PASS"}
    assert [one["node"] for one in summary["nodes"][:3]] == sorted(SLOW)
    assert done.stdout.startswith("DEEPEP CRITICAL - gpu003 FAIL E208 0.95x, gpu017")
    assert "scontrol" not in (folder / "NODES.md").read_text()  # seen once


def test_a_fleet_finding_that_a_later_validation_of_the_node_alone_repeats_is_a_reason_to_drain(
    run_module: Command, tmp_path: Path
):
    first = fleet_folder(tmp_path / "first", NAMES, slow=SLOW, twice=False)
    again = fleet_folder(tmp_path / "again", ["gpu003", "gpu004"], slow=SLOW, twice=False, day="2026-11-25")
    done = run_module("launcher.validate", f"report={again}", f"earlier={first}")
    assert done.stdout.startswith("DEEPEP CRITICAL - gpu003 FAIL E210 0.95x |"), done.stderr
    report = (again / "NODES.md").read_text()
    assert "scontrol update NodeName=gpu003 State=DRAIN Reason='EPV:E210 0.95x [20261124 run again]'" in report
    assert "64 nodes, 1 slow, 62 of them validated earlier" in report
    assert "gpu004 State=DRAIN" not in report
    assert 'deepep_node_drain{node="gpu003"} 1.0' in (again / "nodes.prom").read_text()


def test_a_fleet_finding_is_repeated_by_the_second_suite_run_or_by_another_validation_only(spec: Spec):
    def judge(*, second: float | None, earlier: float | None, started: str = "2026-11-23T10:00:00Z") -> tuple[str, str]:
        others = [row(judge_node(suite_run(rates=rates(seed=at)), spec=spec, name=f"n{at}")) for at in range(1, 8)]
        scales = [A_TWENTIETH_SLOWER] + ([{"dispatch": second}] if second else [])
        runs = [suite_run(rates=rates(scale=scale), number=at) for at, scale in enumerate(scales)]
        node = row(judge_node(*runs, spec=spec, name="n0"))
        before = judge_node(suite_run(rates=rates(scale={"dispatch": earlier or 1.0})), spec=spec, name="n0")
        past = [row(replace(before, started=started)), *others] if earlier else []
        first = fleet.judge_fleet([node, *others], earlier=past).rows[0]
        return first.code, first.drain_reason

    assert judge(second=None, earlier=None) == ("E208", "")
    assert judge(second=1.0, earlier=1.0) == ("E208", "")
    assert judge(second=0.95, earlier=None) == ("E210", "E210 0.95x")
    assert judge(second=None, earlier=0.95) == ("E210", "E210 0.95x")
    assert judge(second=None, earlier=0.95, started=judge_node(suite_run(), spec=spec).started) == ("E208", "")


def test_an_earlier_validation_must_be_another_one(run_module: Command, tmp_path: Path):
    folder = fleet_folder(tmp_path / "fleet", NAMES[:2], slow=set(), twice=False)
    for earlier, message in ((folder, "is the validation that is reported"), (tmp_path, "is not a validation folder")):
        done = run_module("launcher.validate", f"report={folder}", f"earlier={earlier}")
        assert done.returncode == 64
        assert message in done.stderr


def gemms(generator: np.random.Generator, slow: dict[int, float], *, count: int = 16) -> list[dict[str, list[float]]]:
    """GEMMs of nodes with 8 GPUs that differ by 2 % inside, and by 1 % from node to node."""
    logs = generator.normal(0, 0.01, (count, 1)) + generator.normal(0, 0.02, (count, 8))
    return [{"compute": (220 * np.exp(line) * slow.get(at, 1.0)).tolist()} for at, line in enumerate(logs)]


def test_the_gpus_of_a_node_are_pooled_for_gemms_so_that_eight_percent_show():
    generator = np.random.default_rng(0)
    found = [outliers.find_outliers(gemms(generator, {3: 0.92})) for _ in range(200)]
    assert sum(3 in one for one in found) >= 190
    assert sum(bool(set(one) - {3}) for one in found) <= 3


def test_a_small_fleet_warns_and_a_smaller_one_is_not_judged(spec: Spec):
    def verdicts(count: int) -> tuple[NodeVerdict, str]:
        suite_runs = [
            suite_run(rates=rates(scale=A_TWENTIETH_SLOWER if number == 0 else 1.0, seed=number))
            for number in range(count)
        ]
        judgement = fleet.judge_fleet(
            [row(judge_node(one, spec=spec, name=f"n{at}")) for at, one in enumerate(suite_runs)]
        )
        return judgement.rows[0].verdict, next(iter(judgement.layer.values()))

    assert verdicts(8)[0] is NodeVerdict.FAIL
    assert verdicts(4)[0] is NodeVerdict.WARN
    assert verdicts(3) == (NodeVerdict.PASS, "absent: 3 nodes, 4 are needed")


def test_unlike_nodes_are_not_compared_and_the_report_shows_them(spec: Spec):
    newer = replace(nodes.ENVIRONMENT, driver="999")
    members = [judge_node(suite_run(rates=rates(seed=at)), spec=spec, name=f"n{at}") for at in range(4)]
    odd = judge_node(suite_run(rates=rates(scale=A_TWENTIETH_SLOWER), environment=newer), spec=spec, name="odd")
    judgement = fleet.judge_fleet([row(one) for one in (*members, odd)])
    assert all(one.verdict is NodeVerdict.PASS for one in judgement.rows)
    assert "Nodes differ in GPU, links, driver or versions" in node_reports.markdown(judgement, run="r", when="now")


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
def test_a_node_without_a_file_is_judged_by_the_state_of_its_job(state: str | None, expected: tuple[str, str]):
    node_row = make_row("gpu1", "7", state, None)
    assert (node_row.verdict.value, node_row.code) == expected


def test_a_job_that_ended_before_validating_is_setup_unless_slurm_blames_the_node():
    for state, expected in (
        ("FAILED", ("SETUP", "U918")),
        (None, ("SETUP", "U918")),
        ("NODE_FAIL", ("NO_RESULT", "E604")),
    ):
        node_row = make_row("gpu1", "7", state, None, began=False)
        assert (node_row.verdict.value, node_row.code) == expected


def test_every_group_of_a_fleet_has_a_result_and_is_compared_only_with_itself(spec: Spec):
    newer = replace(nodes.ENVIRONMENT, driver="999")
    old = [judge_node(suite_run(rates=rates(seed=at)), spec=spec, name=f"n{at}") for at in range(4)]
    new = [
        judge_node(suite_run(rates=rates(scale=0.8, seed=at), environment=newer), spec=spec, name=f"m{at}")
        for at in range(2)
    ]
    judgement = fleet.judge_fleet([row(one) for one in (*old, *new)])
    assert sorted(judgement.layer.values()) == ["absent: 2 nodes, 4 are needed", "judged: 4 nodes, 0 slow"]
    rows = [line for line in node_reports.markdown(judgement, run="r", when="now").splitlines() if "| dispatch" in line]
    assert len(rows) == 6
    assert all(re.search(r"\| (0\.99|1\.0[01])x \|", line) for line in rows), rows


def test_an_unfinished_run_is_unknown_and_exports_no_age_to_monitoring(run_module: Command, spec: Spec, tmp_path: Path):
    """Its jobs were recorded as running, and Slurm is not available on this machine."""
    folder = ValidationFolder.create(tmp_path, tmp_path / "unfinished")
    jobs, states = {"gpu1": "11", "gpu2": "12", "gpu3": "13"}, {"11": "COMPLETED", "12": "RUNNING"}
    folder.note(Order(1, 0.0, ["deepep-validate"], spec, list(jobs), jobs=jobs, states=states))
    node_files.write(folder.node_folder("gpu1"), judge_node(suite_run(), spec=spec, name="gpu1"))
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
