"""Reports of several libraries: tables, verdict, layers, and what has no result."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.backends import BACKENDS
from bench.records import Dtype, Failed, FailureKind, Op, Point, Record
from launcher.analysis.results import Results
from launcher.config import planning
from launcher.config.schema import Ep
from launcher.report import library_tables, library_verdict, picks, pictures, plots, results_json, writer
from tests.analysis.runs import build, check_tables
from tests.builders import ROOT, html_of, markdown_of, report_of, summary_of
from tests.libraries import LIBRARIES, Times, all_libraries, lines_of, plan_of, results_of, true_us, write_run

HOSTILE = "<script>alert(1)</script> | ` ** [a](b)\n# Title"
LOST = Failed(FailureKind.CRASH, "rank 1 died of signal 11", "check", 1, "")


def rows_of(results: Results, library: str) -> dict[str, list[str]]:
    """The rows of one library in the first table, by pick."""
    return {pick: cells for name, pick, *cells in library_tables.rows(results) if name == library}


def failing(matches: Callable[[Point], bool], failed: Failed = LOST) -> Times:
    """The invented times, in which some points fail."""
    return lambda point, repetition: failed if matches(point) else true_us(point, repetition)


def scaled(**factors: float) -> Times:
    """The invented times of isolated operations, those of some libraries multiplied."""

    def times(point: Point, repetition: int) -> float:
        is_isolated = point.op in (Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE)
        return true_us(point, repetition) * (factors.get(point.backend, 1.0) if is_isolated else 1.0)

    return times


@functools.cache
def drawings() -> dict[str, str]:
    """The pictures of all libraries."""
    return plots.draw(all_libraries())


@functools.cache
def without_nccl_ep() -> Results:
    """A run in which every point of NCCL EP fails."""
    return results_of(plan_of(*LIBRARIES), failing(lambda point: point.backend == "nccl_ep"))


def test_the_first_table_has_the_defaults_the_optimum_and_the_best_of_few_sms_of_every_library() -> None:
    v1, v2, nccl = (rows_of(all_libraries(), BACKENDS[name].title) for name in LIBRARIES)
    limits = ["at most 16 SMs", "at most 24 SMs", "at most 32 SMs", "at most 64 SMs"]
    assert list(v1) == ["the library's default", "optimum", *limits]
    assert list(v2) == ["the library's default", "default of vLLM, SGLang", "optimum", *limits]
    assert list(nccl) == ["the library's default", "optimum", "at most 16, 24, 32 or 64 SMs"]
    assert [cells[0] for cells in v1.values()] == ["20", "128", "16", "24", "32", "64"]
    assert [cells[0] for cells in v2.values()] == ["22", "64", "64", "16", "24", "32", "64"]


def test_a_row_has_cached_and_full_dispatch_combine_and_both_round_trips() -> None:
    sms, dispatch, full, combine, round_trip, ends, full_round_trip, knobs = rows_of(all_libraries(), "DeepEP V1")[
        "optimum"
    ]
    assert (sms, knobs) == ("128", "dispatch nvl_chunk 8, nvl_buffer 256; combine nvl_chunk 8, nvl_buffer 256")
    assert float(round_trip) == pytest.approx(418, rel=0.002)
    assert float(dispatch) + float(combine) == pytest.approx(float(round_trip), abs=0.11)
    assert float(full) - float(dispatch) == pytest.approx(60, abs=1)
    assert float(full) + float(combine) == pytest.approx(float(full_round_trip), abs=0.11)
    low, high = map(float, ends.split(" to "))
    assert low < float(round_trip) < high


def test_the_other_knobs_of_a_pair_do_not_repeat_its_sms() -> None:
    assert rows_of(all_libraries(), "DeepEP V2")["optimum"][-1] == ""
    assert rows_of(all_libraries(), "NCCL EP")["optimum"][-1] == (
        "tokens_per_chunk 64; dispatch num_stages 12, num_pipelines 2; combine num_stages 12, num_pipelines 2"
    )


def test_plain_collectives_stand_apart_and_an_all_to_all_is_divided_into_exchange_and_packing() -> None:
    results = all_libraries()
    alltoall, allgather = library_tables.plain_rows(results)
    name, dispatch, exchange, packing, *_ = alltoall
    assert name == "all-to-all"
    assert float(dispatch) == pytest.approx(292, rel=0.002)
    assert float(exchange) == pytest.approx(231, rel=0.002)
    assert float(packing) == pytest.approx(float(dispatch) - float(exchange), abs=0.11)
    assert allgather[:4] == ["all-gather + reduce-scatter", allgather[1], "", ""]
    assert not {row[0] for row in library_tables.rows(results)} & {alltoall[0], allgather[0]}
    text = markdown_of(results)
    assert "## Plain collectives, with another contract: not ranked with the libraries" in text
    assert f"* **all-to-all**: {BACKENDS['alltoall'].contract}" in text


def test_what_a_library_takes_besides_its_sms_stands_under_the_table() -> None:
    note = f"* **DeepEP V2**: {BACKENDS['deepep_v2'].besides_sms}"
    for text in (markdown_of(all_libraries()), summary_of(all_libraries())):
        assert note in text.split("## The libraries")[1].split("\n## ")[0]
    assert f"<b>DeepEP V2</b>: {BACKENDS['deepep_v2'].besides_sms}" in html_of(all_libraries())


def sentence(results: Results, begin: str) -> str:
    (found,) = [each for each in library_verdict.sentences(results) if each.startswith(begin)]
    return found


def speed(other: str) -> str:
    """The pattern of how many times as fast as another library one is."""
    ends = r"95 % CI \d\.\d{3} to \d\.\d{3}; another run \d\.\d\d to \d\.\d\d"
    return rf"\d\.\d{{3}} times as fast as {other} \({ends}\)"


def test_the_verdict_names_the_fastest_library_and_how_many_times_as_fast_it_is() -> None:
    results = all_libraries()
    for begin, first, *others in (
        ("At their optimum,", "DeepEP V1", "DeepEP V2", "NCCL EP"),
        ("With at most 24 SMs,", "DeepEP V2", "NCCL EP", "DeepEP V1"),
        ("With their own defaults,", "DeepEP V2", "NCCL EP", "DeepEP V1"),
        ("At their optimum with full dispatches,", "DeepEP V1", "DeepEP V2", "NCCL EP"),
    ):
        speeds = " and ".join(map(speed, others))
        assert re.fullmatch(rf"{begin} {first} is the fastest: {speeds}\.", sentence(results, begin))
    assert "1.646 times as fast as NCCL EP" in sentence(results, "At their optimum,")


def test_of_two_libraries_one_is_so_many_times_as_fast_as_the_other() -> None:
    results = results_of(plan_of("deepep", "deepep_v2"))
    found = sentence(results, "At their optimum,"), sentence(results, "With at most 24")
    assert re.fullmatch(rf"At their optimum, DeepEP V1 is {speed('DeepEP V2')}\.", found[0])
    assert re.fullmatch(rf"With at most 24 SMs, DeepEP V2 is {speed('DeepEP V1')}\.", found[1])


def test_libraries_within_one_percent_of_each_other_cannot_be_told_apart() -> None:
    results = results_of(plan_of(*LIBRARIES), scaled(deepep=541 / 418, nccl_ep=2.0))
    found = sentence(results, "At their optimum,")
    ratio = r"ratio of their times [01]\.\d{3}, 95 % CI [01]\.\d{3} to [01]\.\d{3}, margin 1 %"
    both = "(DeepEP V1 and DeepEP V2|DeepEP V2 and DeepEP V1)"
    rest = rf"(DeepEP V1|DeepEP V2) is {speed('NCCL EP')}"
    assert re.fullmatch(rf"At their optimum, {both} cannot be told apart \({ratio}\); {rest}\.", found)
    three = results_of(plan_of(*LIBRARIES), scaled(deepep=541 / 418, nccl_ep=541 / 688))
    assert "cannot be told apart from" in sentence(three, "At their optimum,")


def test_a_situation_that_only_one_library_has_a_result_for_says_so() -> None:
    times = failing(lambda point: point.backend != "deepep_v2" and 0 < point.knobs.get("num_sms", 0) <= 24)
    assert sentence(results_of(plan_of("deepep", "deepep_v2"), times), "With at most 24") == (
        "With at most 24 SMs, only DeepEP V2 has a result."
    )


def test_without_a_final_libraries_are_not_compared() -> None:
    results = results_of(plan_of(*LIBRARIES, final_groups=0))
    assert library_verdict.sentences(results) == [
        "The libraries are not compared: fewer than 3 groups of the final measured two of them."
    ]
    assert check_tables(markdown_of(results)) > 10
    assert html_of(results)


@pytest.mark.parametrize(
    ("factor", "answer", "words"),
    [
        (1.0, "Yes", "DeepEP V1 at its optimum is 1.294 times as fast as all-gather + reduce-scatter (95 % CI"),
        (0.5, "No", "all-gather + reduce-scatter is 1.545 times as fast as DeepEP V1 at its optimum (95 % CI"),
        (418 / 541, "It depends", "DeepEP V1 at its optimum and all-gather + reduce-scatter, the fastest of them, can"),
    ],
)
def test_one_sentence_answers_whether_a_library_beats_plain_collectives(factor: float, answer: str, words: str) -> None:
    results = results_of(plan_of(*LIBRARIES), scaled(allgather=factor, alltoall=factor))
    found = sentence(results, "Is an EP library faster than plain collectives on this node?")
    assert f"? {answer}: with cached dispatches {words}" in found
    assert "; with full dispatches " in found


def test_plain_collectives_are_in_no_ranking_of_libraries() -> None:
    *rankings, _ = library_verdict.sentences(all_libraries())
    assert not [each for each in rankings if "all-" in each]


def test_where_dispatch_and_combine_may_differ_the_best_of_each_and_the_best_shared_value_are_reported() -> None:
    (found,) = [each for each in report_of(all_libraries()).libraries["deepep_v2"].findings if "for itself" in each]
    assert found.startswith("If each operation chose for itself, the best dispatch takes 245 us with num_sms 32 (95 % ")
    assert "the best combine takes 292 us with num_sms 64" in found
    assert found.endswith(": 537 us together. With one value for both the best is num_sms 64: 541 us.")
    for name in ("deepep", "nccl_ep"):
        assert not [each for each in report_of(all_libraries()).libraries[name].findings if "for itself" in each]


def test_the_comparisons_that_were_made_are_saved_and_are_all_listed() -> None:
    document = results_json.document(all_libraries())
    rows = library_tables.comparison_rows(all_libraries())
    assert len(document.comparisons) == len(rows)
    assert {row[0] for row in rows} >= {"the library's default", "optimum", "at most 24 SMs", "overlapped", "layer"}
    assert ["optimum", "cached", "DeepEP V1", "DeepEP V2"] in [row[:4] for row in rows]


def test_libraries_that_were_left_out_are_named_with_the_reason() -> None:
    plan = msgspec.structs.replace(plan_of("deepep", "deepep_v2"), left_out={"nccl_ep": f"no nccl.ep {HOSTILE}"})
    results = results_of(plan)
    for text in (markdown_of(results), summary_of(results)):
        assert "* NCCL EP was left out: no nccl.ep &lt;script&gt;" in text.split("## Without a result")[1]
        assert check_tables(text) > 10
    assert "<li>NCCL EP was left out: no nccl.ep &lt;script&gt;" in html_of(results)


def test_a_library_whose_every_point_failed_is_in_the_table_and_listed_with_its_first_failure() -> None:
    results = without_nccl_ep()
    assert rows_of(results, "NCCL EP") == {"no result": [""] * 8}
    (line,) = library_verdict.without_result(results)
    assert line.startswith("NCCL EP has no result: every point failed. The first: nccl_ep/")
    assert line.endswith(": crash in check (rank 1): rank 1 died of signal 11")
    assert f"* {line}" in markdown_of(results)
    assert "NCCL EP" not in " ".join(library_verdict.sentences(results))
    part = markdown_of(results).split("\n## NCCL EP\n")[1].split("\n## ")[0]
    assert "No pair of a dispatch and a combine was measured: see the failures below." in part
    assert re.search(r"Some points failed: \d+ crash\.", part)


def test_a_failed_plain_collective_and_an_unmeasured_library_are_listed_too() -> None:
    results = results_of(plan_of("deepep", "deepep_v2"), failing(lambda point: point.backend == "allgather"))
    (line,) = library_verdict.without_result(results)
    assert line.startswith("all-gather + reduce-scatter has no result: every point failed. The first: allgather/")
    plan = plan_of("deepep", "deepep_v2")
    lines = [line for line in lines_of(plan) if not isinstance(line, Record) or line.point.backend != "deepep_v2"]
    results = build(lines, plan=plan)
    assert library_verdict.without_result(results) == ["DeepEP V2 has no result: it was not measured yet."]


def test_failures_of_one_library_are_not_counted_in_the_findings_of_another() -> None:
    parts = report_of(without_nccl_ep()).libraries
    assert not [each for each in parts["deepep"].findings if "failed" in each]
    assert [each for each in parts["nccl_ep"].findings if "failed" in each]


def test_every_library_has_a_section_and_what_they_share_stands_once() -> None:
    text = markdown_of(all_libraries(), drawings())
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [f"## {BACKENDS[name].title}" for name in LIBRARIES] == [
        line for line in headings if line.startswith(("## DeepEP", "## NCCL"))
    ]
    for once in ("Points", "Checks", "Columns", "Files", "Provenance", "Summary", "A whole layer, measured"):
        assert headings.count(f"## {once}") == 1, once
    for each in ("Key findings", "Which pick to use", "Overlapped with expert GEMMs"):
        assert text.count(f"\n### {each}\n") == len(LIBRARIES), each
    assert text.count("\n### How to apply it\n") == 1
    assert "Exports are of DeepEP V1 only." in text.split("## DeepEP V1")[1].split("\n## ")[0]


def test_the_first_picture_stands_before_all_tables_and_no_two_pictures_share_a_name() -> None:
    drawn = drawings()
    assert set(drawn) == {
        "libraries.svg",
        *(f"deepep.{kind}.svg" for kind in ("pareto", "heatmap_dispatch", "heatmap_combine")),
        *("deepep_v2.pareto.svg", "nccl_ep.pareto.svg"),
    }
    text, page = markdown_of(all_libraries(), drawn), html_of(all_libraries(), drawn)
    assert text.index("](libraries.svg)") < text.index("| ") < text.index("](deepep.pareto.svg)")
    assert page.index('<figure class="libraries">') < page.index("<table") < page.index('<figure class="pareto">')
    assert page.count("<figure") == len(drawn)
    assert set(pictures.own(drawn, "deepep")) == {name for name in drawn if name.startswith("deepep.")}


def test_the_first_picture_has_both_panels_every_library_every_default_and_the_plain_collectives() -> None:
    svg = drawings()[pictures.LIBRARIES]
    words = set(re.findall(r">([^<>]+)</text>", svg))
    assert {BACKENDS[name].title for name in LIBRARIES} <= words
    assert {"isolated: computation waits", "overlapped with one layer's expert GEMMs"} <= words
    assert {"the library's default", "default of vLLM, SGLang", "plain collective (another contract)"} <= words
    assert {"all-to-all", "652 us", "all-gather +", "reduce-scatter", "541 us", "GEMMs isolated, 3961 us"} <= words


def test_a_measured_layer_replaces_the_computed_effect_and_gives_the_gain_over_each_default() -> None:
    text = markdown_of(all_libraries())
    table = text.split("## A whole layer, measured")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| DeepEP V")]
    v1 = [row for row in rows if row[0] == "DeepEP V1"]
    assert [(row[1], row[2], row[3]) for row in v1] == [
        (layer, pick, sms)
        for layer in ("forward", "training")
        for pick, sms in (("the library's default", "20"), ("optimum", "128"), ("at most 24 SMs", "24"))
    ]
    assert re.fullmatch(r"1\.0[56]\dx \(1\.05\d to 1\.06\d\)", v1[1][6])
    assert v1[0][6] == ""
    v2 = {tuple(row[1:3]): row for row in rows if row[0] == "DeepEP V2"}
    assert v2["forward", "the library's default"][7].startswith("0.99")
    assert v2["forward", "default of vLLM, SGLang; optimum"][6].startswith("1.00")
    assert "Expected effect on the model, computed" not in text


def test_where_no_layer_was_measured_the_effect_is_computed_and_labelled() -> None:
    times = failing(lambda point: point.backend == "deepep" and point.op is Op.LAYER_TRAINING)
    results = results_of(plan_of("deepep", "deepep_v2", overlapped=False), times)
    text = markdown_of(results)
    assert "## A whole layer, measured" not in text
    for title in ("DeepEP V1", "DeepEP V2"):
        part = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert "### Expected effect on the model, computed" in part
        assert "Computed, not measured, for deepseek" in part
    assert html_of(results).count("Expected effect on the model, computed</h3>") == 2


def test_one_library_has_its_layers_and_plain_collectives_too() -> None:
    results = results_of(plan_of("deepep_v2"))
    text = markdown_of(results)
    assert text.startswith("# Optimal configuration of DeepEP V2 at EP=2")
    for heading in ("A whole layer, measured", "Plain collectives, with another contract: not ranked with the lib"):
        assert f"\n## {heading}" in text
    assert "Is DeepEP V2 faster than plain collectives on this node? It depends: with cached dispatches" in text
    assert "A whole layer, measured</h2>" in html_of(results)


def test_fp8_dispatches_are_reported_alike() -> None:
    results = results_of(plan_of(*LIBRARIES, dtype=Dtype.FP8))
    text = markdown_of(results)
    assert "dispatch in FP8, combine in BF16" in text
    assert check_tables(text) > 50
    assert len(library_verdict.sentences(results)) == len(library_verdict.sentences(all_libraries()))
    assert {"all-to-all", "all-gather + reduce-scatter"} == {row[0] for row in library_tables.plain_rows(results)}


def test_no_message_of_a_failed_library_can_break_the_report() -> None:
    hostile = Failed(FailureKind.ERROR, HOSTILE, HOSTILE, 1, HOSTILE)
    tame = Failed(FailureKind.ERROR, "tame", "tame", 1, "tame")
    texts = [
        markdown_of(results_of(plan_of(*LIBRARIES), failing(lambda point: point.backend == "nccl_ep", failed)))
        for failed in (hostile, tame)
    ]
    assert check_tables(texts[0]) == check_tables(texts[1])
    headings = [[line for line in text.splitlines() if line.startswith("#")] for text in texts]
    assert headings[0] == headings[1]
    assert "<script" not in re.sub(r"(`+).*?\1", "", texts[0])


def test_every_column_across_libraries_stands_in_the_methodology() -> None:
    methodology = (ROOT / "docs" / "METHODOLOGY.md").read_text().split("## Columns of the report")[1].split("\n## ")[0]
    known = {
        name.strip()
        for line in methodology.splitlines()
        if line.startswith("| ")
        for name in line.split("|")[1].split(",")
    }
    across = (*library_tables.COLUMNS, *library_tables.PLAIN_COLUMNS, *library_tables.COMPARISON_COLUMNS)
    headings = {column.heading for column in across if column.meaning}
    assert {"SMs", "cached dispatch us", "exchange us", "packing us", "A / B"} <= headings
    assert headings | {"layer us", "gain", "gain over engines"} <= known


def test_a_run_folder_of_several_libraries_gets_every_file(tmp_path: Path) -> None:
    folder = write_run(plan_of(*LIBRARIES), tmp_path / "run")
    assert writer.aggregate(folder) == 0
    names = {file.name for file in folder.path.iterdir()}
    assert {"OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html", "RESULTS_EP2.json", "libraries.svg"} <= names
    assert "](libraries.svg)" in (folder.path / "SUMMARY.md").read_text()
    files = (folder.path / "OPTIMAL_CONFIGS.md").read_text().split("## Files")[1]
    assert all(f"* `{name}`: a picture" in files for name in names if name.endswith(".svg"))


def test_where_ranks_share_a_gpu_no_time_of_any_library_is_shown() -> None:
    plan = plan_of("deepep", "deepep_v2")
    shared = msgspec.structs.replace(plan.spec, ep=Ep(size=2, share_gpus=True))
    results = results_of(planning.make(shared))
    for text in (markdown_of(results), summary_of(results), html_of(results)):
        assert "Several ranks shared a GPU" in text
        assert "round trip us" not in text
        assert "Which library is the fastest" not in text
    assert results.comparisons == []


def test_a_run_of_plain_collectives_alone_has_no_ranking() -> None:
    results = results_of(plan_of("alltoall", "allgather"))
    assert library_verdict.sentences(results) == []
    text = markdown_of(results)
    assert "## The libraries" not in text
    assert [row[0] for row in library_tables.plain_rows(results)] == ["all-to-all", "all-gather + reduce-scatter"]
    assert "* all-gather + reduce-scatter: Fastest: no knobs: 540.8 us per round trip" in text
    assert html_of(results)


def test_a_library_s_buffers_are_sized_by_its_own_declaration() -> None:
    results = all_libraries()
    sizes = {name: {row[-1] for row in picks.rows(results.of(name))} for name in LIBRARIES}
    assert sizes["deepep_v2"] == sizes["nccl_ep"] == {""}
    assert all(float(size) > 0 for size in sizes["deepep"])
    assert "* **buffer MiB**: the buffer of each rank, by the library's own formula." in markdown_of(results)
