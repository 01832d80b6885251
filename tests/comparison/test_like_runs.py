"""Published runs of the same sweep: how much they scatter, and whether intervals and verdicts allow for it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.between import OTHER_GPUS, SAME_GPUS, Scatter, another_run, between_runs, between_runs_limit, pooled
from bench.records import Stage
from launcher.comparison.compare import compare
from launcher.comparison.levels import Levels, ratio_interval
from tests.like_runs import LikeRuns, find_like_runs, levels_in_both_finals, ratios_in_both_finals, times_in_both_finals
from tests.published import Unpack

MOST_OUTSIDE = 0.07
"""Share of configs of like runs that may lie outside a 95 % CI."""

SITUATIONS = pytest.mark.parametrize("scatter", [SAME_GPUS, OTHER_GPUS], ids=["same GPUs", "other GPUs"])


@pytest.fixture(scope="module")
def like_runs(published: Unpack) -> list[LikeRuns]:
    return find_like_runs(published)


def pairs_of(like_runs: list[LikeRuns], scatter: Scatter) -> list[LikeRuns]:
    """The pairs in the situation of these constants."""
    return [pair for pair in like_runs if pair.same_gpus == (scatter is SAME_GPUS)]


def test_the_published_folder_has_eight_pairs_of_like_runs(like_runs: list[LikeRuns]) -> None:
    assert {(*pair.names, pair.same_gpus) for pair in like_runs} == {
        ("h200x2-ep2-bf16", "h200x2-ep2-exhaustive", True),
        ("h100x2-ep2-bf16", "h100x2-ep2-bf16-again", True),
        ("h100x2-ep2-deepseek_v3-bf16-libraries", "h100x2-ep2-deepseek_v3-bf16-libraries-again", True),
        ("h200x2-ep2-bf16", "h200x2-ep2-bf16-again", False),
        ("h200x2-ep2-exhaustive", "h200x2-ep2-bf16-again", False),
        ("h200x2-ep2-fp8", "h200x2-ep2-fp8-again", False),
        ("h100x2-ep2-exhaustive", "h100x2-ep2-bf16", False),
        ("h100x2-ep2-exhaustive", "h100x2-ep2-bf16-again", False),
    }


@SITUATIONS
def test_the_constants_are_the_estimates_of_the_published_pairs_rounded_up(
    scatter: Scatter, like_runs: list[LikeRuns]
) -> None:
    pairs = pairs_of(like_runs, scatter)
    times = [times_in_both_finals(pair) for pair in pairs]
    estimates = (
        pooled(np.array([between_runs(*one) for one in times])),
        pooled(np.array([between_runs(*ratios_in_both_finals(pair)) for pair in pairs])),
        max(between_runs_limit(*one) for one in times),
    )
    for constant, estimate in zip(scatter, estimates, strict=True):
        assert estimate <= constant <= estimate + 0.0002


def outside(pair: LikeRuns, scatter: float) -> list[bool]:
    """Whether each time in both finals lies outside the interval of the comparison."""
    lows, highs = ratio_interval(*(levels.widened(scatter) for levels in levels_in_both_finals(pair)))
    return [not low <= 1 <= high for low, high in zip(lows, highs, strict=True)]


@SITUATIONS
def test_at_most_7_percent_of_the_configs_of_like_runs_lie_outside_the_interval(
    scatter: Scatter, like_runs: list[LikeRuns]
) -> None:
    pairs = pairs_of(like_runs, scatter)
    assert np.mean([one for pair in pairs for one in outside(pair, scatter.time)]) <= MOST_OUTSIDE
    assert np.mean([one for pair in pairs for one in outside(pair, 0.0)]) > MOST_OUTSIDE


def left_out(pair: LikeRuns, pairs: list[LikeRuns]) -> float:
    """The scatter that the pairs of the same situation without any of these two runs show."""
    others = [each for each in pairs if each.same_gpus == pair.same_gpus and not set(each.names) & set(pair.names)]
    return pooled(np.array([between_runs(*times_in_both_finals(each)) for each in others]))


@SITUATIONS
def test_so_it_is_with_the_scatter_that_other_runs_show(scatter: Scatter, like_runs: list[LikeRuns]) -> None:
    pairs = pairs_of(like_runs, scatter)
    assert np.mean([one for pair in pairs for one in outside(pair, left_out(pair, pairs))]) <= MOST_OUTSIDE


def missed(old: Levels, new: Levels, *, scatter: float) -> list[bool]:
    """Whether each time of ``new`` lies outside what the interval of ``old`` predicts for another run."""
    intervals = [
        another_run(float(np.exp(log)), error=(low + high) / 2, freedom=freedom, scatter=scatter)
        for log, low, high, freedom in zip(*old, strict=True)
    ]
    return [not one.low <= time <= one.high for one, time in zip(intervals, np.exp(new.log), strict=True)]


@SITUATIONS
def test_at_most_7_percent_of_another_run_s_times_lie_outside_the_interval_for_another_run(
    scatter: Scatter, like_runs: list[LikeRuns]
) -> None:
    misses: list[bool] = []
    for pair in pairs_of(like_runs, scatter):
        levels = levels_in_both_finals(pair)
        misses += [*missed(*levels, scatter=scatter.time), *missed(*levels[::-1], scatter=scatter.time)]
    assert np.mean(misses) <= MOST_OUTSIDE


@pytest.mark.parametrize("tolerance", [0.0, 0.005, 0.01, 0.02])
def test_like_runs_raise_no_alarm_at_any_tolerance(tolerance: float, like_runs: list[LikeRuns]) -> None:
    for pair in like_runs:
        for a, b in (pair.runs, pair.runs[::-1]):
            comparison = compare(a, b, tolerance=tolerance)
            assert (comparison.worse, comparison.same_gpus) == ([], pair.same_gpus), pair.names
            assert not [row.point for row in comparison.points if row.gates and row.verdict == "faster"]


def test_like_sweeps_without_a_final_raise_no_alarm_at_2_percent(like_runs: list[LikeRuns]) -> None:
    for pair in like_runs:
        a, b = (
            run._replace(measured={label: one for label, one in run.measured.items() if one.stage is Stage.SWEEP})
            for run in pair.runs
        )
        assert not {"slower", "faster"} & compare(a, b, tolerance=0.02).counts.keys(), pair.names
