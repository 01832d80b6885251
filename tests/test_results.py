"""From records to the answer: what adds up, what wins, what is refused, and what a report may contain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import msgspec
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
    time_of,
)
from hypothesis import example, given
from hypothesis import strategies as st

from bench.records import (
    Dtype,
    Failed,
    FailureKind,
    GpuState,
    Host,
    Line,
    Measured,
    Op,
    Record,
    Role,
    SelfCheck,
    Stage,
    Telemetry,
)
from bench.stats import median_interval
from bench.workload import Workload
from launcher import aggregate, markdown, report, results, results_json
from launcher.judge import OpResult
from launcher.plan import FINAL, Plan, Planned
from launcher.results import Results
from launcher.schema import METHODS, OBJECTIVES, Ep, Hardware, Search
from launcher.store import Damaged, RunFolder
from launcher.visits import evidence

MADE = deepep_plan()
LINES = complete(MADE)
SCHEMA = msgspec.json.decode((ROOT / "docs" / "results.schema.json").read_bytes())


def build(lines: Iterable[Line], *, plan: Plan = MADE, damaged: Iterable[Damaged] = ()) -> Results:
    return results.build(plan, MANIFEST, evidence(lines), list(damaged))


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
    st.sampled_from(["measured", "failed", "missing", "impossible", "twice", "mended"]),
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
            "mended": [failed(), good],
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
    assert counts.measured == sum(fate in ("measured", "twice", "mended") for fate in fate_of)
    assert counts.failed == sum(fate in ("failed", "impossible") for fate in fate_of)
    assert {one.id for one in found.missing} == {
        planned.id for planned, fate in zip(MADE.every_point, fate_of, strict=True) if fate == "missing"
    }
    row = f"| {counts.planned} | {counts.measured} | {counts.failed} | {counts.missing} |"
    assert row in report.markdown(found).splitlines()
    assert valid(found)["points"] == msgspec.to_builtins(counts)


@given(fates, st.randoms(use_true_random=False))
def test_result_and_report_do_not_depend_on_the_order_of_the_lines(fate_of: list[str], chance: Random) -> None:
    lines = [*lines_of(fate_of), msgspec.structs.replace(HOST, group=1, started=2000.0)]
    lines += [SelfCheck([9.0], {"odd": "ok"}, group=0, shard=1), msgspec.structs.replace(ENVIRONMENT, device="unused")]
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert report.markdown(build(shuffled)) == report.markdown(build(lines))
    assert results_json.to_json(build(shuffled)) == results_json.to_json(build(lines))


def test_the_self_checks_of_a_shard_that_was_resumed_stand_in_one_order() -> None:
    resumed = SelfCheck([9.0], {"odd": "rank 1: a token is wrong"}, group=0)
    assert report.markdown(build([*LINES, resumed])) == report.markdown(build([resumed, *LINES]))


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


def results_in(found: Results) -> list[OpResult]:
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
    assert "## Failures: 1 impossible" in report.markdown(found)


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
    assert f"## Failures: 2 {kind}" in report.markdown(found)


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
    assert results.unlike(evidence(unlike(**changes))) == message
    assert results.unlike(evidence(LINES)) == []


def test_an_environment_without_a_record_makes_nothing_unlike() -> None:
    assert results.unlike(evidence([*LINES, msgspec.structs.replace(ENVIRONMENT, device="NVIDIA H100")])) == []


def stored(lines: list[Line], tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(MADE, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with folder.appender(0) as appender:
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
    assert "**Verdict: tuned.** The optimal pair is faster than the default: " in report.markdown(found)


def test_a_default_that_nothing_beats_is_optimal() -> None:
    found = build(faster({}))
    assert found.choice.verdict is not None
    assert (found.choice.verdict.kind, found.choice.verdict.ratio) == ("default_is_optimal", 1.0)


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
    assert "measure more" in report.markdown(found)


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
    assert "**The library's default has no result**" in report.markdown(found)
    assert valid(found)["speedup_over_default"] is None


def test_ranks_that_share_a_gpu_get_no_verdict_and_no_speedup() -> None:
    made = deepep_plan(ep=Ep(size=4, share_gpus=True))
    found = build(complete(made), plan=made)
    assert found.choice.verdict is None
    assert found.speedup_over_default is None
    plain = valid(found)
    assert (plain["shared_gpus"], plain["verdict"], plain["speedup_over_default"]) == (True, None, None)
    text = report.markdown(found)
    assert text.startswith(f"**{report.SHARED_GPUS}**\n")
    assert "Verdict" not in text


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
        found.append(results.build(plan, manifest, evidence(with_text(text)), [Damaged(text, 1, text)]))
    return found[0], found[1]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(st.sampled_from("|\\`<>\n\r#*_[]()&! ax"), min_size=1, max_size=12)))
def test_no_name_or_message_can_break_the_report(word: str) -> None:
    bad, tame = hostile(word)
    text, tame_text = report.markdown(bad), report.markdown(tame)
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
    assert unescaped_pipes(text) == 0


def test_the_results_have_exactly_the_keys_of_the_schema() -> None:
    assert set(valid(build(LINES))) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_of_nothing_fit_the_schema_and_can_be_reported() -> None:
    plain = valid(build([]))
    assert (plain["points"]["missing"], plain["optimal"], plain["environment"]) == (len(MADE.every_point), None, None)
    assert "No pair of a dispatch and a combine was measured" in report.markdown(build([]))


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
    text = report.markdown(found)
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


def with_final(times: Callable[[Planned, int], list[float] | None], *, groups: int = 5) -> tuple[Plan, list[Line]]:
    """A sweep where every point takes its time_of, and a final where the points take the times given."""
    search = msgspec.structs.replace(MADE.spec.search, final_groups=groups)
    made = deepep_plan(search=search)
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
    assert "Not to be told apart from the fastest" in report.markdown(found)


def test_missing_groups_of_the_final_are_told(tmp_path: Path) -> None:
    made, lines = with_final(lambda one, group: noisy(time_of(one.point)) if group < 3 else None)
    found = build(lines, plan=made)
    assert found.lacks_final
    assert (found.counts.missing, found.final_groups) == (0, 3)
    assert "**2 groups of the final are missing.**" in report.markdown(found)
    assert valid(found)["search"]["final_groups_measured"] == 3


def test_the_schema_knows_every_choice_that_the_program_may_write() -> None:
    definitions = SCHEMA["$defs"]
    assert definitions["op"]["enum"] == list(Op)
    assert definitions["dtype"]["enum"] == list(Dtype)
    assert definitions["measurement"]["properties"]["role"]["enum"] == list(Role)
    assert definitions["numbers"]["properties"]["stage"]["enum"] == list(Stage)
    assert definitions["failure"]["properties"]["kind"]["enum"] == [*FailureKind, "impossible"]
    assert SCHEMA["properties"]["search"]["properties"]["method"]["enum"] == list(METHODS)
    assert SCHEMA["properties"]["search"]["properties"]["objective"]["enum"] == list(OBJECTIVES)
    for struct, name in ((Hardware, "hardware"), (Search, "search"), (Workload, "workload")):
        assert set(struct.__struct_fields__) <= set(SCHEMA["properties"][name]["properties"])
