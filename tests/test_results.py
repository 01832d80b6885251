"""From records to the answer: what adds up, what wins, what is refused, and what a report may contain."""

from __future__ import annotations

import gzip
import html
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from builders import (
    ENVIRONMENT,
    HOST,
    MANIFEST,
    ROOT,
    SELF_CHECK,
    TRAFFIC,
    Sweep,
    anchor_of,
    complete,
    deepep_plan,
    failed,
    is_cell,
    noisy,
    record,
    spec,
    time_of,
)
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats as scipy_stats

from bench.records import (
    Dtype,
    Failed,
    FailureKind,
    GpuState,
    Host,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    Stage,
    Telemetry,
    Traffic,
)
from bench.stats import Interval, median_interval
from bench.workload import Workload, token_matrix
from launcher import aggregate
from launcher import text as markdown
from launcher.analysis import overlap, results
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.config import plan
from launcher.config.plan import FINAL, Plan, Planned
from launcher.config.schema import METHODS, OBJECTIVES, Ep, Hardware, Search
from launcher.deploy import exporting
from launcher.deploy.formats import EXPORTS
from launcher.report import findings, html_report, optimal_configs, results_json, writer
from launcher.store.attempts import Attempt, add_attempt
from launcher.store.records_file import Damaged, open_appender
from launcher.store.run_folder import RunFolder
from launcher.store.table import run_records

MADE = deepep_plan()
LINES = complete(MADE)
SCHEMA = msgspec.json.decode((ROOT / "docs" / "results.schema.json").read_bytes())


def build(lines: Iterable[Line], *, plan: Plan = MADE, damaged: Iterable[Damaged] = ()) -> Results:
    return results.build(plan, MANIFEST, run_records(lines), list(damaged))


def with_times(times: Callable[[Planned], list[float] | Failed | None], *, plan: Plan = MADE) -> list[Line]:
    """One record for each planned point, None for a point that was not reached."""
    drawn = [(planned, times(planned)) for planned in plan.every_point]
    measured = [
        record(planned, outcome, sequence=number)
        for number, (planned, outcome) in enumerate(drawn)
        if outcome is not None
    ]
    return [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC, *measured]


def faster(pairs: dict[int, float]) -> list[Line]:
    """Default 250 us for each operation; cells of a num_sms take the time given, others 400 us."""
    return with_times(lambda one: noisy(pairs.get(one.point.knobs.get("num_sms", 0), 400.0) if is_cell(one) else 250.0))


def valid(found: Results) -> dict[str, Any]:
    plain = msgspec.json.decode(msgspec.json.encode(results_json.to_json(found)))
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)
    return plain


fates = st.lists(
    st.sampled_from(["measured", "failed", "missing", "impossible", "twice", "failed, then measured"]),
    min_size=len(MADE.every_point),
    max_size=len(MADE.every_point),
)


def lines_of(fate_of: list[str]) -> list[Line]:
    lines: list[Line] = [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC]
    for number, (planned, fate) in enumerate(zip(MADE.every_point, fate_of, strict=True)):
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
            record(planned, outcome, sequence=10 * number + again, started=1000.0 + number)
            for again, outcome in enumerate(outcomes[fate])
        ]
    return lines


@given(fates)
@example(["missing"] * len(MADE.every_point))
@example(["failed"] * len(MADE.every_point))
@example(["impossible"] * len(MADE.every_point))
def test_planned_is_measured_plus_failed_plus_missing(fate_of: list[str]) -> None:
    found = build(lines_of(fate_of))
    counts = found.counts
    assert counts.planned == len(MADE.every_point) == counts.measured + counts.failed + counts.missing
    assert counts.missing == fate_of.count("missing")
    roles_after_failure = [
        one.role for one, fate in zip(MADE.every_point, fate_of, strict=True) if fate == "failed, then measured"
    ]
    mended = roles_after_failure.count(
        Role.ANCHOR
    )  # the sweep's yardstick; for anything else one failure is one too many
    assert counts.measured == mended + sum(fate in ("measured", "twice") for fate in fate_of)
    assert {one.id for one in found.missing} == {
        planned.id for planned, fate in zip(MADE.every_point, fate_of, strict=True) if fate == "missing"
    }
    row = f"| {counts.planned} | {counts.measured} | {counts.failed} | {counts.missing} |"
    assert row in optimal_configs.markdown(found).splitlines()
    assert valid(found)["points"] == msgspec.to_builtins(counts)


@given(fates, st.randoms(use_true_random=False))
def test_result_and_report_do_not_depend_on_the_order_of_the_lines(fate_of: list[str], chance: Random) -> None:
    lines = [*lines_of(fate_of), msgspec.structs.replace(HOST, group=1, started=2000.0)]
    lines += [SelfCheck([9.0], {"odd": "ok"}, group=0, shard=1), msgspec.structs.replace(ENVIRONMENT, device="unused")]
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert optimal_configs.markdown(build(shuffled)) == optimal_configs.markdown(build(lines))
    assert results_json.to_json(build(shuffled)) == results_json.to_json(build(lines))


def test_the_self_checks_of_a_shard_that_was_resumed_stand_in_one_order() -> None:
    resumed = SelfCheck([9.0], {"odd": "rank 1: a token is wrong"}, group=0)
    assert optimal_configs.markdown(build([*LINES, resumed])) == optimal_configs.markdown(build([resumed, *LINES]))


times = st.dictionaries(
    st.sampled_from([one.point.label for one in MADE.every_point]), st.floats(5.0, 1e5), min_size=0, max_size=16
)


@given(times)
def test_the_optimum_shares_one_num_sms_and_is_the_least_of_all_such_pairs(drawn: dict[str, float]) -> None:
    found = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    best: dict[int, dict[Op, float]] = {}
    for one in MADE.every_point:
        if one.point.backend == "deepep" and one.point.label in drawn:
            ops = best.setdefault(one.point.knobs["num_sms"], {})
            ops[one.point.op] = min(ops.get(one.point.op, float("inf")), drawn[one.point.label])
    trips = {sms: sum(ops.values()) for sms, ops in best.items() if len(ops) == 2}
    if not trips:
        assert found.choice.optimal is None
        return
    assert found.choice.optimal is not None
    knobs = (found.choice.optimal.dispatch.point.knobs, found.choice.optimal.combine.point.knobs)
    assert knobs[0]["num_sms"] == knobs[1]["num_sms"] == found.choice.optimal.shared["num_sms"]
    assert found.choice.optimal.round_trip_us == pytest.approx(min(trips.values()))


@given(times)
def test_no_pair_is_on_the_frontier_that_another_beats_with_fewer_sms(drawn: dict[str, float]) -> None:
    found = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    sms = [pair.shared["num_sms"] for pair in found.choice.pareto]
    trips = [pair.round_trip_us for pair in found.choice.pareto]
    assert sms == sorted(set(sms))
    assert trips == sorted(set(trips), reverse=True)
    for pair in found.choice.best_per_shared:
        assert any(
            other.shared["num_sms"] <= pair.shared["num_sms"] and other.round_trip_us <= pair.round_trip_us
            for other in found.choice.pareto
        )
    if found.choice.optimal is not None:
        assert found.choice.pareto[-1].round_trip_us == pytest.approx(found.choice.optimal.round_trip_us)


def test_the_best_pair_may_use_neither_operations_best_num_sms() -> None:
    table = {("dispatch", 16): 100, ("combine", 16): 400, ("dispatch", 32): 400, ("combine", 32): 100}

    def time(one: Planned) -> list[float]:
        return noisy(table.get((one.point.op.value, one.point.knobs.get("num_sms", 0)), 200.0))

    found = build(with_times(time))
    assert found.choice.optimal is not None
    assert found.choice.optimal.shared == {"num_sms": 20}
    assert found.choice.optimal == found.choice.default
    assert found.choice.worst is not None
    assert found.choice.worst.round_trip_us == pytest.approx(500)


def test_a_slow_shard_is_judged_by_its_own_anchor() -> None:
    made = deepep_plan(num_shards=2)
    lines: list[Line] = [ENVIRONMENT, HOST, TRAFFIC]
    for shard, slower in ((0, 1.0), (1, 1.5)):
        for number, planned in enumerate([*made.anchors, *made.baselines, *made.shard(shard)]):
            truth = time_of(planned.point) * slower
            lines.append(record(planned, noisy(truth), shard=shard, sequence=number))
    found = build(lines, plan=made)
    assert found.counts.missing == 0
    assert found.choice.optimal is not None
    assert found.choice.optimal.shared == {"num_sms": 32}
    for result in (found.choice.optimal.dispatch, found.choice.optimal.combine):
        assert result.point.knobs["nvl_chunk"] == 8


def results_in(found: Results) -> list[Measurement]:
    pairs = [
        pair
        for pair in (found.choice.optimal, found.choice.default, found.choice.worst, *found.choice.pareto)
        if pair is not None
    ]
    return [*found.measurements, *(part for pair in pairs for part in (pair.dispatch, pair.combine))]


@given(times)
def test_bandwidth_times_time_is_bytes(drawn: dict[str, float]) -> None:
    found = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    row = MADE.spec.workload.hidden * 2
    for result in results_in(found):
        assert result.logical_gb_per_s is not None
        assert result.wire_gb_per_s is not None
        assert result.logical_gb_per_s * result.median_us * 1000 == pytest.approx(400 * row)
        assert result.wire_gb_per_s * result.median_us * 1000 == pytest.approx(300 * row)
        assert result.peak_fraction == pytest.approx(result.wire_gb_per_s / 450)


def test_repeated_records_of_a_point_are_pooled() -> None:
    found = build(LINES)
    anchor = next(one for one in found.measurements if one.role is Role.ANCHOR)
    assert len(anchor.samples) == 60
    assert anchor.ci95_us == median_interval(noisy(anchor.median_us) * 2)


FLOOR_US = 300 * MADE.spec.workload.hidden * 2 / 450e3


@pytest.mark.parametrize("bad_us", [0.99 * FLOOR_US, 1e-3])
def test_a_time_that_the_link_forbids_is_a_failure_and_cannot_win(bad_us: float) -> None:
    cheat = MADE.cells[0]
    found = build(with_times(lambda one: [bad_us] * 30 if one is cheat else noisy(time_of(one.point))))
    assert [(one.point, one.kind) for one in found.failures] == [(cheat.point, "impossible")]
    assert cheat.point not in [result.point for result in results_in(found)]
    assert (found.counts.measured, found.counts.failed) == (len(MADE.every_point) - 1, 1)
    assert valid(found)["failures"][0]["kind"] == "impossible"
    assert "## Failures: 1 impossible" in optimal_configs.markdown(found)


def test_a_time_at_the_links_peak_is_possible() -> None:
    quick = MADE.cells[0]
    found = build(with_times(lambda one: [1.001 * FLOOR_US] * 30 if one is quick else noisy(time_of(one.point))))
    assert found.failures == []
    assert found.counts.failed == 0


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_failed_point_cannot_win_and_is_listed(kind: FailureKind) -> None:
    best = [one for one in MADE.cells if one.point.knobs == {"num_sms": 32, "nvl_chunk": 8, "nvl_buffer": 256}]
    assert len(best) == 2
    found = build(with_times(lambda one: failed(kind) if one in best else noisy(time_of(one.point))))
    assert {result.kind for result in found.failures} == {kind}
    assert found.choice.optimal is not None
    assert found.choice.optimal.dispatch.point.knobs["nvl_chunk"] == 12
    assert f"## Failures: 2 {kind}" in optimal_configs.markdown(found)


def unlike(**changes: Any) -> list[Line]:
    """Two halves of a run, the second in another environment."""
    other = msgspec.structs.replace(ENVIRONMENT, **changes)
    half = [
        msgspec.structs.replace(line, environment=other.id) if isinstance(line, Record) and number % 3 == 0 else line
        for number, line in enumerate(LINES)
    ]
    return [*half, other]


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
    assert results.unlike(run_records(unlike(**changes))) == message
    assert results.unlike(run_records(LINES)) == []


def test_an_environment_without_a_record_makes_nothing_unlike() -> None:
    assert results.unlike(run_records([*LINES, msgspec.structs.replace(ENVIRONMENT, device="NVIDIA H100")])) == []


def stored(lines: list[Line], tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(MADE, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with open_appender(folder, 0) as appender:
        for line in lines:
            appender.add(line)
    return folder


def test_unlike_environments_are_refused_and_reported_apart_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(unlike(device="NVIDIA H100"), tmp_path)
    assert aggregate.main([str(folder.path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: the records were measured in unlike environments: device: NVIDIA H100 | NVIDIA H200\n"
        "hint: allow_mixed=true reports them apart\n"
    )
    assert not folder.report_file.exists()

    assert aggregate.main([str(folder.path), "allow_mixed=true"]) == 3
    text = folder.report_file.read_text()
    assert text.count("# Optimal configuration of DeepEP at EP=4") == 2
    assert [line for line in text.splitlines() if line.startswith("Measured on")] == [
        f"Measured on 4 x {device} with 4 ranks: 256 tokens a rank, hidden 512, 16 experts, top-4 (small, routing "
        "uniform), dispatch in BF16, combine in BF16."
        for device in ("NVIDIA H200", "NVIDIA H100")
    ]
    pages = [(folder.path / name).read_text() for name in ("report.html", "report.2.html")]
    for at, (device, other) in enumerate((("NVIDIA H200", "report.2.html"), ("NVIDIA H100", "report.html"))):
        assert f"<h1>DeepEP at EP=4 on {device}</h1>" in pages[at]
        assert (
            '<p class="warning">Measured in 2 unlike environments (device: NVIDIA H100 | NVIDIA H200), reported apart: '
            f"this page is about environment {at + 1}, {device}. The others: {other}.</p>"
        ) in pages[at]
    assert [line for line in text.splitlines() if line.startswith("* `RESULTS")] == [
        f"* `RESULTS_EP4{part}.json`: the same for programs (docs/results.schema.json)" for part in ("", ".2")
    ]
    files = sorted(folder.path.glob("RESULTS_EP4*.json"))
    parts = [msgspec.json.decode(file.read_bytes()) for file in files]
    for part in parts:
        jsonschema.Draft202012Validator(SCHEMA).validate(part)
    assert {part["environment"]["device"] for part in parts} == {"NVIDIA H100", "NVIDIA H200"}
    labels = [{str(one) for one in part["measurements"]} for part in parts]
    assert not labels[0] & labels[1]


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
    assert valid(found)["speedup_over_default"] is None


def test_ranks_that_share_a_gpu_get_no_verdict_and_no_speedup() -> None:
    made = deepep_plan(ep=Ep(size=4, share_gpus=True))
    found = build(complete(made), plan=made)
    assert found.choice.verdict is None
    assert found.speedup_over_default is None
    plain = valid(found)
    assert (plain["shared_gpus"], plain["verdict"], plain["speedup_over_default"]) == (True, None, None)
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


def test_of_ranks_that_share_a_gpu_no_picture_is_drawn(tmp_path: Path) -> None:
    made = deepep_plan(ep=Ep(size=4, share_gpus=True))
    folder = RunFolder.create(made, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with open_appender(folder, 0) as appender:
        for line in complete(made):
            appender.add(line)
    assert writer.aggregate(folder) == 0
    assert list(folder.path.glob("*.svg")) == []


def test_physics_does_not_judge_ranks_that_share_a_gpu() -> None:
    made = deepep_plan(ep=Ep(size=4, share_gpus=True))
    assert build(with_times(lambda _: noisy(1e-3), plan=made), plan=made).failures == []


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def check_tables(text: str) -> int:
    """Every table keeps its number of columns; the number of rows."""
    rows = 0
    columns = 0
    for line in text.splitlines():
        columns = (columns or unescaped_pipes(line)) if line.startswith("|") else 0
        if columns:
            rows += 1
            assert unescaped_pipes(line) == columns, line
    return rows


HOSTILE = [
    "|",
    "||",
    "\\|",
    "\\",
    "`",
    "``|``",
    "<script>alert(1)</script>",
    "a\nb",
    "\r\n| x | y |",
    "\n\n# Title",
    "[a](b)",
    "*_~",
    "&lt;",
    "\u2028|",
    "\x85",
    "\v",
]


def with_text(text: str) -> list[Line]:
    """A run whose machine says this text wherever it may."""
    environment = msgspec.structs.replace(ENVIRONMENT, device=text, driver=text, topology=text, versions={text: text})

    def outcome(one: Planned) -> list[float] | Failed:
        return Failed(FailureKind.ERROR, text, text, 1, text) if one in MADE.cells[:2] else noisy(time_of(one.point))

    measured = [line for line in with_times(outcome) if isinstance(line, Record)]
    return [
        environment,
        HOST,
        SELF_CHECK,
        TRAFFIC,
        *(msgspec.structs.replace(line, environment=environment.id) for line in measured),
        Host(text, 1, 2000.0, 1.0, [text], text),
        SelfCheck([1.0], {text: text, "odd": "ok"}, 1),
        Telemetry(1.0, 1, Op.DISPATCH, [GpuState(None, None, None, [text], 1)]),
    ]


def hostile(word: str) -> tuple[Results, Results]:
    """A run with the word wherever a machine may put one, and the same run without it."""
    found = []
    for text in (word, "tame"):
        manifest = msgspec.structs.replace(MANIFEST, command=["deepep-sweep", text], program=text)
        workload = msgspec.structs.replace(MADE.spec.workload, name=text)
        plan = msgspec.structs.replace(MADE, spec=msgspec.structs.replace(MADE.spec, workload=workload))
        found.append(results.build(plan, manifest, run_records(with_text(text)), [Damaged(text, 1, text)]))
    return found[0], found[1]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(st.sampled_from("|\\`<>\n\r#*_[]()&! ax"), min_size=1, max_size=12)))
def test_no_name_or_message_can_break_the_report(word: str) -> None:
    bad, tame = hostile(word)
    text, tame_text = optimal_configs.markdown(bad), optimal_configs.markdown(tame)
    assert check_tables(text) == check_tables(tame_text) > 10
    assert len(text.splitlines()) == len(tame_text.splitlines())
    assert "<script" not in re.sub(r"(`+).*?\1", "", text)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [line for line in tame_text.splitlines() if line.startswith("#")]
    assert valid(bad)["hosts"][1]["hostname"] == word


@pytest.mark.parametrize("word", ["|", "``", "`a", "a`|`b", "\\|"])
def test_inline_code_ends_where_it_should(word: str) -> None:
    text = markdown.code(word)
    fence = re.match(r"`+", text)
    assert fence is not None
    assert text.endswith(fence[0])
    assert not re.search(rf"(?<!`){fence[0]}(?!`)", text[len(fence[0]) : -len(fence[0])])
    assert "\n".join(markdown.table(("a", "b"), [[text, text]])).count("|") - text.count("|") * 2 == 9


@pytest.mark.parametrize("word", ["a|b", "|", "a`|`b", "x"])
def test_inline_code_shows_its_text_in_a_table_and_out_of_it(word: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for text in (markdown.code(word), "\n".join(markdown.table(("a", "b"), [[markdown.code(word), ""]]))):
        (found,) = re.findall("<code>(.*?)</code>", parser.render(text))
        assert html.unescape(found) == word


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("www.evil.com", r"www\.evil.com"),
        ("see HTTPS://evil.com/a", r"see HTTPS:\//evil.com/a"),
        ("WWW.evil.com", r"WWW\.evil.com"),
        ("node1.site", "node1.site"),
    ],
)
def test_no_name_becomes_a_link(word: str, text: str) -> None:
    assert markdown.text(word) == text
    assert re.sub("<.*?>", "", MarkdownIt("commonmark").render(markdown.text(word))).strip() == word


def test_the_results_have_exactly_the_keys_of_the_schema() -> None:
    assert set(valid(build(LINES))) == set(SCHEMA["properties"]) == {*SCHEMA["required"], "timing"}
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_of_nothing_fit_the_schema_and_can_be_reported() -> None:
    plain = valid(build([]))
    assert (plain["points"]["missing"], plain["optimal"], plain["environment"]) == (len(MADE.every_point), None, None)
    assert "No pair of a dispatch and a combine was measured" in optimal_configs.markdown(build([]))


def test_the_schema_refuses_what_is_not_a_result() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    plain = valid(build(LINES))
    for wrong in (
        plain | {"extra": 1},
        plain | {"schema": "deepep-sweep/results/2"},
        plain | {"points": plain["points"] | {"planned": -1}},
        plain | {"points": plain["points"] | {"skipped": 0}},
        plain | {"verdict": plain["verdict"] | {"kind": "great"}},
        plain | {"optimal": plain["optimal"] | {"combine": None}},
        plain | {"measurements": [plain["measurements"][0] | {"median_us": "fast"}]},
        {key: value for key, value in plain.items() if key != "failures"},
    ):
        assert not validator.is_valid(wrong)


def test_the_results_of_a_real_sweep_fit_the_schema(sweep: Sweep) -> None:
    plain = msgspec.json.decode((sweep.folder / "RESULTS_EP4.json").read_bytes())
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)
    assert plain["dry_run"] is True
    assert plain["points"]["measured"] == plain["points"]["planned"]
    assert plain["self_checks"][0]["edge_routings"] == dict.fromkeys(
        ["one_token", "empty_source", "empty_destination", "all_to_one", "odd"], "ok"
    )
    check_tables((sweep.folder / "OPTIMAL_CONFIGS.md").read_text())


def test_odd_gpus_and_damaged_lines_are_flagged() -> None:
    state = GpuState(1500, 600.0, 80, ["power cap"], 1)
    telemetry = [Telemetry(1000.0, 0, Op.DISPATCH, [state]), Telemetry(1001.0, 9, Op.DISPATCH, [state])]
    found = build([*LINES, *telemetry], damaged=[Damaged("shards/0000/records.jsonl", 3, "torn")])
    assert found.flags == [
        "shard 0, GPU 0: throttled (power cap) at 2 of 2 readings",
        "shard 0, GPU 0: busy with other processes at 2 of 2 readings",
    ]
    text = optimal_configs.markdown(found)
    for flag in found.flags:
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


def with_final(
    times: Callable[[Planned, int], list[float] | None], *, groups: int = 5, **changes: Any
) -> tuple[Plan, list[Line]]:
    """A sweep where every point takes its time_of, and a final where the points take the times given."""
    search = msgspec.structs.replace(MADE.spec.search, final_groups=groups)
    made = deepep_plan(search=search, **changes)
    lines: list[Line] = complete(made)
    for number in range(groups):
        for planned in [*made.anchors, *made.cells]:
            samples = times(planned, number)
            if samples is not None:
                lines.append(record(planned, samples, shard=FINAL, stage=Stage.FINAL, round=number, group=number))
    return made, lines


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


def test_a_difference_between_groups_cancels_in_the_verdict() -> None:
    made, lines = with_final(lambda one, group: noisy((1 + 0.2 * group) * time_of(one.point)))
    found = build(lines, plan=made)
    assert found.choice.verdict is not None
    assert found.choice.verdict.kind == "tuned"
    interval = found.choice.verdict.ci95
    assert interval.high - interval.low < 0.01


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


def test_missing_groups_of_the_final_are_told(tmp_path: Path) -> None:
    made, lines = with_final(lambda one, group: noisy(time_of(one.point)) if group < 3 else None)
    found = build(lines, plan=made)
    assert found.lacks_final
    assert (found.counts.missing, found.final_groups) == (0, 3)
    assert "**2 groups of the final are missing.**" in optimal_configs.markdown(found)
    assert valid(found)["search"]["final_groups_measured"] == 3


def test_a_group_of_the_final_that_only_began_does_not_count() -> None:
    made, lines = with_final(lambda one, group: noisy(time_of(one.point)) if group < 4 or not is_cell(one) else None)
    assert build(lines, plan=made).final_groups == 4


OUTCOMES = {
    "spent": "Shard 0 spent search.budget_s before its search was complete; resume with a larger one.",
    "stopped": "Shard 0 reached its time limit before its search was complete.",
    "terminated": "Shard 0 was terminated before its search was complete.",
    None: "Shard 0 is still running, or was killed.",
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_search_that_did_not_come_to_its_end_is_said_and_counts_as_missing(
    outcome: str | None, tmp_path: Path
) -> None:
    """Every point has a record; what lacks are later rounds, or the passes beside GEMMs."""
    folder = RunFolder.create(MADE, outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])
    with open_appender(folder, 0) as appender:
        for line in LINES:
            appender.add(line)
    add_attempt(folder, 0, Attempt(None, "node1", 1.0, 2.0, "complete"))
    assert writer.aggregate(folder) == 0
    add_attempt(folder, 0, Attempt(None, "node1", 3.0, 4.0, outcome))
    assert writer.aggregate(folder) == 3
    assert f"**{OUTCOMES[outcome]}**" in folder.report_file.read_text()
    assert OUTCOMES[outcome] in (folder.path / "report.html").read_text()
    assert "python -m launcher.resume" in (folder.path / "SUMMARY.md").read_text()


def test_the_schema_knows_every_choice_that_the_program_may_write() -> None:
    definitions = SCHEMA["$defs"]
    assert definitions["op"]["enum"] == list(Op)
    assert definitions["dtype"]["enum"] == list(Dtype)
    assert definitions["measurement"]["properties"]["role"]["enum"] == list(Role)
    assert definitions["numbers"]["properties"]["stage"]["enum"] == list(Stage)
    assert definitions["failure"]["properties"]["kind"]["enum"] == [*FailureKind, "impossible"]
    assert SCHEMA["properties"]["search"]["properties"]["method"]["enum"] == list(METHODS)
    named, weights = SCHEMA["properties"]["search"]["properties"]["objective"]["anyOf"]
    assert (named["enum"], list(weights["properties"])) == (list(OBJECTIVES), ["dispatch", "combine"])
    for struct, name in ((Hardware, "hardware"), (Search, "search"), (Workload, "workload")):
        assert set(struct.__struct_fields__) <= set(SCHEMA["properties"][name]["properties"])


def of_ep(size: int) -> tuple[Plan, list[Line]]:
    """DeepSeek-V3's shape on so many ranks, every point in 900 us, with the layout that its routing gives."""
    made = deepep_plan(workload=spec("workload=deepseek_v3").workload, ep=Ep(size=size, share_gpus=False))
    traffic = Traffic(token_matrix(made.spec.workload, num_ranks=size))
    timed = [record(planned, noisy(900.0), sequence=at) for at, planned in enumerate(made.every_point)]
    return made, [ENVIRONMENT, HOST, SELF_CHECK, traffic, *timed]


def test_published_numbers_stand_beside_ours_where_the_shape_is_theirs_and_are_labelled() -> None:
    made, lines = of_ep(8)
    text = optimal_configs.markdown(build(lines, plan=made))
    section = text.split("## Published numbers for this shape")[1].split("\n## ")[0]
    assert "| reported | H800, combine bf16 | 158 | 69% | README of DeepEP V1 |" in section
    assert "| **measured** | h200, dispatch bf16 | 347 | 68% | this run |" in section
    assert "fp8" not in section  # the dispatch was BF16


@pytest.mark.parametrize("size", [2, 4])
def test_no_number_of_another_shape_stands_beside_ours(size: int) -> None:
    made, lines = of_ep(size)
    assert "reported" not in optimal_configs.markdown(build(lines, plan=made)).split("## Points")[0]


@pytest.mark.parametrize(
    ("groups", "answer"), [(1, "was measured in too few groups to be judged"), (2, "is not optimal")]
)
def test_a_candidate_that_too_few_groups_measured_is_not_said_to_be_as_good(groups: int, answer: str) -> None:
    search = msgspec.structs.replace(MADE.spec.search, candidates=[[24, 12, 256]], final_groups=5)
    made = deepep_plan(search=search)
    lines: list[Line] = complete(made)
    for number in range(groups):
        lines += [
            record(one, noisy(time_of(one.point)), shard=FINAL, stage=Stage.FINAL, round=number, group=number)
            for one in [*made.anchors, *made.cells]
        ]
    assert f"Your candidate (24, 12, 256) {answer}: 601 us" in optimal_configs.markdown(build(lines, plan=made))


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


def test_a_candidate_of_the_user_gets_its_answer() -> None:
    search = msgspec.structs.replace(MADE.spec.search, candidates=[[24, 12, 256]])
    made = deepep_plan(search=search)
    text = optimal_configs.markdown(build(complete(made), plan=made))
    assert "Your candidate (24, 12, 256) is not optimal: 601 us a round trip, dispatch 295 and combine 305" in text
    assert "is 1.226 times that of the optimal one" in text


# ---- the report as it was published

PUBLISHED = ROOT / "outputs" / "published"
WITH_RECORDS = sorted({file.parents[2].name for file in PUBLISHED.glob("*/shards/0000/records.jsonl.gz")})


@pytest.fixture(scope="module", params=WITH_RECORDS)
def again(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A published run, and a copy that was aggregated anew from its records; its pictures are kept."""
    source: Path = PUBLISHED / request.param
    copy = tmp_path_factory.mktemp("again") / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*MADE_ANEW))
    for packed in copy.glob("shards/*/records.jsonl.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    assert writer.aggregate(RunFolder.open(copy), draw=False) == 0
    return source, copy


MADE_ANEW = ("OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html", "RESULTS_EP*.json", "exports")


def test_a_published_report_is_what_its_records_give(again: tuple[Path, Path]) -> None:
    source, copy = again
    names = [file.name for pattern in MADE_ANEW[:-1] for file in source.glob(pattern)]
    assert len(names) == len(MADE_ANEW[:-1])
    for name in names:
        assert (copy / name).read_text() == (source / name).read_text(), f"{name}: aggregate {source} again"


def test_the_page_has_the_picks_of_the_report_with_every_time(again: tuple[Path, Path]) -> None:
    _, copy = again
    said, shown = ((copy / name).read_text() for name in ("OPTIMAL_CONFIGS.md", "report.html"))
    rows = re.findall(r"^\| (fastest|overlapped|default_sms|knee) \| (num_sms.*) \|$", said, re.MULTILINE)
    assert len(rows) == 4
    for pick, rest in rows:
        cells = "</td><td>".join(rest.split(" | "))
        assert f'<td class="word">{pick}</td><td class="word note">{cells}</td></tr>' in shown


def test_published_exports_are_what_the_published_results_give(again: tuple[Path, Path]) -> None:
    source, copy = again
    (results_file,) = copy.glob("RESULTS_EP*.json")
    for file in exporting.export(results_file, names=list(EXPORTS)):
        published = source / "exports" / file.name
        assert not (source / "exports").exists() or file.read_text() == published.read_text(), published


# ---- findings: what is computed from the numbers


def timed(median_us: float, op: Op = Op.DISPATCH, **knobs: int) -> Measurement:
    point = Point("deepep", op, Dtype.BF16, knobs)
    interval = Interval(median_us, median_us)
    return Measurement(
        point, Role.GRID, Stage.FINAL, median_us, interval, 0.0, median_us, {}, None, None, None, unstable=False,
        samples=np.array([median_us]),
    )  # fmt: skip


def paired(num_sms: int, dispatch_us: float, combine_us: float, whole_us: float | None) -> Pair:
    return Pair(
        {"num_sms": num_sms},
        timed(dispatch_us, num_sms=num_sms),
        timed(combine_us, Op.COMBINE, num_sms=num_sms),
        full=None if whole_us is None else timed(whole_us, Op.DISPATCH_FULL, num_sms=num_sms),
    )


def chosen(**changes: Any) -> Results:
    """A result that was tuned, with another choice here and there."""
    base = build(LINES)
    return msgspec.structs.replace(base, choice=msgspec.structs.replace(base.choice, **changes))


def test_a_forward_pass_waits_for_the_whole_dispatch_and_a_backward_pass_has_its_handle() -> None:
    found = chosen(default=paired(20, 464.0, 497.1, 534.2), optimal=paired(128, 201.0, 216.0, 267.7))
    layers = found.plan.spec.workload.num_moe_layers
    effect = findings.effect(found)
    assert effect is not None
    assert (effect.num_layers, effect.has_whole) == (layers, True)
    assert effect.forward_ms == pytest.approx((layers * (534.2 + 497.1) / 1e3, layers * (267.7 + 216.0) / 1e3))
    assert effect.training_ms == pytest.approx(
        (layers * (534.2 + 497.1 + 464.0 + 497.1) / 1e3, layers * (267.7 + 216.0 + 201.0 + 216.0) / 1e3)
    )
    assert "The dispatch of a forward pass is the whole one" in optimal_configs.markdown(found)
    assert "forward pass, with the whole dispatch" in html_report.html(found, pictures={})


@pytest.mark.parametrize("without", ["default", "optimal"])
def test_without_the_whole_dispatch_of_both_the_effect_takes_the_cached_one_and_says_so(without: str) -> None:
    pairs = {"default": paired(20, 464.0, 497.1, 534.2), "optimal": paired(128, 201.0, 216.0, 267.7)}
    found = chosen(**pairs | {without: msgspec.structs.replace(pairs[without], full=None)})
    layers = found.plan.spec.workload.num_moe_layers
    effect = findings.effect(found)
    assert effect is not None
    assert not effect.has_whole
    assert effect.forward_ms == pytest.approx((layers * 961.1 / 1e3, layers * 417.0 / 1e3))
    assert effect.training_ms == pytest.approx((2 * layers * 961.1 / 1e3, 2 * layers * 417.0 / 1e3))
    assert "**The whole dispatch was not measured" in optimal_configs.markdown(found)
    assert "the whole dispatch was not measured" in html_report.html(found, pictures={})


def beside_gemms(passes: dict[int, list[float]], *, alone_us: float = 1000.0) -> list[Overlap]:
    """Pairs by num_sms, with what each pass beside GEMMs took; the pair alone takes 100 us."""
    found = []
    for num_sms, times in passes.items():
        mean = float(np.exp(np.log(times).mean()))
        ends = Interval(0.99 * mean, 1.01 * mean)
        pair = paired(num_sms, 50.0, 50.0, None)
        found.append(Overlap(pair, mean, ends, mean, ends, alone_us, dict(enumerate(times))))
    return found


def choice_of(passes: dict[int, list[float]], *, alone_us: float = 1000.0) -> Choice:
    overlaps = beside_gemms(passes, alone_us=alone_us)
    best = overlap.best_overlap(overlaps)
    fastest = next(one.pair for one in overlaps if one.pair.shared["num_sms"] == max(passes))
    return msgspec.structs.replace(
        build(LINES).choice,
        overlaps=overlaps,
        best_overlaps=overlap.may_be_best(overlaps),
        overlap_held_out=overlap.held_out_overlap(overlaps),
        picks={"fastest": fastest, "overlapped": best.pair},
    )


def said(choice: Choice) -> list[str]:
    found = msgspec.structs.replace(build(LINES), choice=choice)
    return list(findings._overlap(found))


def test_the_pick_of_a_pass_is_made_by_the_others() -> None:
    lucky = {8: [900.0, 1100.0, 1100.0, 1100.0], 16: [1050.0, 1050.0, 1050.0, 1050.0]}
    assert choice_of(lucky).picks["overlapped"].shared == {"num_sms": 8}
    assert choice_of(lucky).overlap_held_out == {0: 1050.0, 1: 1100.0, 2: 1100.0, 3: 1100.0}


@given(st.integers(0, 2**32 - 1))
@example(0)
def test_equals_beside_gemms_are_rarely_told_apart_and_a_slow_one_is(seed: int) -> None:
    chance = np.random.default_rng(seed)
    passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
    best = {
        one.pair.shared["num_sms"] for one in choice_of(passes | {40: [2000.0 + at for at in range(9)]}).best_overlaps
    }
    assert 40 not in best
    assert len(best) >= 1


def test_the_truly_best_beside_gemms_is_not_excluded_more_often_than_in_5_percent() -> None:
    chance = np.random.default_rng(1)
    excluded = 0
    for _ in range(200):
        passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
        excluded += 2 not in {one.pair.shared["num_sms"] for one in overlap.may_be_best(beside_gemms(passes))}
    assert excluded <= scipy_stats.binom.ppf(0.999, 200, 0.05)


def test_without_a_true_difference_the_held_out_cost_is_none_on_average() -> None:
    chance = np.random.default_rng(2)
    costs = []
    for _ in range(100):
        passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
        held_out = overlap.held_out_overlap(beside_gemms(passes))
        costs.append(np.log(passes[32]).mean() - np.log(list(held_out.values())).mean())
    assert abs(np.mean(costs)) < 4 * np.std(costs) / 10


def test_what_cannot_be_told_apart_beside_gemms_is_said_with_its_cost_and_whether_overlapping_pays() -> None:
    rise = [1.0, 1.02, 0.98, 1.01]
    noisy_passes = {
        8: [2000.0 * one for one in rise],
        16: [1080.0 * one for one in rise],
        24: [1150.0, 1100.0, 1120.0, 1080.0],
        32: [1100.0, 1130.0, 1040.0, 1150.0],
    }
    assert said(choice_of(noisy_passes)) == [
        "Beside expert GEMMs num_sms 16 to 32 cannot be told apart: any may be the best, and another run may order "
        "them otherwise, since one set of processes measured all passes.",
        "Communication alone is fastest with num_sms 32, beside expert GEMMs num_sms 16 is taken; where communication "
        "is waited for that costs 0 us, never measured together.",
        "num_sms 32 beside expert GEMMs takes 1.020 times (95 % interval 0.974 to 1.068) as long as the pick of the "
        "passes other than the one that is compared; it may be nothing.",
        "Overlapping need not pay: 3 of 4 pairs beside GEMMs took longer than GEMMs and communication one after the "
        "other (2 by more than their interval), most of all num_sms 8: 2005 us against 1100.",
    ]


def test_where_one_pair_is_surely_the_best_and_overlapping_pays_nothing_is_left_open() -> None:
    clear = {16: [1010.0, 1011.0, 1012.0, 1013.0], 32: [1050.0, 1051.0, 1053.0, 1054.0]}
    assert said(choice_of(clear, alone_us=1000.0)) == [
        "Communication alone is fastest with num_sms 32, beside expert GEMMs num_sms 16 is taken; where communication "
        "is waited for that costs 0 us, never measured together.",
        "num_sms 32 beside expert GEMMs takes 1.040 times (95 % interval 1.039 to 1.041) as long as the pick of the "
        "passes other than the one that is compared.",
    ]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({2}, "2"),
        ({2, 4}, "2 and 4"),
        ({2, 4, 8}, "2 to 8"),
        ({2, 8, 12, 16}, "2 and 8 to 16"),
        ({2, 8, 16}, "2, 8 and 16"),
    ],
)
def test_neighbours_are_a_range(chosen: set[int], words: str) -> None:
    assert findings._ranges({(one,) for one in chosen}, {(one,) for one in (2, 4, 8, 12, 16)}) == words


# ---- what to do


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (faster({32: 200.0}), "* `python -m launcher.export RUN` writes the files that put *fastest* into force"),
        (faster({}), "* Leave the default as it is."),
        (faster({32: 250.0 / 1.02}), "* Measure more before anything is changed: the same command with `search.final"),
        (faster({32: 200.0})[:-1], "* Complete the run: `python -m launcher.resume RUN`."),
        ([], "* Complete the run: `python -m launcher.resume RUN`."),
    ],
)
def test_the_summary_ends_with_what_to_do(lines: list[Line], first: str) -> None:
    text = optimal_configs.summary(build(lines))
    assert text.split("## What to do\n\n")[1].splitlines()[0].startswith(first)


def test_the_summary_has_the_time_of_the_default() -> None:
    line = "* Default: num_sms 20; dispatch nvl_chunk 6, nvl_buffer 256; combine nvl_chunk 9, nvl_buffer 256: 500.0 us."
    assert line in optimal_configs.summary(build(faster({32: 200.0}))).splitlines()


def test_a_dry_run_s_findings_are_labelled_and_nothing_of_it_is_to_be_deployed(sweep: Sweep) -> None:
    for name in ("OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html"):
        text = (sweep.folder / name).read_text()
        assert "Key findings of a dry run, about this CPU" in text
        assert text.count("Key findings") == 1
    assert "nothing here is to be deployed" in (sweep.folder / "SUMMARY.md").read_text()


def test_an_objective_of_unlike_weights_is_said_first_and_fits_the_schema() -> None:
    search = msgspec.structs.replace(MADE.spec.search, objective={"dispatch": 2, "combine": 1})
    made = deepep_plan(search=search)
    found = build(complete(made), plan=made)
    note = "The objective (search.objective) is 2 x dispatch + 1 x combine: by it is decided, ratios, intervals and the"
    for text in (optimal_configs.markdown(found), optimal_configs.summary(found)):
        assert text.startswith(f"**{note} verdict are of it, while a round trip is the sum of both.**\n")
    assert f'<p class="warning">{note}' in html_report.html(found, pictures={})
    assert valid(found)["search"]["objective"] == {"dispatch": 2, "combine": 1}
    assert optimal_configs.objective_note(build(LINES)) == ""


def test_every_framework_that_is_exported_has_a_row_and_every_file_is_listed() -> None:
    text = optimal_configs.markdown(build(LINES), pictures=["pareto.svg"])
    rows = text.split("## How to apply it")[1].split("##")[0].splitlines()[6:]
    assert [row.split(" | ")[0].strip("| ") for row in rows if row] == [one.framework for one in EXPORTS.values()]
    listed = text.split("## Files")[1].split("##")[0]
    assert [one.file for one in EXPORTS.values() if one.file not in listed] == []
    assert "* `pareto.svg`: a picture" in listed
    assert "heatmap" not in listed
    assert "* `RESULTS_EP4.json`" in listed
