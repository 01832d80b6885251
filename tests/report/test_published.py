"""The published runs, made again from their records: the same numbers, and in one of them the same words."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from launcher.deploy import exporting, tuned
from launcher.deploy.formats import EXPORTS
from launcher.report import writer
from launcher.store.run_folder import RunFolder
from tests.published import GOLDEN, PUBLISHED, WITH_RECORDS, unpacked
from tests.report.results_values import differences, values


@pytest.fixture(scope="module", params=WITH_RECORDS)
def again(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The RESULTS file of a published run, and the folder of a copy that was aggregated anew from its records."""
    copy = unpacked(request.param, tmp_path_factory.mktemp("again"))
    (results_file,) = copy.glob("RESULTS_EP*.json")
    published = results_file.rename(tmp_path_factory.mktemp("published") / results_file.name)
    for name in ("OPTIMAL_CONFIGS.md", "SUMMARY.md"):
        (copy / name).unlink(missing_ok=True)
    shutil.rmtree(copy / "exports", ignore_errors=True)
    assert writer.aggregate(RunFolder.open(copy), draw=request.param == GOLDEN) == 0
    return published, copy


@pytest.fixture
def golden(again: tuple[Path, Path]) -> Path:
    """The copy of the one run whose texts are kept."""
    _, copy = again
    return copy


def test_a_published_run_has_the_numbers_that_its_records_give(again: tuple[Path, Path]) -> None:
    published, copy = again
    (made,) = copy.glob("RESULTS_EP*.json")
    before, now = (values(msgspec.json.decode(file.read_bytes())) for file in (published, made))
    assert len(before) > 10_000
    assert differences(before, now) == []
    assert tuned.read(made).verdict.kind == tuned.read(published).verdict.kind


@pytest.mark.parametrize("again", [GOLDEN], indirect=True)
@pytest.mark.parametrize("name", ["OPTIMAL_CONFIGS.md", "SUMMARY.md"])
def test_a_published_report_is_what_its_records_give(golden: Path, name: str) -> None:
    tracked = PUBLISHED / GOLDEN / name
    assert (golden / name).read_text() == tracked.read_text(), f"make published-reports; copy {name} to {tracked}"


def test_the_page_has_the_picks_of_the_report_with_every_time(again: tuple[Path, Path]) -> None:
    _, copy = again
    said, shown = ((copy / name).read_text() for name in ("OPTIMAL_CONFIGS.md", "report.html"))
    rows = re.findall(r"^\| (fastest|overlapped|default_sms|knee) \| (num_sms.*) \|$", said, re.MULTILINE)
    assert len(rows) == 4
    for pick, rest in rows:
        cells = "</td><td>".join(rest.split(" | "))
        assert f'<td class="word">{pick}</td><td class="word note">{cells}</td></tr>' in shown


def test_the_published_results_export_what_the_records_give(again: tuple[Path, Path]) -> None:
    published, copy = again
    (made,) = copy.glob("RESULTS_EP*.json")
    texts = [
        {file.name: file.read_text() for file in exporting.export(results_file, names=list(EXPORTS))}
        for results_file in (published, made)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(EXPORTS)


@pytest.mark.parametrize("again", [GOLDEN], indirect=True)
def test_published_exports_are_what_the_published_results_give(golden: Path) -> None:
    (results_file,) = golden.glob("RESULTS_EP*.json")
    tracked = PUBLISHED / GOLDEN / "exports"
    written = exporting.export(results_file, names=list(EXPORTS))
    assert sorted(file.name for file in tracked.iterdir()) == sorted(file.name for file in written)
    for file in written:
        assert file.read_text() == (tracked / file.name).read_text(), f"copy exports/{file.name} to {tracked}"
