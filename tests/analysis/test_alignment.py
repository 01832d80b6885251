"""How far apart the ranks start, and how the report says it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records import Alignment
from bench.stats import Floats
from launcher.analysis.alignment import spreads_us, start_skew
from tests.analysis.runs import LINES, build, valid
from tests.builders import markdown_of

ITERATIONS = 20
microseconds = st.floats(-50, 50)


def line(starts: Floats, ways: Floats, *, group: int = 0) -> Alignment:
    """Signals of ranks with these starts [ranks, iterations], whose ways to the first rank and back take ``ways``."""
    there = starts[:1] + ways[:, None] - starts[1:]
    back = starts[1:] + ways[:, None] - starts[:1]
    return Alignment(there.tolist(), back.tolist(), group)


@given(st.data(), st.integers(2, 8))
def test_steady_starts_are_found_whatever_the_ways_of_the_signals(data: st.DataObject, num_ranks: int) -> None:
    starts = np.array(data.draw(st.lists(microseconds, min_size=num_ranks, max_size=num_ranks)))
    ways = np.array(data.draw(st.lists(st.floats(1, 100), min_size=num_ranks - 1, max_size=num_ranks - 1)))
    spreads = spreads_us(line(np.repeat(starts[:, None], ITERATIONS, axis=1), ways))
    assert spreads == pytest.approx(np.full(ITERATIONS, np.ptp(starts)), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_starts_that_vary_are_found_in_every_iteration(seed: int, num_ranks: int) -> None:
    starts = np.random.default_rng(seed).normal(0, 1, (num_ranks, ITERATIONS))
    spreads = spreads_us(line(starts, np.full(num_ranks - 1, 7.0)))
    assert spreads == pytest.approx(np.ptp(starts, axis=0), abs=1e-6)


def test_the_report_says_how_far_apart_ranks_start_over_all_groups() -> None:
    early = np.repeat([[0.0], [-1.5], [0.5], [0.0]], ITERATIONS, axis=1)
    groups = [line(early * factor, np.array([9.0, 8.0, 7.0]), group=group) for group, factor in enumerate((1, 1, 3))]
    results = build([*LINES, *groups])
    found = start_skew(groups)
    assert found is not None
    assert (found.median_us, found.p95_us, found.iterations, found.groups) == pytest.approx((2.0, 6.0, 60, 3))
    assert (
        "* Ranks start within 2.0 us of one another (median of 60 iterations in 3 process groups; 6.0 us in 95 %, "
        "delays of the signals included). A time is too long by at most that: a rank that starts early waits for the "
        "last one.\n"
    ) in markdown_of(results)
    assert valid(results)["start_skew"] == {"median_us": 2.0, "p95_us": 6.0, "iterations": 60, "groups": 3}


def test_a_group_that_could_not_measure_it_is_flagged_and_a_run_without_it_says_nothing() -> None:
    results = build([*LINES, Alignment([], [], 0, failure="hang: no response within 20 s from rank 1")])
    assert "the skew of the ranks' start: hang: no response within 20 s from rank 1" in markdown_of(results)
    assert results.start_skew is None
    assert "Ranks start" not in markdown_of(build(LINES))
