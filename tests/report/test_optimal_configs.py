"""The report in Markdown, with hostile input too."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records import (
    Failed,
    FailureKind,
    GpuState,
    Host,
    Line,
    Op,
    Record,
    SelfCheck,
    Stage,
    Telemetry,
)
from launcher.analysis.results import Results
from launcher.analysis.results import build as build_results
from launcher.config.plan import FINAL, Planned
from launcher.deploy.formats import EXPORTS
from launcher.store.records_file import Damaged
from launcher.store.table import run_records
from tests.analysis.runs import LINES, PLAN, build, check_tables, faster, valid, with_times
from tests.builders import (
    ENVIRONMENT,
    HOST,
    MANIFEST,
    SELF_CHECK,
    TRAFFIC,
    complete,
    deepep_plan,
    html_of,
    markdown_of,
    noisy,
    record,
    report_of,
    summary_of,
    time_of,
)

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
    """A run with this text in every field from its machine."""
    environment = msgspec.structs.replace(ENVIRONMENT, device=text, driver=text, topology=text, versions={text: text})

    def outcome(planned: Planned) -> list[float] | Failed:
        return (
            Failed(FailureKind.ERROR, text, text, 1, text)
            if planned in PLAN.cells[:2]
            else noisy(time_of(planned.point))
        )

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
    """Results with the word in every field from a machine, and the same results without it."""
    pair = []
    for text in (word, "tame"):
        manifest = msgspec.structs.replace(MANIFEST, command=["deepep-sweep", text], program=text)
        workload = msgspec.structs.replace(PLAN.spec.workload, name=text)
        plan = msgspec.structs.replace(PLAN, spec=msgspec.structs.replace(PLAN.spec, workload=workload))
        pair.append(build_results(plan, manifest, run_records(with_text(text)), [Damaged(text, 1, text)]))
    return pair[0], pair[1]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(st.sampled_from("|\\`<>\n\r#*_[]()&! ax"), min_size=1, max_size=12)))
def test_no_name_or_message_can_break_the_report(word: str) -> None:
    bad, tame = hostile(word)
    text, tame_text = markdown_of(bad), markdown_of(tame)
    assert check_tables(text) == check_tables(tame_text) > 10
    assert len(text.splitlines()) == len(tame_text.splitlines())
    assert "<script" not in re.sub(r"(`+).*?\1", "", text)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [line for line in tame_text.splitlines() if line.startswith("#")]
    assert valid(bad)["hosts"][1]["hostname"] == word


@pytest.mark.parametrize(
    ("groups", "judgement"),
    [
        (1, "1.226x as long as the optimal config. Too few groups measured both to judge it."),
        (2, "1.226x as long as the optimal config (95 % CI 1.226 to 1.226)."),
    ],
)
def test_a_candidate_measured_by_too_few_groups_gets_no_judgement(groups: int, judgement: str) -> None:
    search = msgspec.structs.replace(PLAN.spec.search, candidates=[[24, 12, 256]], final_groups=5)
    plan = deepep_plan(search=search)
    lines: list[Line] = complete(plan)
    for number in range(groups):
        lines += [
            record(planned, noisy(time_of(planned.point)), shard=FINAL, stage=Stage.FINAL, round=number, group=number)
            for planned in [*plan.anchors, *plan.cells]
        ]
    finding = f"Your candidate (24, 12, 256) takes 601 us per round trip (dispatch 295, combine 305): {judgement}\n"
    assert finding in markdown_of(build(lines, plan=plan))


@pytest.mark.parametrize("candidates", [[[24, 12, 256]], {"deepep": [[24, 12, 256]]}])
def test_a_candidate_of_the_user_is_compared_with_the_optimal_config(
    candidates: list[list[int]] | dict[str, list[list[int]]],
) -> None:
    search = msgspec.structs.replace(PLAN.spec.search, candidates=candidates)
    plan = deepep_plan(search=search)
    text = markdown_of(build(complete(plan), plan=plan))
    assert "Your candidate (24, 12, 256) takes 601 us per round trip (dispatch 295, combine 305): 1.226x as" in text
    assert "1.226x as long as the optimal config.\n" in text


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (faster({32: 200.0}), "* `python -m launcher.export RUN` writes the files that apply *fastest*"),
        (faster({}), "* Leave the default as it is."),
        (faster({32: 250.0 / 1.02}), "* Measure more before anything is changed: the same command with `search.final"),
        (faster({32: 200.0})[:-1], "* Complete the run: `python -m launcher.resume RUN`."),
        ([], "* Complete the run: `python -m launcher.resume RUN`."),
    ],
)
def test_the_summary_ends_with_the_next_steps(lines: list[Line], first: str) -> None:
    text = summary_of(build(lines))
    assert text.split("## What to do\n\n")[1].splitlines()[0].startswith(first)


def test_the_summary_has_the_time_of_the_default() -> None:
    line = "* Default: num_sms 20; dispatch nvl_chunk 6, nvl_buffer 256; combine nvl_chunk 9, nvl_buffer 256: 500.0 us."
    assert line in summary_of(build(faster({32: 200.0}))).splitlines()


def test_an_objective_of_unequal_weights_is_stated_first_and_fits_the_schema() -> None:
    search = msgspec.structs.replace(PLAN.spec.search, objective={"dispatch": 2, "combine": 1})
    plan = deepep_plan(search=search)
    results = build(complete(plan), plan=plan)
    note = "The objective (search.objective) is 2 x dispatch + 1 x combine. Decisions, ratios, intervals and the"
    for text in (markdown_of(results), summary_of(results)):
        assert text.startswith(f"**{note} verdict use it; a round trip is the plain sum of both.**\n")
    assert f'<p class="warning">{note}' in html_of(results)
    assert valid(results)["search"]["objective"] == {"dispatch": 2, "combine": 1}
    assert report_of(build(LINES)).objective_note == ""


def test_every_framework_that_is_exported_has_a_row_and_every_file_is_listed() -> None:
    text = markdown_of(build(LINES), pictures={"pareto.svg": "<svg/>"})
    rows = text.split("## How to apply it")[1].split("##")[0].splitlines()[6:]
    assert [row.split(" | ")[0].strip("| ") for row in rows if row] == [one.framework for one in EXPORTS.values()]
    listed = text.split("## Files")[1].split("##")[0]
    assert [one.file for one in EXPORTS.values() if one.file not in listed] == []
    assert "* `pareto.svg`: a picture" in listed
    assert "heatmap" not in listed
    assert "* `RESULTS_EP4.json`" in listed
