"""Published runs remade from their records: the same numbers, and for one run the same text."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from launcher.deploy import exporting, tuned
from launcher.deploy.formats import EXPORTS
from tests.published import GOLDEN, PUBLISHED, WITH_RECORDS, remake, unpack
from tests.report.results_values import differences, values


@pytest.fixture(scope="module", params=WITH_RECORDS)
def regenerated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A published run, and a copy remade from its records."""
    published, copy = (tmp_path_factory.mktemp(name) for name in ("published", "again"))
    return unpack(request.param, published), remake(request.param, copy)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with tracked reports, remade from its records."""
    return remake(GOLDEN, tmp_path_factory.mktemp("golden"))


def results_of(folder: Path) -> Path:
    (file,) = folder.glob("RESULTS_EP*.json")
    return file


def test_a_published_run_has_the_numbers_that_follow_from_its_records(regenerated: tuple[Path, Path]) -> None:
    original, copy = map(results_of, regenerated)
    before, now = (values(msgspec.json.decode(file.read_bytes())) for file in (original, copy))
    assert len(before) > 5_000
    assert differences(before, now) == []
    assert tuned.read(copy).verdict.kind == tuned.read(original).verdict.kind


@pytest.mark.parametrize("name", ["OPTIMAL_CONFIGS.md", "SUMMARY.md"])
def test_a_published_report_equals_the_one_made_from_its_records(golden: Path, name: str) -> None:
    assert (golden / name).read_text() == (PUBLISHED / GOLDEN / name).read_text(), "make golden rewrites it"


def test_the_page_has_the_picks_of_the_report_with_every_time(regenerated: tuple[Path, Path]) -> None:
    _, copy = regenerated
    report, page = ((copy / name).read_text() for name in ("OPTIMAL_CONFIGS.md", "report.html"))
    rows = re.findall(r"^\| (fastest|overlapped|default_sms|knee) \| (num_sms.*) \|$", report, re.MULTILINE)
    libraries = msgspec.json.decode(results_of(copy).read_bytes())["libraries"]
    assert len(rows) == 4 * len(libraries)
    for pick, rest in rows:
        cells = "</td><td>".join(rest.split(" | "))
        assert f'<td class="word">{pick}</td><td class="word note">{cells}</td></tr>' in page


def test_published_results_and_records_give_the_same_exports(regenerated: tuple[Path, Path]) -> None:
    published, copy = regenerated
    for file in exporting.export(results_of(published), names=list(EXPORTS)):
        assert file.read_text() == (copy / "exports" / file.name).read_text()


def test_published_exports_equal_those_made_from_the_published_results(golden: Path) -> None:
    tracked = PUBLISHED / GOLDEN / "exports"
    assert {file.name for file in tracked.iterdir()} == {one.file for one in EXPORTS.values()}
    for file in tracked.iterdir():
        assert file.read_text() == (golden / "exports" / file.name).read_text(), "make golden rewrites it"
