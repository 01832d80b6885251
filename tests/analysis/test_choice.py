"""Which pair is taken, and by which measurements."""

from __future__ import annotations

from random import Random

import pytest

from bench.records import (
    Op,
)
from launcher.report import html_report, optimal_configs
from tests.analysis.runs import build, valid, with_final
from tests.builders import (
    is_cell,
    noisy,
    time_of,
)
from tests.tuner.machine import Machine, chosen, make_plan


def test_of_configs_that_cannot_be_told_apart_the_one_with_the_smaller_buffer_is_taken() -> None:
    chance = Random(3)
    grid = {"num_sms": [24], "nvl_chunk": [8], "nvl_buffer": [256, 512, 1024]}
    made, lines = with_final(
        lambda one, _: noisy(
            {512: 199.9, 256: 200.0}.get(one.point.knobs["nvl_buffer"], 210.0) * chance.gauss(1, 0.002)
        ),
        grid=grid,
    )
    optimal = build(lines, plan=made).choice.optimal
    assert optimal is not None
    buffers = [one.point.knobs["nvl_buffer"] for one in (optimal.dispatch, optimal.combine)]
    assert buffers == [256, 256]
    surely = with_final(
        lambda one, _: noisy({512: 199.0, 256: 205.0}.get(one.point.knobs["nvl_buffer"], 210.0)), grid=grid
    )
    optimal = build(surely[1], plan=surely[0]).choice.optimal
    assert optimal is not None
    assert [one.point.knobs["nvl_buffer"] for one in (optimal.dispatch, optimal.combine)] == [512, 512]


def test_results_of_the_final_replace_those_of_the_sweep_that_chose() -> None:
    made, lines = with_final(
        lambda one, _: noisy(1.5 * time_of(one.point)) if one.point.knobs["num_sms"] > 16 else None
    )
    found = build(lines, plan=made)
    assert not found.lacks_final
    assert found.choice.optimal is not None
    assert found.choice.optimal.is_final
    assert found.choice.optimal.shared == {"num_sms": 32}
    assert found.choice.optimal.round_trip_us == pytest.approx(1.5 * (2 * (80 + 160) + 10))
    assert {pair.shared["num_sms"] for pair in found.choice.best_per_shared} == {20, 24, 32}
    assert found.choice.verdict is not None
    assert (found.choice.verdict.kind, found.choice.verdict.basis) == ("tuned", "final")
    assert found.counts.missing == 0
    assert valid(found)["search"]["final_groups_measured"] == 5
    ends = found.choice.optimal.round_trip_ci95_us
    assert ends is not None
    row = f"| optimal round trip |  | **735.0** | {ends.low:.1f} to {ends.high:.1f} |  |  |  |  |"
    assert row in optimal_configs.markdown(found).splitlines()
    assert f"<td>735.0</td><td>{ends.low:.1f} to {ends.high:.1f}</td>" in html_report.html(found, pictures={})


def test_of_pairs_that_cannot_be_told_apart_the_one_with_fewest_sms_is_taken() -> None:
    chance = Random(3)
    made, lines = with_final(
        lambda one, _: (
            noisy((200 if is_cell(one) else 300) * chance.gauss(1, 0.001)) if one.point.knobs["num_sms"] > 16 else None
        )
    )
    found = build(lines, plan=made)
    assert found.choice.optimal is not None
    assert found.choice.optimal.shared == {"num_sms": 24}
    assert {pair.shared["num_sms"] for pair in found.choice.tied} == {24, 32}
    assert "Not to be told apart from the fastest" in optimal_configs.markdown(found)


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
def test_each_objective_has_its_own_answer_with_one_num_sms_for_both(
    objective: str | dict[str, float], num_sms: int
) -> None:
    plan = make_plan(sms=[16, 32, 64], chunks=[8, 12], objective=objective)
    machine = Machine(plan)
    for cell in plan.cells:
        distance = {Op.DISPATCH: 64 / cell.point.knobs["num_sms"], Op.COMBINE: cell.point.knobs["num_sms"] / 16}
        machine.truth[cell.point.label] = 200 + 20 * distance[cell.point.op] + 3 * (cell.point.knobs["nvl_chunk"] == 12)
    optimal = chosen(plan, machine.run()).optimal
    assert optimal is not None
    assert optimal.shared == {"num_sms": num_sms}
    assert [one.point.knobs["num_sms"] for one in (optimal.dispatch, optimal.combine)] == [num_sms] * 2
