"""The best pair overlapped with GEMMs, and the confidence in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from launcher.analysis import overlap
from tests.analysis.runs import choice_of, overlaps_of


def test_the_pick_of_a_pass_is_made_by_the_others() -> None:
    lucky = {8: [900.0, 1100.0, 1100.0, 1100.0], 16: [1050.0, 1050.0, 1050.0, 1050.0]}
    assert choice_of(lucky).picks["overlapped"].shared == {"num_sms": 8}
    assert choice_of(lucky).overlap_held_out == {0: 1050.0, 1: 1100.0, 2: 1100.0, 3: 1100.0}


@given(st.integers(0, 2**32 - 1))
@example(0)
def test_equal_overlapped_pairs_are_indistinguishable_and_a_slow_one_is_distinguished(seed: int) -> None:
    chance = np.random.default_rng(seed)
    passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
    best = {
        candidate.pair.shared["num_sms"]
        for candidate in choice_of(passes | {40: [2000.0 + at for at in range(9)]}).best_overlaps
    }
    assert 40 not in best
    assert len(best) >= 1


@pytest.mark.slow  # 200 sets of passes
def test_the_truly_best_overlapped_pair_is_excluded_in_at_most_5_percent() -> None:
    chance = np.random.default_rng(1)
    excluded = 0
    for _ in range(200):
        passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
        excluded += 2 not in {one.pair.shared["num_sms"] for one in overlap.may_be_best(overlaps_of(passes))}
    assert excluded <= scipy_stats.binom.ppf(0.999, 200, 0.05)


def test_without_a_true_difference_the_held_out_cost_is_none_on_average() -> None:
    chance = np.random.default_rng(2)
    costs = []
    for _ in range(100):
        passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
        held_out = overlap.held_out_overlap(overlaps_of(passes))
        costs.append(np.log(passes[32]).mean() - np.log(list(held_out.values())).mean())
    assert abs(np.mean(costs)) < 4 * np.std(costs) / 10
