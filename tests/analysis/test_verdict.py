"""The verdict on the library's default."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import msgspec
import numpy as np
import pytest

from bench.records import (
    Line,
    Op,
)
from launcher.analysis.verdict import MARGIN
from launcher.config.plan import SHARED_GPUS, Planned
from launcher.config.schema import Ep
from tests.analysis.runs import PLAN, build, faster, valid, with_final, with_times
from tests.builders import (
    ENVIRONMENT,
    HOST,
    SELF_CHECK,
    TRAFFIC,
    anchor_of,
    complete,
    deepep_plan,
    failed,
    html_of,
    is_cell,
    markdown_of,
    noisy,
    record,
    summary_of,
    time_of,
)
from tests.tuner.machine import SimulatedSweep, simulate_sweep


def test_a_default_that_is_beaten_by_more_than_the_margin_gives_tuned() -> None:
    results = build(faster({32: 200.0}))
    assert results.choice.verdict is not None
    assert results.choice.verdict.kind == "tuned"
    assert results.choice.verdict.ratio == pytest.approx(1.25)
    assert results.speedup_over_default == results.choice.verdict.ratio
    assert results.choice.verdict.ci95.low <= results.choice.verdict.ratio <= results.choice.verdict.ci95.high
    assert "**Verdict: tuned.** The optimal pair is faster than the default. " in markdown_of(results)


def test_a_default_faster_than_every_other_pair_is_optimal() -> None:
    results = build(faster({}))
    assert results.choice.verdict is not None
    assert (results.choice.verdict.kind, results.choice.verdict.over) == ("within_margin", "best other pair")
    assert results.choice.verdict.ratio == pytest.approx(250 / 400)
    assert results.speedup_over_default == 1.0
    assert "Default / best other pair = **0.625**" in markdown_of(results)
    assert "**within_margin** (0.625x, default / best other pair)" in summary_of(results)
    assert "x as long as the best other pair (95 % CI " in summary_of(results)


def test_where_noise_hides_what_is_faster_the_default_is_not_called_optimal() -> None:
    """The default is truly one percent faster, while groups scatter by ten percent."""
    chance = Random(8)
    plan, lines = with_final(lambda one, _: noisy((252 if is_cell(one) else 250) * chance.gauss(1, 0.1)))
    verdict = build(lines, plan=plan).choice.verdict
    assert verdict is not None
    assert verdict.kind == "inconclusive"
    assert verdict.ci95.low < 1
    assert verdict.ci95.high > 1.02


def test_a_default_without_any_other_measured_pair_is_not_called_optimal() -> None:
    results = build(with_times(lambda one: None if is_cell(one) else noisy(250)))
    assert results.choice.verdict is not None
    assert (results.choice.verdict.kind, results.choice.verdict.meaning) == (
        "inconclusive",
        "no other pair was measured",
    )


def test_a_default_that_is_optimal_but_for_the_margin_is_called_that_by_its_held_out_rival() -> None:
    plan, lines = with_final(lambda one, group: noisy((300 if is_cell(one) else 250) * (1 + 0.1 * group)))
    results = build(lines, plan=plan)
    assert results.choice.verdict is not None
    verdict = results.choice.verdict
    assert (verdict.kind, verdict.basis, verdict.over) == ("within_margin", "final", "best other pair")
    assert verdict.ratio == pytest.approx(250 / 300)
    assert verdict.ci95.high < 0.84


def test_without_a_final_the_interval_is_that_of_the_repetitions_and_contains_the_ratio() -> None:
    """Rounds differ by some percent, which thirty samples of one repetition do not show."""
    chance = Random(5)
    plan = deepep_plan(search=msgspec.structs.replace(PLAN.spec.search, rounds=4))
    lines: list[Line] = [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC]
    for number in range(4):
        for planned in plan.every_point:
            time_us = (200 if planned.point.knobs.get("num_sms") == 32 else 250) * chance.gauss(1, 0.03)
            lines.append(record(planned, noisy(time_us), round=number, started=1000.0 + number))
    verdict = build(lines, plan=plan).choice.verdict
    assert verdict is not None
    assert verdict.basis == "sweep"
    assert verdict.ci95.low < verdict.ratio < verdict.ci95.high
    assert verdict.ci95.low < 1.25 < verdict.ci95.high
    assert verdict.ci95.high / verdict.ci95.low > 1.05


def test_two_groups_of_a_final_are_two_looks_and_not_sixty() -> None:
    chance = Random(7)
    plan, lines = with_final(
        lambda one, _: noisy((200 if one.point.knobs["num_sms"] == 32 else 250) * chance.gauss(1, 0.01)), groups=2
    )
    verdict = build(lines, plan=plan).choice.verdict
    assert verdict is not None
    assert verdict.basis == "final"
    assert verdict.ci95.high / verdict.ci95.low > 1.05


def test_a_default_that_is_beaten_by_less_than_the_margin_is_optimal() -> None:
    results = build(faster({32: 249.0}))
    assert results.choice.verdict is not None
    assert results.choice.verdict.kind == "within_margin"
    assert results.choice.verdict.ratio == pytest.approx(250 / 249)
    assert 0.98 < results.choice.verdict.ci95.low < results.choice.verdict.ci95.high < 1.02


def test_samples_too_scattered_for_a_verdict_are_inconclusive() -> None:
    chance = Random(1)
    lines = with_times(
        lambda one: (
            [chance.gauss(235 if one.point.knobs.get("num_sms") == 32 else 250, 40) for _ in range(30)]
            if is_cell(one) is False or one.point.knobs["num_sms"] == 32
            else noisy(500)
        )
    )
    results = build(lines)
    assert results.choice.verdict is not None
    assert results.choice.verdict.kind == "inconclusive"
    assert "measure more" in markdown_of(results)


def test_a_ratio_on_the_margin_is_inconclusive() -> None:
    results = build(faster({32: 250.0 / 1.02}))
    assert results.choice.verdict is not None
    assert results.choice.verdict.kind == "inconclusive"


@pytest.mark.parametrize("op", [Op.DISPATCH, Op.COMBINE])
def test_without_a_default_there_is_no_verdict_and_the_report_states_it(op: Op) -> None:
    anchor = anchor_of(PLAN, op)
    results = build(with_times(lambda one: failed() if one is anchor else noisy(time_of(one.point))))
    assert results.choice.default is None
    assert results.choice.verdict is None
    assert results.choice.optimal is not None
    assert "**The library's default has no result**" in markdown_of(results)
    assert valid(results)["libraries"][0]["speedup_over_default"] is None


def test_ranks_that_share_a_gpu_get_no_verdict_and_no_speedup() -> None:
    plan = deepep_plan(ep=Ep(size=4, share_gpus=True))
    results = build(complete(plan), plan=plan)
    assert results.choice.verdict is None
    assert results.speedup_over_default is None
    plain = valid(results)
    assert plain["shared_gpus"] is True
    (library,) = plain["libraries"]
    assert (library["verdict"], library["speedup_over_default"]) == (None, None)
    text = markdown_of(results)
    assert text.startswith(f"**{SHARED_GPUS}**\n")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Points", "## Checks", "## Files", "## Provenance", "## Summary"]
    short = summary_of(results)
    assert [line for line in short.splitlines() if line.startswith("## ")] == ["## Summary", "## What to do"]
    assert "* No config: ranks shared a GPU, so only tokens were checked." in short.splitlines()
    assert not re.search(r"\d times|\d us|\dx", text.split("## Checks")[0] + short)
    shown = html_of(results, pictures={"pareto.svg": "<svg/>"}).split("<h2>All points</h2>")[0]
    assert SHARED_GPUS in shown
    assert not re.search(r"\d times|\d us|<table|<img", shown)


def test_a_difference_between_groups_cancels_in_the_verdict() -> None:
    plan, lines = with_final(lambda one, group: noisy((1 + 0.2 * group) * time_of(one.point)))
    results = build(lines, plan=plan)
    assert results.choice.verdict is not None
    assert results.choice.verdict.kind == "tuned"
    interval = results.choice.verdict.ci95
    assert interval.high - interval.low < 0.01


def test_an_interrupted_group_that_measured_little_but_the_default_makes_the_verdict_no_surer() -> None:
    """The anchors come first in every group, including one that was preempted and then repeated."""

    def times(planned: Planned, group: int) -> list[float] | None:
        if group == 5 and is_cell(planned):
            return None
        return noisy((253 if is_cell(planned) else 250) * (1 + 0.02 * (-1) ** (group + is_cell(planned))))

    uninterrupted, interrupted = (
        build(lines, plan=plan).choice.verdict for plan, lines in (with_final(times), with_final(times, groups=6))
    )
    assert uninterrupted is not None
    assert interrupted is not None
    assert (
        (interrupted.over, interrupted.basis)
        == (uninterrupted.over, uninterrupted.basis)
        == ("best other pair", "final")
    )
    assert interrupted.ci95.high - interrupted.ci95.low > 0.8 * (uninterrupted.ci95.high - uninterrupted.ci95.low)


SMALL = {"sms": [20, 48, 64, 128], "chunks": [4, 8, 12, 16, 24]}


@pytest.fixture(scope="module")
def at_the_margin() -> list[SimulatedSweep]:
    """Sweeps of machines whose default is slower than the optimum by exactly the margin."""
    return [simulate_sweep(seed, default_factor=1 + MARGIN, **SMALL) for seed in range(100, 500)]


@pytest.mark.slow  # simulates many sweeps
def test_the_verdicts_interval_covers_the_true_ratio_as_often_as_stated(at_the_margin: list[SimulatedSweep]):
    """With a true coverage of 88 %, 93 % or more of 400 intervals cover the truth once in a thousand times."""
    assert np.mean([one.covers for one in at_the_margin]) >= 0.93


@pytest.mark.slow  # simulates many sweeps
def test_a_default_within_the_margin_is_called_worse_in_at_most_a_twentieth_of_the_sweeps(
    at_the_margin: list[SimulatedSweep],
):
    assert np.mean([one.choice.verdict.kind == "tuned" for one in at_the_margin]) <= 0.05


@pytest.mark.slow  # simulates many sweeps
def test_a_default_that_is_optimal_is_not_called_worse():
    kinds = Counter(simulate_sweep(seed, default_factor=1.0, **SMALL).choice.verdict.kind for seed in range(500, 600))
    assert kinds["tuned"] == 0
    assert kinds["within_margin"] >= 95


@pytest.mark.slow  # simulates many sweeps
def test_where_all_configs_are_alike_the_interval_covers_and_tuned_is_rare():
    """With a true coverage of 88 %, as of a held-out choice, 92.5 % of 300 intervals cover once in a hundred times."""
    grid = {"sms": [16, 20, 32, 48, 64, 96, 128], "chunks": [4, 8, 12]}
    sweeps = [simulate_sweep(seed, default_factor=1 + MARGIN, alike=True, **grid) for seed in range(300)]
    assert np.mean([one.covers for one in sweeps]) >= 0.925
    assert np.mean([one.choice.verdict.kind == "tuned" for one in sweeps]) <= 0.05
