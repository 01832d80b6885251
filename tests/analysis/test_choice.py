"""The choice of the optimal pair and the measurements that decide it."""

from __future__ import annotations

from random import Random

import pytest

from bench.records import (
    Op,
)
from tests.analysis.runs import build, valid, with_final
from tests.builders import (
    html_of,
    is_cell,
    markdown_of,
    noisy,
    time_of,
)
from tests.tuner.machine import Machine, choose_config, make_plan


def test_the_smaller_buffer_is_taken_of_indistinguishable_configs() -> None:
    chance = Random(3)
    grid = {"num_sms": [24], "nvl_chunk": [8], "nvl_buffer": [256, 512, 1024]}
    plan, lines = with_final(
        lambda one, _: noisy(
            {512: 199.9, 256: 200.0}.get(one.point.knobs["nvl_buffer"], 210.0) * chance.gauss(1, 0.002)
        ),
        grid=grid,
    )
    optimal = build(lines, plan=plan).choice.optimal
    assert optimal is not None
    buffers = [one.point.knobs["nvl_buffer"] for one in (optimal.dispatch, optimal.combine)]
    assert buffers == [256, 256]
    plan, lines = with_final(
        lambda one, _: noisy({512: 199.0, 256: 205.0}.get(one.point.knobs["nvl_buffer"], 210.0)), grid=grid
    )
    optimal = build(lines, plan=plan).choice.optimal
    assert optimal is not None
    assert [one.point.knobs["nvl_buffer"] for one in (optimal.dispatch, optimal.combine)] == [512, 512]


def test_results_of_the_final_replace_those_of_the_sweep_that_chose() -> None:
    plan, lines = with_final(
        lambda one, _: noisy(1.5 * time_of(one.point)) if one.point.knobs["num_sms"] > 16 else None
    )
    results = build(lines, plan=plan)
    assert not results.lacks_final
    assert results.choice.optimal is not None
    assert results.choice.optimal.is_final
    assert results.choice.optimal.shared == {"num_sms": 32}
    assert results.choice.optimal.round_trip_us == pytest.approx(1.5 * (2 * (80 + 160) + 10))
    assert {pair.shared["num_sms"] for pair in results.choice.best_per_shared} == {20, 24, 32}
    assert results.choice.verdict is not None
    assert (results.choice.verdict.kind, results.choice.verdict.basis) == ("tuned", "final")
    assert results.counts.missing == 0
    assert valid(results)["search"]["final_groups_measured"] == 5
    ends = results.choice.optimal.round_trip_ci95_us
    assert ends is not None
    another = results.choice.optimal.another_run_us(results.elsewhere)
    assert another is not None
    assert another.low < ends.low <= ends.high < another.high
    elsewhere = f"{another.low:.1f} to {another.high:.1f}"
    row = f"| optimal round trip |  | **735.0** | {ends.low:.1f} to {ends.high:.1f} | {elsewhere} |  |  |  |  |"
    assert row in markdown_of(results).splitlines()
    assert f"<td>735.0</td><td>{ends.low:.1f} to {ends.high:.1f}</td>" in html_of(results)


def test_the_fewest_sms_are_taken_of_indistinguishable_pairs() -> None:
    chance = Random(3)
    plan, lines = with_final(
        lambda one, _: (
            noisy((200 if is_cell(one) else 300) * chance.gauss(1, 0.001)) if one.point.knobs["num_sms"] > 16 else None
        )
    )
    results = build(lines, plan=plan)
    assert results.choice.optimal is not None
    assert results.choice.optimal.shared == {"num_sms": 24}
    assert {pair.shared["num_sms"] for pair in results.choice.tied} == {24, 32}
    assert "Indistinguishable from the fastest" in markdown_of(results)


OF_EACH_OBJECTIVE: list[tuple[str | dict[str, float], int]] = [
    ("dispatch", 64),
    ("combine", 16),
    ("round_trip", 32),
    ("training", 32),
    ({"dispatch": 6, "combine": 1}, 64),
    ({"dispatch": 1, "combine": 6}, 16),
    ({"dispatch": 1}, 64),
    ({"combine": 0.5}, 16),
]


@pytest.mark.parametrize(("objective", "num_sms"), OF_EACH_OBJECTIVE)
def test_each_objective_has_its_own_optimum_with_one_num_sms_for_both_operations(
    objective: str | dict[str, float], num_sms: int
) -> None:
    plan = make_plan(sms=[16, 32, 64], chunks=[8, 12], objective=objective)
    machine = Machine(plan)
    for cell in plan.cells:
        distance = {Op.DISPATCH: 64 / cell.point.knobs["num_sms"], Op.COMBINE: cell.point.knobs["num_sms"] / 16}
        machine.truth[cell.point.label] = 200 + 20 * distance[cell.point.op] + 3 * (cell.point.knobs["nvl_chunk"] == 12)
    optimal = choose_config(plan, machine.run()).optimal
    assert optimal is not None
    assert optimal.shared == {"num_sms": num_sms}
    assert [one.point.knobs["num_sms"] for one in (optimal.dispatch, optimal.combine)] == [num_sms] * 2
