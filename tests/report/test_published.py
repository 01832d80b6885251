"""The published runs, made again from their records."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import pytest

from launcher.deploy import exporting
from launcher.deploy.formats import EXPORTS
from launcher.report import writer
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT

PUBLISHED = ROOT / "outputs" / "published"
WITH_RECORDS = sorted({file.parents[2].name for file in PUBLISHED.glob("*/shards/0000/records.jsonl.gz")})
MADE_ANEW = ("OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html", "RESULTS_EP*.json", "exports")


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
