"""What is said of the library's default."""

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
from launcher.config import plan
from launcher.config.plan import Planned
from launcher.config.schema import Ep
from launcher.report import html_report, optimal_configs
from tests.analysis.runs import MADE, build, faster, valid, with_final, with_times
from tests.builders import (
    ENVIRONMENT,
    HOST,
    SELF_CHECK,
    TRAFFIC,
    anchor_of,
    complete,
    deepep_plan,
    failed,
    is_cell,
    noisy,
    record,
    time_of,
)
from tests.tuner.machine import Tuned, tuned


def test_a_default_that_is_beaten_by_more_than_the_margin_gives_tuned() -> None:
    found = build(faster({32: 200.0}))
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "tuned"
    assert found.choice.verdict.ratio == pytest.approx(1.25)
    assert found.speedup_over_default == found.choice.verdict.ratio
    assert found.choice.verdict.ci95.low <= found.choice.verdict.ratio <= found.choice.verdict.ci95.high
    assert "**Verdict: tuned.** The optimal pair is faster than the default: " in optimal_configs.markdown(found)


def test_a_default_that_nothing_beats_is_optimal() -> None:
    found = build(faster({}))
    assert found.choice.verdict is not None
    assert (found.choice.verdict.kind, found.choice.verdict.over) == ("default_is_optimal", "best other pair")
    assert found.choice.verdict.ratio == pytest.approx(250 / 400)
    assert found.speedup_over_default == 1.0
    assert "default / best other pair = **0.625**" in optimal_configs.markdown(found)
    assert "**default_is_optimal** (0.625x, default / best other pair)" in optimal_configs.summary(found)
    assert "times as long as the best other pair." in optimal_configs.summary(found)


def test_where_noise_hides_what_is_faster_the_default_is_not_called_optimal() -> None:
    """The default looks best, by one percent in truth, and the groups differ by ten."""
    chance = Random(6)
    made, lines = with_final(lambda one, _: noisy((252 if is_cell(one) else 250) * chance.gauss(1, 0.1)))
    verdict = build(lines, plan=made).choice.verdict
    assert verdict is not None
    assert (verdict.over, verdict.kind) == ("best other pair", "inconclusive")
    assert verdict.ci95.low < 1
    assert verdict.ci95.high > 1.02


def test_a_default_that_is_alone_in_what_was_measured_is_not_called_optimal() -> None:
    found = build(with_times(lambda one: None if is_cell(one) else noisy(250)))
    assert found.choice.verdict is not None
    assert (found.choice.verdict.kind, found.choice.verdict.meaning) == ("inconclusive", "no other pair was measured")


def test_a_default_that_is_optimal_but_for_the_margin_is_called_that_by_its_held_out_rival() -> None:
    made, lines = with_final(lambda one, group: noisy((300 if is_cell(one) else 250) * (1 + 0.1 * group)))
    found = build(lines, plan=made)
    assert found.choice.verdict is not None
    verdict = found.choice.verdict
    assert (verdict.kind, verdict.basis, verdict.over) == ("default_is_optimal", "final", "best other pair")
    assert verdict.ratio == pytest.approx(250 / 300)
    assert verdict.ci95.high < 0.84


def test_without_a_final_the_interval_is_that_of_the_visits_and_holds_the_ratio() -> None:
    """Rounds differ by some percent, which thirty samples of one visit do not show."""
    chance = Random(5)
    made = deepep_plan(search=msgspec.structs.replace(MADE.spec.search, rounds=4))
    lines: list[Line] = [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC]
    for number in range(4):
        for planned in made.every_point:
            time_us = (200 if planned.point.knobs.get("num_sms") == 32 else 250) * chance.gauss(1, 0.03)
            lines.append(record(planned, noisy(time_us), round=number, started=1000.0 + number))
    verdict = build(lines, plan=made).choice.verdict
    assert verdict is not None
    assert verdict.basis == "sweep"
    assert verdict.ci95.low < verdict.ratio < verdict.ci95.high
    assert verdict.ci95.low < 1.25 < verdict.ci95.high
    assert verdict.ci95.high / verdict.ci95.low > 1.05


def test_two_groups_of_a_final_are_two_looks_and_not_sixty() -> None:
    chance = Random(7)
    made, lines = with_final(
        lambda one, _: noisy((200 if one.point.knobs["num_sms"] == 32 else 250) * chance.gauss(1, 0.01)), groups=2
    )
    verdict = build(lines, plan=made).choice.verdict
    assert verdict is not None
    assert verdict.basis == "final"
    assert verdict.ci95.high / verdict.ci95.low > 1.05


def test_a_default_that_is_beaten_by_less_than_the_margin_is_optimal() -> None:
    found = build(faster({32: 249.0}))
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "default_is_optimal"
    assert found.choice.verdict.ratio == pytest.approx(250 / 249)
    assert 0.98 < found.choice.verdict.ci95.low < found.choice.verdict.ci95.high < 1.02


def test_samples_too_scattered_to_tell_are_inconclusive() -> None:
    chance = Random(1)
    lines = with_times(
        lambda one: (
            [chance.gauss(235 if one.point.knobs.get("num_sms") == 32 else 250, 40) for _ in range(30)]
            if is_cell(one) is False or one.point.knobs["num_sms"] == 32
            else noisy(500)
        )
    )
    found = build(lines)
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "inconclusive"
    assert "measure more" in optimal_configs.markdown(found)


def test_a_ratio_on_the_margin_is_inconclusive() -> None:
    found = build(faster({32: 250.0 / 1.02}))
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "inconclusive"


@pytest.mark.parametrize("op", [Op.DISPATCH, Op.COMBINE])
def test_without_a_default_there_is_no_verdict_and_the_report_says_so(op: Op) -> None:
    anchor = anchor_of(MADE, op)
    found = build(with_times(lambda one: failed() if one is anchor else noisy(time_of(one.point))))
    assert found.choice.default is None
    assert found.choice.verdict is None
    assert found.choice.optimal is not None
    assert "**The library's default has no result**" in optimal_configs.markdown(found)
    assert valid(found)["libraries"][0]["speedup_over_default"] is None


def test_ranks_that_share_a_gpu_get_no_verdict_and_no_speedup() -> None:
    made = deepep_plan(ep=Ep(size=4, share_gpus=True))
    found = build(complete(made), plan=made)
    assert found.choice.verdict is None
    assert found.speedup_over_default is None
    plain = valid(found)
    assert plain["shared_gpus"] is True
    (library,) = plain["libraries"]
    assert (library["verdict"], library["speedup_over_default"]) == (None, None)
    text = optimal_configs.markdown(found)
    assert text.startswith(f"**{plan.SHARED_GPUS}**\n")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Points", "## Checks", "## Files", "## Where this comes from", "## Summary"]
    short = optimal_configs.summary(found)
    assert [line for line in short.splitlines() if line.startswith("## ")] == ["## Summary", "## What to do"]
    assert "* No config: ranks shared a GPU, so that only tokens were checked." in short.splitlines()
    assert not re.search(r"\d times|\d us|\dx", text.split("## Checks")[0] + short)
    shown = html_report.html(found, pictures={"pareto.svg": "<svg/>"}).split("<h2>All points</h2>")[0]
    assert plan.SHARED_GPUS in shown
    assert not re.search(r"\d times|\d us|<table|<img", shown)


def test_a_difference_between_groups_cancels_in_the_verdict() -> None:
    made, lines = with_final(lambda one, group: noisy((1 + 0.2 * group) * time_of(one.point)))
    found = build(lines, plan=made)
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "tuned"
    interval = found.choice.verdict.ci95
    assert interval.high - interval.low < 0.01


def test_an_interrupted_group_that_measured_little_but_the_default_makes_the_verdict_no_surer() -> None:
    """The anchors come first in every group, also in one that was preempted and then measured again."""

    def times(one: Planned, group: int) -> list[float] | None:
        if group == 5 and is_cell(one):
            return None
        return noisy((253 if is_cell(one) else 250) * (1 + 0.02 * (-1) ** (group + is_cell(one))))

    whole, broken = (
        build(lines, plan=made).choice.verdict for made, lines in (with_final(times), with_final(times, groups=6))
    )
    assert whole is not None
    assert broken is not None
    assert (broken.over, broken.basis) == (whole.over, whole.basis) == ("best other pair", "final")
    assert broken.ci95.high - broken.ci95.low > 0.8 * (whole.ci95.high - whole.ci95.low)


SMALL = {"sms": [20, 48, 64, 128], "chunks": [4, 8, 12, 16, 24]}


@pytest.fixture(scope="module")
def at_the_margin() -> list[Tuned]:
    """Sweeps of machines whose default is exactly as much slower as the verdict forgives."""
    return [tuned(seed, default_factor=1 + MARGIN, **SMALL) for seed in range(100, 500)]


@pytest.mark.slow  # simulates many sweeps
def test_the_verdicts_interval_covers_the_true_ratio_as_often_as_it_says(at_the_margin: list[Tuned]):
    """Of 400 intervals that cover 88 %, 93 % or more hold the truth once in a thousand times."""
    assert np.mean([one.covers for one in at_the_margin]) >= 0.93


@pytest.mark.slow  # simulates many sweeps
def test_a_default_within_the_margin_is_called_worse_in_at_most_a_twentieth_of_the_sweeps(at_the_margin: list[Tuned]):
    assert np.mean([one.choice.verdict.kind == "tuned" for one in at_the_margin]) <= 0.05


@pytest.mark.slow  # simulates many sweeps
def test_a_default_that_is_optimal_is_not_called_worse():
    kinds = Counter(tuned(seed, default_factor=1.0, **SMALL).choice.verdict.kind for seed in range(500, 600))
    assert kinds["tuned"] == 0
    assert kinds["default_is_optimal"] >= 95
