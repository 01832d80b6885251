"""Kernels are compiled ahead by several groups at once; what fails there fails nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import kernels
from bench.backends import join_pair
from bench.backends.deepep_v2 import DeepEPV2
from bench.backends.machine import kernel_folder
from bench.faults import Fault
from bench.kernels import Compilation, compile_kernels
from bench.marks import Marks
from bench.protocol import GroupSpec
from bench.records import Dtype, FailureKind, Op, Point
from tests.bench.libraries import Library
from tests.bench.test_supervisor import children
from tests.builders import small_workload

STARTS_RANKS = pytest.mark.usefixtures("on_cpus")


def exchange(op: Op, num_slices: int) -> Point:
    return Point("alltoall", op, Dtype.BF16, {"num_slices": num_slices, "num_in_flight": 1})


def v2(op: Op, num_sms: int, dtype: Dtype = Dtype.BF16) -> Point:
    return Point("deepep_v2", op, dtype, {"num_sms": num_sms})


def nccl_ep(op: Op, num_sms: int, num_stages: int) -> Point:
    knobs = {"num_sms": num_sms, "tokens_per_chunk": 64, "num_stages": num_stages, "num_pipelines": 1}
    return Point("nccl_ep", op, Dtype.BF16, knobs)


POINTS = [exchange(op, slices) for op in (Op.DISPATCH, Op.COMBINE, Op.DISPATCH_FULL) for slices in (1, 2)]
SPEC = GroupSpec(2, "cpu", shared_gpus=False, workload=small_workload(), points=POINTS)
"""An all-to-all compiles nothing, so it runs where there are no GPUs."""


def compiled(folder: Path, points: list[Point], *, spec: GroupSpec = SPEC, **changes: Any) -> list[Compilation]:
    """What was noted of the points, which get a minute to start and run."""
    ended: list[Compilation] = []
    settings = {"startup_s": 60.0, "note": ended.append, "stop": lambda: False} | changes
    compile_kernels(spec, points, log_folder=folder, **settings)
    assert children(os.getpid()) == set()
    return ended


@STARTS_RANKS
def test_every_point_runs_once_and_is_noted_without_a_fault_that_was_to_be_injected(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, faults=[Fault.parse("hang@1:num_slices=2")])
    ended = compiled(tmp_path, POINTS, spec=spec)
    assert sorted(one.point.label for one in ended) == sorted(point.label for point in POINTS)
    assert not any(one.failed for one in ended)


@STARTS_RANKS
def test_several_groups_run_at_once_where_there_are_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    ended = compiled(tmp_path, POINTS)
    assert {one.point.key for one in ended if one.failed is None} == {point.key for point in POINTS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels0", "kernels1"]


@STARTS_RANKS
def test_a_point_that_fails_costs_only_itself(tmp_path: Path) -> None:
    impossible = exchange(Op.DISPATCH, 0)
    ended = compiled(tmp_path, [POINTS[0], impossible, POINTS[1]])
    assert [one.point for one in ended] == [POINTS[0], impossible, POINTS[1]]
    assert [one.failed and one.failed.failure for one in ended] == [None, FailureKind.ERROR, None]


@STARTS_RANKS
def test_a_rank_that_hangs_costs_only_its_point(tmp_path: Path, library: Library) -> None:
    library.write("if 'PYTORCH_NVML_BASED_CUDA_CHECK' in os.environ: raise ImportError\ntime.sleep(600)")
    hanging = v2(Op.DISPATCH, 24)
    spec = msgspec.structs.replace(SPEC, points=[*POINTS, hanging])
    ended = compiled(tmp_path, [hanging, POINTS[0]], spec=spec, startup_s=20.0)
    assert [one.point for one in ended] == [hanging, POINTS[0]]
    assert [one.failed and one.failed.failure for one in ended] == [FailureKind.HANG, None]


@STARTS_RANKS
def test_nothing_is_started_without_time_and_ranks_that_do_not_start_are_no_error(tmp_path: Path) -> None:
    assert compiled(tmp_path, POINTS, limit_s=0.001) == []
    (ended,) = compiled(tmp_path, POINTS, spec=msgspec.structs.replace(SPEC, device="cuda"))
    assert ended.failed is not None
    assert ended.failed.phase == "startup"


@STARTS_RANKS
def test_a_stop_ends_what_runs_at_once(tmp_path: Path, library: Library) -> None:
    library.write("time.sleep(600)")
    spec = msgspec.structs.replace(SPEC, points=[*POINTS, v2(Op.DISPATCH, 24)])
    began = time.monotonic()
    assert compiled(tmp_path, POINTS, spec=spec, startup_s=300.0, stop=lambda: time.monotonic() > began + 3) == []
    assert time.monotonic() < began + 60


@STARTS_RANKS
def test_an_error_of_ours_is_raised_and_leaves_no_rank(tmp_path: Path) -> None:
    def note(_: Compilation) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compiled(tmp_path, POINTS, note=note)
    assert children(os.getpid()) == set()


def test_full_dispatches_and_pairs_are_compiled_as_their_dispatches_and_combines() -> None:
    pair = join_pair(DeepEPV2(), Dtype.FP8, dispatch={"num_sms": 16}, combine={"num_sms": 16})
    points = [
        *(v2(Op.DISPATCH, 24), v2(Op.DISPATCH_FULL, 24), v2(Op.COMBINE, 24), pair),
        *(v2(Op.COMPUTE, 24), exchange(Op.DISPATCH, 1)),
    ]
    assert kernels.with_kernels(points) == [
        *(v2(Op.DISPATCH, 24), v2(Op.COMBINE, 24), v2(Op.DISPATCH, 16, Dtype.FP8), v2(Op.COMBINE, 16)),
    ]


@given(
    st.lists(
        st.builds(nccl_ep, st.sampled_from([Op.DISPATCH, Op.COMBINE]), st.integers(4, 8), st.integers(1, 9)),
        unique_by=lambda point: point.key,
        min_size=1,
    ),
    st.integers(1, 9),
)
def test_points_are_dealt_out_once_and_those_with_the_same_shared_knobs_to_one_group(
    points: list[Point], num_shares: int
) -> None:
    shares = kernels.distribute(points, num_shares)
    assert sorted(point.key for share in shares for point in share) == sorted(point.key for point in points)
    shared = [{point.knobs["num_sms"] for point in share} for share in shares]
    assert sum(map(len, shared)) == len(set().union(*shared))
    assert len(shares) == min(num_shares, len(set().union(*shared)))


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (8, 2), (16, 4), (999, kernels.MOST_GROUPS)])
def test_each_rank_compiles_on_a_cpu_of_its_own(monkeypatch: pytest.MonkeyPatch, cpus: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert kernels.num_groups([v2(Op.DISPATCH, sms) for sms in range(20)], num_ranks=4) == expected
    assert kernels.num_groups([v2(Op.DISPATCH, 24)], num_ranks=4) == 1


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for marks; kernels of deepep_v2 lie in a temporary folder, with one in it, and deep_ep 2.1 is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("EP_JIT_CACHE_DIR", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "2.1")
    (kernel_folder("deepep_v2") / "kernel.cubin").touch()
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def install(folder: Path, version: str) -> None:
    """Makes importlib.metadata find this version of a distribution with deep_ep."""
    for earlier in folder.glob("some_deep_ep-*"):
        shutil.rmtree(earlier)
    metadata = folder / f"some_deep_ep-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some-deep-ep\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("deep_ep\n")


def test_a_mark_holds_for_its_point_in_every_process_of_the_node(marks: Path) -> None:
    Marks(SPEC, marks).add(v2(Op.DISPATCH, 24))
    again = Marks(msgspec.structs.replace(SPEC, points=[], faults=[Fault.parse("hang@1:")]), marks)
    assert again.has(v2(Op.DISPATCH, 24))
    others = v2(Op.COMBINE, 24), v2(Op.DISPATCH, 16), v2(Op.DISPATCH, 24, Dtype.FP8)
    assert not any(again.has(other) for other in others)


@pytest.mark.parametrize(
    "changes",
    [{"num_ranks": 4}, {"workload": small_workload(num_tokens=128)}, {"workload": small_workload(hidden=512)}],
)
def test_a_mark_does_not_hold_for_kernels_of_another_shape(marks: Path, changes: dict[str, Any]) -> None:
    Marks(SPEC, marks).add(v2(Op.DISPATCH, 24))
    assert not Marks(msgspec.structs.replace(SPEC, **changes), marks).has(v2(Op.DISPATCH, 24))


def test_a_mark_does_not_hold_after_an_update_of_the_library(marks: Path, tmp_path: Path) -> None:
    Marks(SPEC, marks).add(v2(Op.DISPATCH, 24))
    install(tmp_path, "2.2")
    assert not Marks(SPEC, marks).has(v2(Op.DISPATCH, 24))


def test_a_mark_does_not_hold_where_the_kernels_are_gone_or_elsewhere(
    marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Marks(SPEC, marks).add(v2(Op.DISPATCH, 24))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kernel.cubin").touch()
    with monkeypatch.context() as patch:
        patch.setenv("EP_JIT_CACHE_DIR", str(tmp_path / "elsewhere"))
        assert not Marks(SPEC, marks).has(v2(Op.DISPATCH, 24))
    (kernel_folder("deepep_v2") / "kernel.cubin").unlink()
    assert not Marks(SPEC, marks).has(v2(Op.DISPATCH, 24))
