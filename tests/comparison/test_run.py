"""Reading one run of a comparison."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launcher.comparison import run as compared_runs
from tests.published import PUBLISHED


@pytest.mark.parametrize("name", ["h100x2-ep2-bf16", "h100x2-ep2-fp8", "h200x2-ep2-exhaustive"])
def test_the_picks_of_a_published_run_are_among_its_measurements(name: str) -> None:
    run = compared_runs.read(PUBLISHED / name)
    assert len(run.optimal) == 2
    assert {run.measured[label].is_fresh for label in run.optimal} == {True}


def test_a_run_folder_and_its_results_file_are_the_same_run(tmp_path: Path) -> None:
    source = PUBLISHED / "h200x2-ep2-bf16"
    for name in ("run.json", "RESULTS_EP2.json"):
        shutil.copy(source / name, tmp_path)
    assert compared_runs.read(tmp_path) == compared_runs.read(tmp_path / "RESULTS_EP2.json")
