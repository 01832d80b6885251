"""Measurements and failures derived from the samples of a point."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given

from bench.backends import BACKENDS, join_pair
from bench.records import (
    Dtype,
    FailureKind,
    Line,
    Op,
    Point,
    Record,
    Role,
    Stage,
)
from bench.stats import (
    UNSTABLE_SPREAD,
    median_interval,
)
from launcher.analysis.choice import choose
from launcher.analysis.measurements import Measurement
from launcher.analysis.results import Results
from launcher.config.plan import FINAL, point_id
from launcher.config.schema import Ep
from tests.analysis.runs import FLOOR_US, LINES, PLAN, build, times, valid, with_times
from tests.builders import (
    ENVIRONMENT,
    HOST,
    TRAFFIC,
    deepep_plan,
    failed,
    markdown_of,
    noisy,
    record,
    time_of,
)
from tests.tuner.machine import Machine, choose_config, judge, make_plan


def test_a_slow_shard_is_judged_by_its_own_anchor() -> None:
    plan = deepep_plan(num_shards=2)
    lines: list[Line] = [ENVIRONMENT, HOST, TRAFFIC]
    for shard, slower in ((0, 1.0), (1, 1.5)):
        for number, planned in enumerate([*plan.anchors, *plan.baselines, *plan.shard(shard)]):
            truth = time_of(planned.point) * slower
            lines.append(record(planned, noisy(truth), shard=shard, sequence=number))
    results = build(lines, plan=plan)
    assert results.counts.missing == 0
    assert results.choice.optimal is not None
    assert results.choice.optimal.shared == {"num_sms": 32}
    for result in (results.choice.optimal.dispatch, results.choice.optimal.combine):
        assert result.point.knobs["nvl_chunk"] == 8
    assert [(level.shard, level.dispatch, level.combine) for level in results.levels] == [
        (0, pytest.approx(0.8), pytest.approx(0.8)),
        (1, pytest.approx(1.2), pytest.approx(1.2)),
    ]
    text = markdown_of(results)
    assert "## Nodes" in text
    assert "| 1.200x | 1.200x |" in text
    assert "## Nodes" not in markdown_of(build(LINES))


def results_in(results: Results) -> list[Measurement]:
    pairs = [
        pair
        for pair in (results.choice.optimal, results.choice.default, results.choice.worst, *results.choice.pareto)
        if pair is not None
    ]
    return [*results.measurements, *(part for pair in pairs for part in (pair.dispatch, pair.combine))]


@given(times)
def test_bandwidth_times_time_is_bytes(drawn: dict[str, float]) -> None:
    results = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    row = PLAN.spec.workload.hidden * 2
    for result in results_in(results):
        assert result.logical_gb_per_s is not None
        assert result.wire_gb_per_s is not None
        assert result.logical_gb_per_s * result.median_us * 1000 == pytest.approx(400 * row)
        assert result.wire_gb_per_s * result.median_us * 1000 == pytest.approx(300 * row)
        assert result.peak_fraction == pytest.approx(result.wire_gb_per_s / 450)


def test_repeated_records_of_a_point_are_pooled() -> None:
    results = build(LINES)
    anchor = next(one for one in results.measurements if one.role is Role.ANCHOR)
    assert len(anchor.samples) == 60
    assert anchor.ci95_us == median_interval(noisy(anchor.median_us) * 2)


@pytest.mark.parametrize("bad_us", [0.99 * FLOOR_US, 1e-3])
def test_a_time_that_the_link_forbids_is_a_failure_and_cannot_win(bad_us: float) -> None:
    cheat = PLAN.cells[0]
    results = build(with_times(lambda one: [bad_us] * 30 if one is cheat else noisy(time_of(one.point))))
    assert [(one.point, one.kind) for one in results.failures] == [(cheat.point, "impossible")]
    assert cheat.point not in [result.point for result in results_in(results)]
    assert (results.counts.measured, results.counts.failed) == (len(PLAN.every_point) - 1, 1)
    assert valid(results)["failures"][0]["kind"] == "impossible"
    assert "## Failures: 1 impossible" in markdown_of(results)


def test_a_time_at_the_links_peak_is_possible() -> None:
    quick = PLAN.cells[0]
    results = build(with_times(lambda one: [1.001 * FLOOR_US] * 30 if one is quick else noisy(time_of(one.point))))
    assert results.failures == []
    assert results.counts.failed == 0


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_failed_point_cannot_win_and_is_listed(kind: FailureKind) -> None:
    best = [one for one in PLAN.cells if one.point.knobs == {"num_sms": 32, "nvl_chunk": 8, "nvl_buffer": 256}]
    assert len(best) == 2
    results = build(with_times(lambda one: failed(kind) if one in best else noisy(time_of(one.point))))
    assert {result.kind for result in results.failures} == {kind}
    assert results.choice.optimal is not None
    assert results.choice.optimal.dispatch.point.knobs["nvl_chunk"] == 12
    assert f"## Failures: 2 {kind}" in markdown_of(results)


def test_physics_does_not_judge_ranks_that_share_a_gpu() -> None:
    plan = deepep_plan(ep=Ep(size=4, share_gpus=True))
    assert build(with_times(lambda _: noisy(1e-3), plan=plan), plan=plan).failures == []


@pytest.mark.parametrize("stage", [Stage.SWEEP, Stage.FINAL])
def test_samples_that_scatter_more_than_the_limit_make_a_result_unstable(stage: Stage) -> None:
    plan = make_plan(sms=[16], chunks=[8, 12], final_groups=0 if stage is Stage.SWEEP else 5)
    spreads = dict(zip((one.id for one in plan.cells), (0.5, 0.9, 1.1, 2.0), strict=True))
    records = [
        record(cell, (100 * (1 + UNSTABLE_SPREAD * spreads[cell.id] * np.linspace(-1, 1, 9))).tolist(), stage=stage)
        for cell in plan.cells
    ]
    results, _ = judge(plan, records)
    assert {point_id(plan.spec, one.point): one.unstable for one in results} == {
        name: spread > 1 for name, spread in spreads.items()
    }


def failing(records: Sequence[Record], point: Point, kind: FailureKind, *, round_number: int) -> list[Record]:
    """The same records with those of one point and round of the final replaced by failures."""

    def is_it(candidate: Record) -> bool:
        return candidate.stage is Stage.FINAL and candidate.round == round_number and candidate.point == point

    assert any(map(is_it, records))
    return [msgspec.structs.replace(one, outcome=failed(kind)) if is_it(one) else one for one in records]


@pytest.mark.parametrize("kind", list(FailureKind))
def test_the_fastest_that_fails_once_in_the_final_has_no_result_and_the_next_one_wins(kind: FailureKind) -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    best = choose_config(plan, records).optimal
    assert best is not None
    results, failures = judge(plan, failing(records, best.dispatch.point, kind, round_number=1))
    assert best.dispatch.point not in [one.point for one in results]
    assert [(one.point, one.kind) for one in failures] == [(best.dispatch.point, kind)]
    second = choose(plan, results).optimal
    assert second is not None
    assert second.dispatch.point != best.dispatch.point


def test_a_config_whose_full_dispatch_gives_a_wrong_token_is_incorrect_itself() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    best = choose_config(plan, records).optimal
    assert best is not None
    assert best.full is not None
    wrong = failing(records, best.full.point, FailureKind.INCORRECT, round_number=2)
    results, failures = judge(plan, wrong)
    assert not {best.dispatch.point.key, best.full.point.key} & {one.point.key for one in results}
    assert [(one.point, one.kind) for one in failures] == [
        (best.full.point, "incorrect"),
        (best.dispatch.point, "incorrect"),
    ]
    assert failures[1].message == f"in {best.full.point.label}: no response within 20 s from rank 1"


def test_a_pair_that_gives_a_wrong_token_when_overlapped_makes_both_its_configs_incorrect() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    dispatch, combine = (
        next(one.point for one in plan.cells if one.point.op is op) for op in (Op.DISPATCH, Op.COMBINE)
    )
    both = join_pair(
        BACKENDS["deepep"],
        Dtype.BF16,
        dispatch=dispatch.knobs,
        combine=combine.knobs | {"num_sms": dispatch.knobs["num_sms"]},
    )
    wrong = Record(both, both.label, failed(FailureKind.INCORRECT), "", 1e6, 0.0, stage=Stage.FINAL, shard=FINAL)
    results, failures = judge(plan, [*records, wrong])
    ruled_out = [one.point for one in failures]
    assert ruled_out[:2] == [both, dispatch]
    assert ruled_out[2].op is Op.COMBINE
    assert not {one.key for one in ruled_out} & {one.point.key for one in results}
