"""How much a run with repeats scatters, from its records to its report."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from bench.between import OTHER_GPUS, another_ratio
from bench.records import Line, Measured, Op, Record, Role, Stage
from bench.stats import Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.analysis.verdict import Verdict
from launcher.config.plan import FINAL, REPEAT_GROUPS, Plan, repeat_index
from launcher.report import results_json
from launcher.store.results_file import encode
from tests.analysis.runs import build, check_tables, with_final
from tests.builders import HOST, html_of, markdown_of, noisy, record, time_of

GROUP, RUN = 0.002, 0.004
MACHINES = ("GPU-0", "GPU-1")


def with_repeats(count: int, *, machines: int = 1, seed: int = 0, run: float = RUN) -> tuple[Plan, list[Line]]:
    """A run whose final and repeats scatter by known components; the last repeats are on another machine."""
    rng = np.random.default_rng(seed)
    levels = {"final": rng.normal(0, run, 100)}
    numbers = iter(range(10**6))

    def us(base: float, level: float) -> list[float]:
        return noisy(base * math.exp(level + rng.normal(0, GROUP)))

    plan, lines = with_final(lambda one, _: us(time_of(one.point), levels["final"][int(one.id, 16) % 100]), groups=5)
    for number in range(1, count + 1):
        machine = MACHINES[(number * machines - 1) // count] if count else MACHINES[0]
        shard = repeat_index(number)
        own = rng.normal(0, run, 100)
        for group in range(REPEAT_GROUPS):
            lines.append(msgspec.structs.replace(HOST, shard=shard, group=group, gpu_uuids=[machine]))
            for planned in [*plan.anchors, *plan.cells]:
                roles = [Role.ANCHOR] * 3 + [Role.CONTROL] if planned.role is Role.ANCHOR else [planned.role]
                lines += [
                    record(
                        planned,
                        us(time_of(planned.point), own[int(planned.id, 16) % 100]),
                        role=role,
                        shard=shard,
                        stage=Stage.REPEAT,
                        round=group,
                        group=group,
                        sequence=next(numbers),
                    )
                    for role in roles
                ]
    return plan, [*lines, *(msgspec.structs.replace(HOST, shard=FINAL, group=group) for group in range(5))]


def results_of(count: int, **changes: float) -> Results:
    plan, lines = with_repeats(count, **changes)  # type: ignore[arg-type]
    return build(lines, plan=plan)


def judged(results: Results) -> tuple[Verdict, Pair, Pair]:
    """The verdict, the default, and what it is compared with."""
    choice = results.choice
    assert choice.verdict is not None
    assert choice.default is not None
    assert choice.rival is not None
    return choice.verdict, choice.default, choice.rival


def test_the_components_of_simulated_records_are_found() -> None:
    results = results_of(24, machines=2)
    found = results.components
    assert found is not None
    assert (found.runs, found.machines) == (25, 2)
    run, machine = found.by_level["run"], found.by_level["machine"]
    assert run[None].freedom == 23
    assert run[None].deviation == pytest.approx(RUN, rel=0.15)
    assert run[Op.DISPATCH_FULL].deviation is None
    assert machine[None].freedom == 1
    group = found.by_level["group"][None].variance + found.by_level["repetition"][None].variance
    assert math.sqrt(group) == pytest.approx(GROUP, rel=0.2)


def test_of_the_default_only_its_control_counts_in_what_groups_runs_and_machines_add() -> None:
    """The median of the default's several repetitions scatters less than the one repetition of any other config."""
    plan, lines = with_repeats(6, machines=2)
    moved = [moved_anchor(line) for line in lines]
    found, other = build(lines, plan=plan).components, build(moved, plan=plan).components
    assert found is not None
    assert other is not None
    assert found.by_level["repetition"] != other.by_level["repetition"]
    for level in ("run", "machine"):
        assert found.by_level[level] == other.by_level[level]


def moved_anchor(line: Line) -> Line:
    """The same; half of the default's own repetitions, not its control's, take three times as long."""
    if not isinstance(line, Record) or line.role is not Role.ANCHOR or line.stage is Stage.SWEEP or line.sequence % 2:
        return line
    assert isinstance(line.outcome, Measured)
    samples = [3 * sample for sample in line.outcome.samples_us]
    return msgspec.structs.replace(line, outcome=msgspec.structs.replace(line.outcome, samples_us=samples))


def test_a_run_s_own_components_replace_published_ones_when_they_have_enough_degrees_of_freedom() -> None:
    many, few = results_of(12), results_of(3)
    assert many.components is not None
    assert few.components is not None
    own = many.components.by_level["run"][None].deviation
    assert many.components.run == (own, 12)
    assert few.components.run == (0.0018, math.inf)
    assert few.elsewhere.deviation == pytest.approx(OTHER_GPUS.time)
    assert many.elsewhere.deviation == pytest.approx(math.sqrt(own**2 + 0.0038**2 - 0.0018**2))
    for results in (many, few):
        optimal = results.choice.optimal
        assert optimal is not None
        interval, centre = optimal.another_run_us(results.elsewhere), optimal.round_trip_us
        assert interval is not None
        assert interval.low < centre < interval.high


def test_the_verdict_is_the_mean_over_all_runs() -> None:
    verdict, default, rival = judged(results_of(12))
    assert verdict.another_run is not None
    assert verdict.basis == "final and its repeats"
    truth = sum(time_of(one.point) for one in (default.dispatch, default.combine)) / sum(
        time_of(one.point) for one in (rival.dispatch, rival.combine)
    )
    of_runs = [
        np.mean([math.log(times[group] / rival.by_run()[run][group]) for group in times])
        for run, times in default.by_run().items()
    ]
    assert len(of_runs) == 13
    assert math.log(verdict.ratio) == pytest.approx(np.mean(of_runs), abs=0.0005)
    assert verdict.ci95.low < truth < verdict.ci95.high
    assert verdict.another_run.low < verdict.ci95.low < verdict.ci95.high < verdict.another_run.high
    assert np.mean([verdict.another_run.low < math.exp(each) < verdict.another_run.high for each in of_runs]) > 0.8


def test_without_repeats_everything_is_as_before() -> None:
    results = results_of(0)
    verdict, default, rival = judged(results)
    assert (results.components, default.by_run()) == (None, {})
    times = list(default.by_round().values()), list(rival.by_round().values())
    assert (verdict.ratio, verdict.ci95, verdict.basis) == (
        paired_ratio(*times),
        paired_ratio_interval(*times),
        "final",
    )
    assert verdict.another_run == another_ratio(*times, scatter=OTHER_GPUS.ratio)
    assert "How much times scatter" not in markdown_of(results)


def test_repeats_change_no_time_of_the_final() -> None:
    plan, lines = with_repeats(3)
    alone = build([line for line in lines if getattr(line, "stage", None) is not Stage.REPEAT], plan=plan)
    for one, other in zip(build(lines, plan=plan).measurements, alone.measurements, strict=True):
        assert (one.point, one.median_us, one.ci95_us, one.by_round) == (
            other.point,
            other.median_us,
            other.ci95_us,
            other.by_round,
        )


def test_the_components_stand_in_the_reports_and_in_the_results_file() -> None:
    results = results_of(12)
    text, page = markdown_of(results), html_of(results)
    assert check_tables(text)
    for shown in (text, page):
        assert "How much times scatter, by where it comes from" in shown
        assert "13 runs (the final and its repeats) on 1 machine" in shown
    (row,) = [line for line in text.splitlines() if line.startswith("| machines (sets of GPUs)")]
    assert row.split("|")[5].strip() == "unknown"
    plain = msgspec.json.decode(encode(results_json.document(results)))["components"]
    assert (plain["runs"], plain["machines"]) == (13, 1)
    (run,) = [each for each in plain["levels"] if (each["level"], each["op"]) == ("run", None)]
    assert results.components is not None
    assert run["deviation"] == pytest.approx(results.components.by_level["run"][None].deviation, abs=1e-6)
    assert run["freedom"] == 12
    assert Interval(*run["ci95"]).low < run["deviation"] < run["ci95"][1]
