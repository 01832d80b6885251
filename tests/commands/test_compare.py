"""deepep-compare: arguments, output, exit status."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from launcher import compare as command
from launcher.comparison import render
from launcher.comparison.compare import SCHEMA, compare
from launcher.config.plan import NOT_A_MEASUREMENT
from tests.builders import Command, Sweep
from tests.comparison.runs import (
    FINAL,
    FINALS,
    SLOW_FINAL,
    SLOW_SWEPT,
    SWEPT,
    Document,
    as_compared_run,
    compare_documents,
    failure,
    label,
    measurement,
    run,
)


def written(folder: Path, **documents: Document) -> list[str]:
    """The paths of the written files, relative to the folder."""
    for name, document in documents.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(document))
    return [f"{name}.json" for name in documents]


BEFORE = run(
    measurement(4, 200.0),
    measurement(6, 210.0),
    measurement(8, 220.0),
    measurement(10, 230.0),
    measurement(12, 240.0, stage="sweep", count=48),
    measurement(14, 250.0, stage="sweep", count=48),
    failures=(failure(16, "crash"),),
)

AFTER = run(
    measurement(4, 210.0),
    measurement(6, 200.0),
    measurement(8, 220.5),
    measurement(12, 264.0, stage="sweep", count=48),
    measurement(16, 260.0),
    measurement(18, 270.0),
    failures=(failure(10),),
    environment__versions__nccl="2.29.1",
    environment__driver="590.1",
    ended=None,
    optimal__round_trip_us=420.0,
    optimal__num_sms=64,
    points={"planned": 9, "measured": 6, "failed": 1, "missing": 2},
)

EXPECTED = """\
B is incomplete: 2 of 9 points are missing.

Runs
   file    measured
A  A.json  2026-11-22T23:59:56Z to 2026-11-23T00:01:20Z
B  B.json  2026-11-22T23:59:56Z to unknown

What differs
fact                       A           B
environment.driver         580.159.04  590.1
environment.versions.nccl  2.28.9      2.29.1

Points, worst first, those that gate before the others
point                                          A us   B us    B/A         95 % CI  stage  verdict
deepep/dispatch/bf16/num_sms=24,nvl_chunk=10  230.0                                final  failed in B: hang
deepep/dispatch/bf16/num_sms=24,nvl_chunk=4   200.0  210.0  1.050  1.044 to 1.056  final  slower
deepep/dispatch/bf16/num_sms=24,nvl_chunk=12  240.0  264.0  1.100  1.089 to 1.111  sweep  slower
deepep/dispatch/bf16/num_sms=24,nvl_chunk=8   220.0  220.5  1.002  0.997 to 1.008  final  same
deepep/dispatch/bf16/num_sms=24,nvl_chunk=6   210.0  200.0  0.952  0.947 to 0.958  final  faster
deepep/dispatch/bf16/num_sms=24,nvl_chunk=16         260.0                         final  failed in A: crash
deepep/dispatch/bf16/num_sms=24,nvl_chunk=14  250.0                                sweep  only in A
deepep/dispatch/bf16/num_sms=24,nvl_chunk=18         270.0                         final  only in B
A us, B us: medians. B/A: above 1 where B is slower, with its 95 % CI. Runs on the same GPUs scatter by 0.18 %, and the interval allows for that.
slower, faster: by significantly more than 2 %, at 5 % for all points together, also if runs scatter by 0.35 %.
unstable: the samples scatter too much for a verdict.
Points that gate: 3, measured by both runs in the fresh process groups of a final, or picked by one. The others (the sweep, overlapped passes) are shown only: at least one run measured them in one set of processes.

Picks
pick         A us   B us    B/A  config in A                                                                              config in B
default     958.3  958.3  1.000  num_sms 20; dispatch nvl_chunk 24, nvl_buffer 256; combine nvl_chunk 10, nvl_buffer 256  the same
optimal     412.4  420.0  1.018  num_sms 128; dispatch nvl_chunk 8, nvl_buffer 128; combine nvl_chunk 14, nvl_buffer 256  num_sms 64; dispatch nvl_chunk 8, nvl_buffer 128; combine nvl_chunk 14, nvl_buffer 256
overlapped  436.4  436.4  1.000  num_sms 80; dispatch nvl_chunk 6, nvl_buffer 128; combine nvl_chunk 8, nvl_buffer 256    the same
Times are round trips, isolated, of the configs that each run picked.

Result
Points: 1 failed in B, 2 slower, 1 same, 1 faster, 1 failed in A, 1 only in A, 1 only in B.
Geometric mean of B/A: 1.0247 (stable points: 4).
B is worse: 1 failed in B, 1 slower.
"""  # noqa: E501


def test_the_output_is_this_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(written(tmp_path, A=BEFORE, B=AFTER)) == 1
    assert capsys.readouterr() == (EXPECTED, "")


def test_markdown_is_the_same_in_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*written(tmp_path, A=BEFORE, B=AFTER), "--markdown"]) == 1
    cells = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| `deepep")
    ]
    in_text = [line.split() for line in EXPECTED.splitlines() if line.startswith("deepep/")]
    assert [" ".join(row).split() for row in cells] == in_text


def test_json_is_one_document_with_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*written(tmp_path, A=BEFORE, B=AFTER), "--json"]) == 1
    document = msgspec.json.decode(capsys.readouterr().out)
    assert document["schema"] == SCHEMA == "deepep-sweep/comparison/1"
    assert document == msgspec.to_builtins(
        compare(as_compared_run(BEFORE, "A.json"), as_compared_run(AFTER, "B.json"), tolerance=0.02)
    )
    assert document["worse"] == [label(10), label(4)]
    assert document["counts"] == Counter(row["verdict"] for row in document["points"])
    assert document["geometric_mean"] == pytest.approx((1.05 * 200 / 210 * 220.5 / 220 * 1.1) ** 0.25)


def last_line(a: Document, b: Document, *flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The exit status of a comparison, and the last line that it prints."""
    written(folder, A=a, B=b)
    status = command.main([str(folder / "A.json"), str(folder / "B.json"), *flags])
    return f"{status} {capsys.readouterr().out.splitlines()[-1]}"


@pytest.mark.parametrize(
    ("pair", "flags", "status"),
    [
        ((run(FINAL, SWEPT), run(FINAL, SWEPT)), [], 0),
        ((run(FINAL, SWEPT), run(SLOW_FINAL, SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_FINAL, SWEPT)), ["--tolerance", "0.06"], 0),
        ((run(SLOW_FINAL, SWEPT), run(FINAL, SWEPT)), [], 0),
        ((run(SWEPT), run(SLOW_SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_SWEPT)), ["--allow-missing"], 1),
        ((run(FINAL, SWEPT), run(FINAL, failures=(failure(6),))), [], 1),
        ((run(FINAL, SWEPT), run(FINAL, SWEPT, failures=(failure(6),))), [], 1),
        ((run(FINAL, failures=(failure(6),)), run(FINAL, SWEPT)), [], 0),
        ((run(FINAL, failures=(failure(6),)), run(FINAL, failures=(failure(6, "crash"),))), [], 0),
        ((run(FINAL, SWEPT), run(FINAL)), [], 0),
        ((run(FINAL), run(failures=(failure(4),))), [], 1),
    ],
)
def test_the_exit_status_is_1_only_for_points_that_gate(
    pair: tuple[Document, Document], flags: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = last_line(*pair, *flags, folder=tmp_path, capsys=capsys)
    assert last.startswith(f"{status} B is worse: " if status else "0 Nothing is worse.")


def test_a_slower_point_that_does_not_gate_passes_and_is_counted_in_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = last_line(run(FINAL, SWEPT), run(FINAL, SLOW_SWEPT), folder=tmp_path, capsys=capsys)
    assert last == "0 Nothing that gates is worse; 1 point that does not gate is slower."


FULL_DISPATCH = measurement(4, 200.0, op="dispatch_full")


@pytest.mark.parametrize(
    ("pair", "lacks"),
    [
        ((run(*FINALS, SWEPT), run(SWEPT)), [label(10), label(4), label(8), "the final"]),
        ((run(*FINALS, SWEPT), run(FINALS[0], SWEPT)), [label(10), label(8)]),
        ((run(FINAL, SWEPT), run(FINAL | {"stage": "sweep"}, SWEPT)), ["the final"]),
        ((run(FINAL), run(FINAL, search__final_groups_measured=3)), ["2 of 5 groups of the final"]),
        ((run(SWEPT, measurement(8, 200.0, stage="sweep")), run(SWEPT)), [label(8)]),
    ],
)
def test_missing_gating_points_of_b_do_not_pass_unless_they_are_allowed(
    pair: tuple[Document, Document], lacks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_documents(*pair).missing == lacks
    for flags, status in (([], 3), (["--allow-missing"], 0)):
        last = last_line(*pair, *flags, folder=tmp_path, capsys=capsys)
        assert last == f"{status} Nothing is worse among the points that B has."
    assert f"B lacks: {', '.join(lacks)}.\n" in render.plain(compare_documents(*pair))


@pytest.mark.parametrize(
    "pair",
    [
        (run(FINAL, SWEPT), run(FINAL)),  # the sweep's point does not gate
        (run(FINAL, FULL_DISPATCH), run(FINAL)),  # the full dispatch is measured only for picks of the final
        (run(FINAL, FINALS[1]), run(FINAL, FINALS[1] | {"stage": "sweep"})),  # B's final took other points
        (run(FINAL), run(FINAL, SWEPT)),
    ],
)
def test_points_that_a_final_need_not_measure_are_not_missing(pair: tuple[Document, Document]) -> None:
    assert compare_documents(*pair).missing == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["A.json"], "the following arguments are required: B"),
        (["A.json", "C.json"], "C.json is not a run folder: it has no run.json"),
        (
            ["A.json", "bad.json"],
            "bad.json is not a RESULTS file: Expected `float`, got `str` - at `$.measurements[0].median_us`",
        ),
        (
            ["A.json", "newer.json"],
            "newer.json has schema deepep-sweep/results/3, this program reads up to deepep-sweep/results/2",
        ),
        (["A.json", "A.json", "--tolerance", "1"], "--tolerance must be at least 0 and below 1, got 1"),
        (["A.json", "A.json", "--tolerance", "-0.1"], "--tolerance must be at least 0 and below 1, got -0.1"),
        (["A.json", "A.json", "--tolerance", "nan"], "--tolerance must be at least 0 and below 1, got nan"),
        (["A.json", "A.json", "--tolerance", "x"], "argument --tolerance: invalid float value: 'x'"),
        (["A.json", "A.json", "--json", "--markdown"], "argument --markdown: not allowed with argument --json"),
        (["A.json", "A.json", "--tol", "0"], "unrecognized arguments: --tol 0"),
    ],
)
def test_a_bad_command_is_one_line_a_hint_and_status_2(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, A=run(FINAL), bad=run(FINAL | {"median_us": "1"}), newer=run(schema="deepep-sweep/results/3"))
    assert command.main(arguments) == 2
    output, (first, second) = (capsys.readouterr()), ("error: ", "hint: ")
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(first + error)
    assert lines[1].startswith(second)


def test_two_dry_runs_are_compared_and_labelled_as_not_a_measurement(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.compare", str(sweep.folder), str(sweep.folder))
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    assert "not a measurement of DeepEP" in NOT_A_MEASUREMENT
    assert lines[0] == "Both are dry runs on CPUs: the times are not measurements of DeepEP."
    assert lines[-1] == "Nothing is worse."


def test_help_is_the_manual_page(run_module: Command) -> None:
    process = run_module("launcher.compare", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    for word in (
        "--tolerance",
        "--unlike-hardware",
        "--allow-missing",
        "--json",
        "0  nothing that gates is worse",
        "1  B is worse",
    ):
        assert word in process.stdout
