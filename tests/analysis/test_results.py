"""Counts, flags and environments of a run."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.records import (
    GpuState,
    Line,
    Measured,
    Op,
    Record,
    Role,
    SelfCheck,
    Telemetry,
)
from launcher import text as markdown
from launcher.analysis.results import environment_differences
from launcher.report import results_json
from launcher.store.records_file import Damaged
from launcher.store.table import run_records
from tests.analysis.runs import LINES, PLAN, build, mixed_environments, valid, with_final
from tests.builders import (
    ENVIRONMENT,
    HOST,
    SELF_CHECK,
    TRAFFIC,
    failed,
    is_cell,
    markdown_of,
    noisy,
    record,
    time_of,
)

fates = st.lists(
    st.sampled_from(["measured", "failed", "missing", "impossible", "twice", "failed, then measured"]),
    min_size=len(PLAN.every_point),
    max_size=len(PLAN.every_point),
)


def lines_of(fate_of: list[str]) -> list[Line]:
    lines: list[Line] = [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC]
    for number, (planned, fate) in enumerate(zip(PLAN.every_point, fate_of, strict=True)):
        good = noisy(time_of(planned.point))
        outcomes: dict[str, list[Any]] = {
            "measured": [good],
            "failed": [failed()],
            "missing": [],
            "impossible": [noisy(0.01)],
            "twice": [good, good],
            "failed, then measured": [failed(), good],
        }
        lines += [
            record(planned, outcome, sequence=10 * number + repetition, started=1000.0 + number)
            for repetition, outcome in enumerate(outcomes[fate])
        ]
    return lines


@given(fates)
@example(["missing"] * len(PLAN.every_point))
@example(["failed"] * len(PLAN.every_point))
@example(["impossible"] * len(PLAN.every_point))
def test_planned_is_measured_plus_failed_plus_missing(fate_of: list[str]) -> None:
    results = build(lines_of(fate_of))
    counts = results.counts
    assert counts.planned == len(PLAN.every_point) == counts.measured + counts.failed + counts.missing
    assert counts.missing == fate_of.count("missing")
    roles_after_failure = [
        planned.role for planned, fate in zip(PLAN.every_point, fate_of, strict=True) if fate == "failed, then measured"
    ]
    mended = roles_after_failure.count(Role.ANCHOR)  # for any other point one failure is enough
    assert counts.measured == mended + sum(fate in ("measured", "twice") for fate in fate_of)
    assert {one.id for one in results.missing} == {
        planned.id for planned, fate in zip(PLAN.every_point, fate_of, strict=True) if fate == "missing"
    }
    row = f"| {counts.planned} | {counts.measured} | {counts.failed} | {counts.missing} |"
    assert row in markdown_of(results).splitlines()
    assert valid(results)["points"] == msgspec.to_builtins(counts)


@given(fates, st.randoms(use_true_random=False))
def test_result_and_report_do_not_depend_on_the_order_of_the_lines(fate_of: list[str], chance: Random) -> None:
    lines = [*lines_of(fate_of), msgspec.structs.replace(HOST, group=1, started=2000.0)]
    lines += [SelfCheck([9.0], {"odd": "ok"}, group=0, shard=1), msgspec.structs.replace(ENVIRONMENT, device="unused")]
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert markdown_of(build(shuffled)) == markdown_of(build(lines))
    assert results_json.document(build(shuffled)) == results_json.document(build(lines))


def test_the_self_checks_of_a_shard_that_was_resumed_stand_in_one_order() -> None:
    resumed = SelfCheck([9.0], {"odd": "rank 1: a token is wrong"}, group=0)
    assert markdown_of(build([*LINES, resumed])) == markdown_of(build([resumed, *LINES]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "NVIDIA H100"}, ["device: NVIDIA H100 | NVIDIA H200"]),
        ({"driver": None, "num_links": 12}, ["num_links: 12 | 18", "driver: 580.65 | None"]),
        (
            {"versions": {"torch": "2.10.0"}},
            ["versions: {'torch': '2.10.0'} | {'torch': '2.11.0', 'deep_ep': 'tokenspeed-deepep 1.2.1'}"],
        ),
    ],
)
def test_unlike_environments_are_named_with_both_values(changes: dict[str, Any], message: list[str]) -> None:
    assert environment_differences(run_records(mixed_environments(**changes))) == message
    assert environment_differences(run_records(LINES)) == []


def test_an_environment_without_a_record_does_not_count_as_a_difference() -> None:
    assert (
        environment_differences(run_records([*LINES, msgspec.structs.replace(ENVIRONMENT, device="NVIDIA H100")])) == []
    )


def test_odd_gpus_and_damaged_lines_are_flagged() -> None:
    state = GpuState(1500, 600.0, 80, ["power cap"], 1)
    telemetry = [Telemetry(1000.0, 0, Op.DISPATCH, [state]), Telemetry(1001.0, 9, Op.DISPATCH, [state])]
    results = build([*LINES, *telemetry], damaged=[Damaged("shards/0000/records.jsonl", 3, "torn")])
    assert results.flags == [
        "shard 0, GPU 0: throttled (power cap) at 2 of 2 readings",
        "shard 0, GPU 0: busy with other processes at 2 of 2 readings",
    ]
    text = markdown_of(results)
    for flag in results.flags:
        assert f"* **{markdown.text(flag)}**" in text
    assert "* **`shards/0000/records.jsonl` line 3 cannot be read**: torn" in text


def test_the_ratio_of_the_ranks_is_taken_from_the_default_dispatch() -> None:
    lines = [
        msgspec.structs.replace(line, outcome=Measured(line.outcome.samples_us, [100.0, 103.0]))
        if isinstance(line, Record) and isinstance(line.outcome, Measured)
        else line
        for line in LINES
    ]
    assert build(lines).rank_ratio == pytest.approx(1.03)


def test_missing_groups_of_the_final_are_reported(tmp_path: Path) -> None:
    plan, lines = with_final(lambda one, group: noisy(time_of(one.point)) if group < 3 else None)
    results = build(lines, plan=plan)
    assert results.lacks_final
    assert (results.counts.missing, results.final_groups) == (0, 3)
    assert "**2 groups of the final are missing.**" in markdown_of(results)
    assert valid(results)["search"]["final_groups_measured"] == 3


def test_a_group_of_the_final_that_only_began_does_not_count() -> None:
    plan, lines = with_final(lambda one, group: noisy(time_of(one.point)) if group < 4 or not is_cell(one) else None)
    assert build(lines, plan=plan).final_groups == 4
