"""A shard and the final compile kernels before they measure, and each only once on a node."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench import forkserver
from bench.backends.machine import kernel_folder
from bench.records import Failed, Host, Measured, Op, Record
from launcher.config import planning
from launcher.config.plan import FINAL, Plan
from launcher.store.records_file import read_shard
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard
from launcher.tuner.kernels import compile_ahead
from launcher.tuner.progress import ShardProgress
from launcher.tuner.shard import never
from tests.builders import ROOT, spec

SMALL = ("hardware=cpu", "ep=2", "workload=small", "workload.num_tokens=64", "measure=quick", "search.rounds=1")


@pytest.fixture(autouse=True)
def deep_ep(on_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node with a stand-in of deep_ep that runs on CPUs, and with a folder of its own for kernels."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("EP_JIT_CACHE_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stand_ins" / "elastic")]))
    forkserver.end()
    yield
    forkserver.end()


def make_plan(*num_sms: int) -> Plan:
    """DeepEP V2 with its default, 4 SMs, that of engines, 64, and these; and the plain collectives."""
    base = spec(*SMALL, "backend=alltoall")
    changes = {"backend": "deepep_v2", "grid": {"num_sms": list(num_sms)}}
    searched = msgspec.structs.replace(base.search, final_groups=2)
    return planning.make(msgspec.structs.replace(base, search=searched, **changes))


def make_folder(plan: Plan, path: Path) -> RunFolder:
    return RunFolder.create(plan, outputs=path, path=path, command=[])


def outcomes(folder: RunFolder, index: int, num_sms: int) -> list[Measured | Failed]:
    """The outcomes of DeepEP V2 with this number of SMs."""
    records = [line for line in read_shard(folder, index) if isinstance(line, Record)]
    return [one.outcome for one in records if one.point.knobs.get("num_sms") == num_sms]


def compile_times(folder: RunFolder, index: int) -> list[float]:
    return [line.compile_s for line in read_shard(folder, index) if isinstance(line, Host)]


def test_kernels_are_compiled_before_a_shard_measures_and_not_again_for_the_final_or_another_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(make_plan(8), tmp_path / "first")
    assert shard.run(folder, 0)
    assert "shard 0, compiling kernels: 6/6 points, 0 failed" in capfd.readouterr().err
    assert len(list(kernel_folder("warmed").iterdir())) == 6
    assert {type(outcome) for outcome in outcomes(folder, 0, 8)} == {Measured}
    first, *others = compile_times(folder, 0)
    assert first > 0
    assert set(others) <= {0.0}
    assert final.run(folder)
    assert Op.DISPATCH_FULL in {line.point.op for line in read_shard(folder, FINAL) if isinstance(line, Record)}
    assert shard.run(make_folder(make_plan(8), tmp_path / "second"), 0)
    assert "compiling kernels" not in capfd.readouterr().err
    assert (folder.log_folder(0) / "kernels0" / "rank1.log").is_file()
    assert not list(folder.log_folder(FINAL).glob("kernels*"))


def test_the_final_compiles_what_its_own_node_lacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(make_plan(8), tmp_path / "run")
    assert shard.run(folder, 0)
    for kernel in kernel_folder("deepep_v2").iterdir():
        kernel.unlink()
    capfd.readouterr()
    assert final.run(folder)
    assert re.search(r"^final, compiling kernels: (\d+)/\1 points, 0 failed", capfd.readouterr().err, re.MULTILINE)


def test_a_config_that_does_not_compile_is_reported_then_and_recorded_when_it_is_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(make_plan(7), tmp_path / "run")
    assert shard.run(folder, 0)
    told = capfd.readouterr().err
    assert "deepep_v2/dispatch/bf16/num_sms=7 is compiled when it is measured, since it failed ahead: error" in told
    assert {type(outcome) for outcome in outcomes(folder, 0, 7)} == {Failed}
    assert {type(outcome) for outcome in outcomes(folder, 0, 64)} == {Measured}


def test_a_job_that_has_to_stop_compiles_and_measures_nothing(tmp_path: Path) -> None:
    folder = make_folder(make_plan(8), tmp_path / "run")
    assert not shard.run(folder, 0, stop=lambda: True)
    assert read_shard(folder, 0) == []
    assert not list(kernel_folder("warmed").iterdir())


@pytest.mark.parametrize(("budget_s", "num_compiled"), [(0.0, 0), (9.0, 0), (600.0, 4)])
def test_at_most_half_of_a_budget_goes_into_compiling(tmp_path: Path, budget_s: float, num_compiled: int) -> None:
    """Half of 9 s is too little to start ranks in."""
    plan = make_plan(8)
    points = [planned.point for planned in plan.every_point if planned.point.knobs.get("num_sms") in (4, 8)]
    with ShardProgress(name="shard 0", quiet=True) as progress:
        compile_ahead(plan, points, budget_s=budget_s, log_folder=tmp_path, progress=progress, stop=never)
    assert len(list(kernel_folder("warmed").iterdir())) == num_compiled
