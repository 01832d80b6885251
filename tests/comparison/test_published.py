"""Comparisons of published runs."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from bench.records import Stage
from launcher.comparison import run as compared_runs
from launcher.comparison.compare import compare
from tests.published import PUBLISHED, Unpack

PAIRS = [
    *itertools.permutations(("h100x2-ep2-bf16", "h100x2-ep2-bf16-again", "h100x2-ep2-exhaustive"), 2),
    *itertools.permutations(("h200x2-ep2-bf16", "h200x2-ep2-exhaustive"), 2),
]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=" ".join)
def test_published_sweeps_of_one_kind_of_machine_pass_with_a_final_and_without(
    a: str, b: str, published: Unpack
) -> None:
    runs = [compared_runs.read(published(name)) for name in (a, b)]
    both = {
        label
        for label, measured in runs[0].measured.items()
        if measured.stage is Stage.SWEEP and label in runs[1].measured and runs[1].measured[label].stage is Stage.SWEEP
    }
    swept = [one._replace(measured={label: one.measured[label] for label in both}) for one in runs]
    for tolerance in (0.02, 0.2):
        for kind, gate in ((runs, "final"), (swept, "all")):
            comparison = compare(*kind, tolerance=tolerance)
            assert (comparison.gate, comparison.worse, comparison.missing) == (gate, [], [])
            assert comparison.counts.keys() <= {"unstable", "same", "only in A", "only in B"}


def test_two_published_sweeps_on_h200s_are_the_same_at_any_tolerance() -> None:
    comparison = compare(
        *(compared_runs.read(PUBLISHED / f"h200x2-ep2-{name}") for name in ("bf16", "exhaustive")), tolerance=0.0
    )
    assert comparison.counts == {"same": 1355, "only in A": 29, "only in B": 13}
    assert sum(row.gates for row in comparison.points) == 66
    assert [one.field for one in comparison.differences] == ["command"]
    assert comparison.geometric_mean == pytest.approx(1, abs=0.001)
    assert [(one.name, one.ratio and round(one.ratio, 2)) for one in comparison.picks] == [
        ("default", 1.0),
        ("optimal", 1.0),
        ("overlapped", None),
    ]


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_two_other_gpus_of_the_kind_pass_by_their_final_and_differ_in_no_point(dtype: str, published: Unpack) -> None:
    first, other = (compared_runs.read(published(f"h200x2-ep2-{dtype}{name}")) for name in ("", "-again"))
    for a, b in ((first, other), (other, first)):
        comparison = compare(a, b, tolerance=0.02)
        assert (comparison.gate, comparison.worse, comparison.missing) == ("final", [], [])
        assert "hosts.gpu_uuids" in {one.field for one in comparison.differences}
        assert not {"faster", "slower"} & comparison.counts.keys()
        assert comparison.geometric_mean == pytest.approx(1, abs=0.005)
        assert [one.name for one in comparison.picks] == ["default", "optimal"]
        assert any("in different ways (timing " in note for note in comparison.notes)
        same = compare(a, a, tolerance=0.02)
        (overlapped,) = [one for one in same.picks if one.name == "overlapped"]
        assert overlapped.is_overlapped
        assert (overlapped.ratio, same.notes) == (1.0, [])


def test_a_published_run_that_is_cut_short_does_not_pass() -> None:
    complete = compared_runs.read(PUBLISHED / "h200x2-ep2-bf16")
    kept = next(label for label, comparison in complete.measured.items() if comparison.stage is Stage.SWEEP)
    cut = complete._replace(measured={kept: complete.measured[kept]})
    comparison = compare(complete, cut, tolerance=0.02)
    assert (comparison.worse, len(comparison.missing)) == ([], comparison.counts["missing in B"] + 1)
    without = {label: comparison for label, comparison in complete.measured.items() if comparison.stage is Stage.SWEEP}
    assert compare(complete, complete._replace(measured=without), tolerance=0.02).missing[-1] == "the final"


def test_every_dispatch_and_combine_of_a_published_final_would_be_found_5_percent_slower() -> None:
    a, b = (compared_runs.read(PUBLISHED / name) for name in ("h200x2-ep2-bf16", "h200x2-ep2-exhaustive"))
    gating = {row.point for row in compare(a, b, tolerance=0.02).points if row.gates}
    for point in sorted(one for one in gating if "dispatch_full" not in one):
        times = b.measured[point]
        low, high = times.ci95_us
        slower = msgspec.structs.replace(times, median_us=1.05 * times.median_us, ci95_us=(1.05 * low, 1.05 * high))
        assert compare(a, b._replace(measured=b.measured | {point: slower}), tolerance=0.02).worse == [point]
