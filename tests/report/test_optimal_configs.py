"""The report for people, whatever a machine may put into it."""

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
from launcher.analysis import results
from launcher.analysis.results import Results
from launcher.config.plan import FINAL, Planned
from launcher.deploy.formats import EXPORTS
from launcher.report import html_report, optimal_configs
from launcher.store.records_file import Damaged
from launcher.store.table import run_records
from tests.analysis.runs import LINES, MADE, build, check_tables, faster, valid, with_times
from tests.builders import (
    ENVIRONMENT,
    HOST,
    MANIFEST,
    SELF_CHECK,
    TRAFFIC,
    complete,
    deepep_plan,
    noisy,
    record,
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


def test_a_candidate_of_the_user_gets_its_answer() -> None:
    search = msgspec.structs.replace(MADE.spec.search, candidates=[[24, 12, 256]])
    made = deepep_plan(search=search)
    text = optimal_configs.markdown(build(complete(made), plan=made))
    assert "Your candidate (24, 12, 256) is not optimal: 601 us a round trip, dispatch 295 and combine 305" in text
    assert "is 1.226 times that of the optimal one" in text


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
