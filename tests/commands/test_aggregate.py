"""deepep-aggregate: arguments, output and the files that it must not change."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from launcher import aggregate
from launcher.config.plan import FINAL
from launcher.store.attempts import Attempt, add_attempt
from launcher.store.run_folder import RunFolder
from tests.builders import Command, Sweep
from tests.published import PUBLISHED


def test_help_of_aggregate_names_its_flags_and_exit_statuses(run_module: Command) -> None:
    process = run_module("launcher.aggregate", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert "strict=true" in process.stdout
    assert "allow_mixed=true" in process.stdout
    for status in (0, 1, 2, 3, 130):
        assert re.search(rf"^  {status} +\w", process.stdout.partition("Exit status")[2], re.MULTILINE), status


@pytest.mark.parametrize(
    "words", ["FOLDER", "FOLDER/missing", "--frobnicate", "FOLDER strict=maybe", "FOLDER FOLDER", "FOLDER strict"]
)
def test_aggregate_refuses_arguments_that_are_not_one_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert aggregate.main(words.replace("FOLDER", str(tmp_path)).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: .+\nhint: .+\n", captured.err)


def test_a_published_run_whose_records_are_packed_keeps_its_report(run_module: Command, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(PUBLISHED / "h200x2-ep2-bf16", folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for module in ("launcher.aggregate", "launcher.status"):
        process = run_module(module, str(folder))
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr == (
            f"error: the records of {folder} are packed: shards/0000/records.jsonl.gz\n"
            f"hint: gunzip --keep --recursive {folder}\n"
        )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_refused_concurrent_attempt_leaves_a_complete_run_complete(
    run_module: Command, sweep: Sweep, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    run = RunFolder.open(folder)
    for index in (0, FINAL):
        add_attempt(run, index, Attempt(None, "here", 0.0, 1.0, "failed"))
    process = run_module("launcher.aggregate", str(folder))
    assert process.returncode == 0, process.stderr
    assert "before its search was complete" not in (folder / "OPTIMAL_CONFIGS.md").read_text()


def test_aggregate_without_a_folder_prints_its_usage_as_an_error(run_module: Command) -> None:
    process = run_module("launcher.aggregate")
    assert (process.returncode, process.stdout) == (2, "")
    assert "python -m launcher.aggregate RUN" in process.stderr


def test_aggregate_again_changes_nothing(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) >= 8
    process = run_module("launcher.aggregate", str(folder))
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
