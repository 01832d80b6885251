"""deepep-export: arguments, output, refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from launcher import export
from launcher.deploy.formats import EXPORTS, SHIM
from launcher.deploy.tuned import PICKS
from tests.builders import Command, Sweep
from tests.deploy.exported import FILES, RESULTS
from tests.published import GOLDEN, PUBLISHED


def test_stdout_is_the_paths_of_the_written_files(run_module: Command, tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED / GOLDEN, tmp_path / "run", ignore=shutil.ignore_patterns("shards", "exports"))
    process = run_module("launcher.export", str(tmp_path / "run"))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == [str(tmp_path / "run" / "exports" / name) for name in FILES]
    assert sorted(FILES) == sorted(path.name for path in (tmp_path / "run" / "exports").iterdir())


def test_a_dry_run_is_refused_and_nothing_is_written(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.export", str(sweep.folder))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"error: {sweep.folder}/RESULTS_EP4.json is a dry run: it measured no DeepEP\n"
        "hint: sweep on a machine with GPUs and deep_ep\n"
    )
    assert not (sweep.folder / "exports").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_to_writes_one_format_and_the_shim_where_the_format_needs_it(name: str, tmp_path: Path) -> None:
    shutil.copy(RESULTS, tmp_path)
    assert export.main([str(tmp_path / RESULTS.name), "--to", name]) == 0
    expected = {EXPORTS[name].file} | ({SHIM} if name in ("megatron", "vllm", "verl") else set())
    assert {path.name for path in (tmp_path / "exports").iterdir()} == expected


def test_files_of_two_picks_never_share_a_folder(tmp_path: Path) -> None:
    shutil.copy(RESULTS, tmp_path)
    for arguments in ([], ["--to", "megatron", "--pick", "overlapped"], ["--to", "vllm", "--pick", "knee"]):
        assert export.main([str(tmp_path / RESULTS.name), *arguments]) == 0
    picks_by_folder: dict[Path, set[str]] = {}
    for file in (tmp_path / "exports").rglob("*.*"):
        picks = {pick for pick in PICKS if re.search(rf"""pick['"]?: ['"]?{pick}\b""", file.read_text())}
        picks_by_folder[file.parent.relative_to(tmp_path)] = (
            picks_by_folder.get(file.parent.relative_to(tmp_path), set()) | picks
        )
    assert picks_by_folder == {
        Path("exports"): {"fastest"},
        Path("exports/overlapped"): {"overlapped"},
        Path("exports/knee"): {"knee"},
    }


def test_help_names_every_format_and_every_pick(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in (*EXPORTS, *FILES, *PICKS))
    assert export.main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "nemo"], f"--to must be one of {', '.join(EXPORTS)}, got nemo"),
        (["--pick", "best"], f"--pick must be one of {', '.join(PICKS)}, got best"),
        (["--pick"], "argument --pick: expected one argument"),
        (["--too", "sglang"], "unrecognized arguments: --too sglang"),
    ],
)
def test_a_wrong_argument_is_one_line_that_lists_the_right_ones(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = shutil.copy(RESULTS, tmp_path)
    assert export.main([str(results), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"error: {message}"
    assert not (tmp_path / "exports").exists()
