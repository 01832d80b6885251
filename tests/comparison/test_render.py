"""Comparisons rendered as text, with hostile input too."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from launcher.comparison import render
from launcher.comparison.compare import Comparison, compare
from tests.comparison.runs import (
    BASE,
    FINAL,
    SWEPT,
    Document,
    as_compared_run,
    compare_documents,
    failure,
    label,
    measurement,
    run,
)


def test_a_long_list_of_missing_points_is_cut() -> None:
    comparison = compare_documents(run(SWEPT, *(measurement(chunk, 200.0) for chunk in range(10, 18))), run(SWEPT))
    line = f"B lacks: {', '.join(label(chunk) for chunk in range(10, 15))} and 4 more."
    assert line in render.plain(comparison).splitlines()


def test_the_output_states_which_points_gate() -> None:
    with_final = render.plain(compare_documents(run(FINAL, SWEPT), run(FINAL, SWEPT)))
    assert "\nPoints that gate: 1, measured by both runs in the fresh process groups of a final, or p" in with_final
    without = render.plain(compare_documents(run(SWEPT), run(FINAL, SWEPT)))
    assert "\nPoints that gate: all 1 with two times, since no point is in the finals of both runs.\n" in without


def last_line(a: Document, b: Document) -> str:
    return render.plain(compare_documents(a, b)).splitlines()[-1]


@pytest.mark.parametrize("num_slower", [1, 2])
def test_nothing_is_called_not_worse_where_the_list_holds_slower_points(num_slower: int) -> None:
    swept = [measurement(chunk, 200.0, stage="sweep", count=48) for chunk in (6, 8, 10)]
    slow = [one | {"median_us": 230.0, "ci95_us": [229.0, 231.0]} for one in swept[:num_slower]]
    points = "1 point that does not gate is" if num_slower == 1 else "2 points that do not gate are"
    a, b = run(FINAL, *swept), run(FINAL, *slow, *swept[num_slower:])
    assert last_line(a, b) == f"Nothing that gates is worse; {points} slower."
    lacking = run(FINAL, measurement(12, 200.0), *swept)
    assert last_line(lacking, b) == f"Nothing that gates is worse among the points that B has; {points} slower."
    assert last_line(b, a) == "Nothing is worse."
    assert last_line(a, run(measurement(4, 230.0), *slow, *swept[num_slower:])) == "B is worse: 1 slower."


hostile = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\n\r\x1b\x85\u2028'\"`$(){}[]#:;\\|&<>!%*_~@, -=\x00", max_size=30),
)


def spoilt(text: str) -> Comparison:
    """A comparison with this text in every field from a machine, a command or a configuration."""
    host = BASE["hosts"][0] | {"hostname": text, "python": text, "gpu_uuids": [text]}
    other = run(
        FINAL,
        measurement(8, 1.0) | {f"{text}_knob": 1},
        failures=(failure(6, f"{text}!"),),
        environment__device=f"{text}!",
        environment__driver=f"{text}!",
        environment__versions={f"{text}!": text},
        workload__name=f"{text}!",
        hardware__source=f"{text}!",
        revision__code=f"{text}!",
        hosts=[host],
        command=["deepep-sweep", text],
    )
    a, b = as_compared_run(run(FINAL, SWEPT), f"{text}!"), as_compared_run(other, f"{text}!")
    return compare(a, b, tolerance=0.02, unlike_hardware=True)


def structure(text: str) -> list[str]:
    """The types of all blocks, without their content."""
    return [token.type for token in MarkdownIt("commonmark").enable("table").parse(text)]


HARMLESS = spoilt("x")


@example("</td></tr></table><script>alert(1)</script>")
@example("| a | b |\n| --- | --- |\n")
@example("``` `` ` \\")
@example("@everyone ![x](http://example.org/x.png)")
@example("\x1b[2J\x1b[31m")
@given(hostile)
def test_no_text_from_a_run_gets_out_of_its_cell(text: str) -> None:
    comparison = spoilt(text)
    marked = render.github(comparison)
    assert structure(marked) == structure(render.github(HARMLESS))
    inline = [token for token in MarkdownIt("commonmark").enable("table").parse(marked) if token.children]
    kinds = {child.type for token in inline for child in token.children or []}
    assert kinds <= {"text", "code_inline", "strong_open", "strong_close"}
    plain = render.plain(comparison)
    assert [char for char in plain if not char.isprintable() and char != "\n"] == []
    assert plain.count("\n") == render.plain(HARMLESS).count("\n")


def test_shared_gpus_are_stated_first() -> None:
    document = run(FINAL, shared_gpus=True)
    assert render.github(compare_documents(document, document)).splitlines()[0] == (
        "**In both runs several ranks shared a GPU: the times mean nothing.**"
    )
