"""The commands that read a run of several libraries: exports are DeepEP V1's, comparisons are of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.records import Op
from launcher import api, compare, export, library, publish
from launcher.comparison import compare as comparison
from launcher.comparison.run import read
from launcher.report import writer
from tests.libraries import LIBRARIES, plan_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all libraries, with its reports."""
    folder = write_run(plan_of(*LIBRARIES), tmp_path_factory.mktemp("several") / "run")
    assert writer.aggregate(folder, draw=False) == 0
    return folder.path


def test_exports_are_of_deepep_v1_and_name_the_other_libraries(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "--to", "shim"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "note: exports are of DeepEP V1 only, not of DeepEP V2, NCCL EP\n"
    assert "'num_sms': 128" in Path(captured.out.strip()).read_text()


def test_only_deepep_v1_is_filed_in_a_library_of_configs(run: Path, tmp_path: Path) -> None:
    assert publish.main([str(run), "--library", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    assert library.read(file).picks["fastest"].dispatch["num_sms"] == 128


def test_a_run_without_deepep_v1_has_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(plan_of("deepep_v2", "nccl_ep"), tmp_path / "run")
    assert writer.aggregate(folder, draw=False) == 0
    assert export.main([str(folder.path)]) == 2
    assert "measured backend deepep_v2, nccl_ep, not deepep" in capsys.readouterr().err


def test_two_runs_are_compared_with_every_pick_of_every_library(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(run), str(run)]) == 0
    picks = capsys.readouterr().out.split("\nPicks\n")[1]
    for pick in ("deepep optimal", "deepep_v2 default", "deepep_v2 default of vllm_sglang", "nccl_ep overlapped"):
        assert f"\n{pick} " in picks
    assert "dispatch ;" not in picks
    assert compare.main([str(run), str(run), "--markdown"]) == 0
    assert compare.main([str(run), str(run), "--json"]) == 0


def test_layers_and_overlapped_pairs_do_not_gate_since_one_group_measures_them(run: Path) -> None:
    rows = comparison.compare(read(run), read(run), tolerance=0.02).points
    gating = {row.point.split("/")[1] for row in rows if row.gates}
    assert gating == {Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE, Op.EXCHANGE}
    assert {"layer", "layer_training", "overlapped"} <= {row.point.split("/")[1] for row in rows}


def test_the_python_interface_reads_it(run: Path) -> None:
    loaded = api.load(run)
    assert [each.name for each in loaded.results.libraries] == list(LIBRARIES)
    assert loaded.configs("fastest")["combine"]["num_sms"] == 128
    assert api.compare(loaded, loaded).worse == []
