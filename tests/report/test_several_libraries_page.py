"""report.html of several libraries in headless Chromium."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from bench.backends import BACKENDS
from bench.records import Failed, FailureKind
from launcher.report import plots
from tests.builders import html_of
from tests.libraries import LIBRARIES, all_libraries, plan_of, results_of, true_us
from tests.report.test_html_report import HOSTILE, chromium, rows, shown

__all__ = ["chromium"]


def test_every_point_names_its_library_and_can_be_filtered_by_it(chromium: str, tmp_path: Path) -> None:
    results = all_libraries()
    file = tmp_path / "report.html"
    file.write_text(html_of(results, plots.draw(results)))
    every = rows(shown(chromium, file))
    assert len(every) == len(results.measurements)
    titles = {BACKENDS[name].title for name in (*LIBRARIES, "alltoall", "allgather")}
    assert {row[1] for row in every} == titles
    chosen = rows(shown(chromium, file, fragment="library=nccl"))
    assert {row[1] for row in chosen} <= {"NCCL EP"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_has_a_section_to_link_to(name: str) -> None:
    page = html_of(all_libraries())
    assert f'<section class="library" id="{name}">\n<h2>{BACKENDS[name].title}</h2>' in page


def test_hostile_messages_of_a_failed_library_stay_text(chromium: str, tmp_path: Path) -> None:
    failed = Failed(FailureKind.ERROR, HOSTILE, "check", 1, HOSTILE)
    results = results_of(
        plan_of("deepep", "nccl_ep"), lambda point, _: failed if point.backend == "nccl_ep" else true_us(point)
    )
    file = tmp_path / "report.html"
    file.write_text(html_of(results))
    document = shown(chromium, file)
    assert "<title>deepep, nccl_ep at EP=2" in document
    assert "document.title='owned'" in html.unescape(document.split("<h2>Without a result</h2>")[1].split("</ol>")[0])
    assert HOSTILE in rows(document)[-1][-1]
