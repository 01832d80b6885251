"""Layers, sequences, exchanges and the gathering collectives on real ranks: every output is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.backends import BACKENDS, join_pair
from bench.faults import Fault
from bench.protocol import GroupSpec
from bench.records import Alignment, Dtype, Failed, FailureKind, Host, Line, Measured, Op, Point, Role, SelfCheck
from bench.supervisor import Effort, Supervisor, Task
from launcher.analysis.alignment import spreads_us
from tests.builders import small_workload

pytestmark = pytest.mark.usefixtures("on_cpus")

EFFORT = Effort(warmup=1, iterations=3, deadline_s=20.0, startup_s=120.0)
KNOBS = {"num_slices": 1, "num_in_flight": 1}


def points(dtype: Dtype) -> list[Point]:
    """Every operation of the plain collectives, and the layers that the all-to-all can run."""
    found = [
        Point(name, op, Dtype.BF16 if op is Op.COMBINE else dtype, knobs)
        for name, knobs in (("alltoall", KNOBS), ("allgather", {}))
        for op in (Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE)
    ]
    found += [Point("alltoall", Op.EXCHANGE, dtype, KNOBS), Point("alltoall", Op.COMPUTE, dtype, {})]
    return found + [pair(dtype, op) for op in (Op.SERIAL, Op.LAYER, Op.LAYER_TRAINING)]


def pair(dtype: Dtype, op: Op) -> Point:
    return join_pair(BACKENDS["alltoall"], dtype, dispatch=KNOBS, combine=KNOBS, op=op)


def run(folder: Path, dtype: Dtype, num_ranks: int, *faults: str) -> tuple[dict[str, Measured | Failed], list[Line]]:
    """The outcome of every point by its label, and all lines."""
    measured = points(dtype)
    spec = GroupSpec(
        num_ranks,
        "cpu",
        shared_gpus=False,
        workload=small_workload(dtype=dtype, hidden=256, moe_intermediate=64),
        points=measured,
        faults=list(map(Fault.parse, faults)),
    )
    lines: list[Line] = []
    anchors = [Task(point, point.label, Role.BASELINE) for point in measured if point.op is Op.DISPATCH]
    supervisor = Supervisor(spec, EFFORT, anchors=anchors, sink=lines.append, log_folder=folder)
    records = supervisor.run([Task(point, point.label, Role.GRID) for point in measured])
    return {record.point.label: record.outcome for record in records}, lines


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_output_is_right_and_every_library_passes_its_own_self_test(
    dtype: Dtype, num_ranks: int, tmp_path: Path
) -> None:
    outcomes, lines = run(tmp_path, dtype, num_ranks)
    assert {label: outcome for label, outcome in outcomes.items() if isinstance(outcome, Failed)} == {}
    checks = {line.backend: set(line.edge_routings.values()) for line in lines if isinstance(line, SelfCheck)}
    assert checks == {"alltoall": {"ok"}, "allgather": {"ok"}}


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_record_says_what_its_gemms_multiplied_on_cpus_bf16_whatever_was_dispatched(
    dtype: Dtype, tmp_path: Path
) -> None:
    outcomes, _ = run(tmp_path, dtype, 2)
    for label, outcome in outcomes.items():
        assert isinstance(outcome, Measured)
        has_gemms = label.split("/")[1] in ("compute", "serial", "layer", "layer_training")
        assert outcome.gemms is (Dtype.BF16 if has_gemms else None), label
        assert len(outcome.compute_us) == (len(outcome.samples_us) if has_gemms else 0), label


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_each_process_group_measures_how_far_apart_its_ranks_start(num_ranks: int, tmp_path: Path) -> None:
    _, lines = run(tmp_path, Dtype.BF16, num_ranks, "exception@1:alltoall/serial")
    found = [line for line in lines if isinstance(line, Alignment)]
    assert [line.group for line in found] == [line.group for line in lines if isinstance(line, Host)] == [0, 1]
    for line in found:
        assert line.failure == ""
        assert [len(each) for each in line.from_first_us] == [20] * (num_ranks - 1)
        assert [len(each) for each in line.to_first_us] == [20] * (num_ranks - 1)
        assert all(spread >= 0 for spread in spreads_us(line))


@pytest.mark.parametrize(
    "op",
    ["alltoall/serial/", "alltoall/layer/", "alltoall/layer_training/", "alltoall/exchange/", "allgather/combine/"],
)
def test_a_wrong_token_within_it_makes_a_point_incorrect(op: str, tmp_path: Path) -> None:
    outcomes, _ = run(tmp_path, Dtype.BF16, 2, f"wrong_token@1:{op}")
    for label, outcome in outcomes.items():
        if label.startswith(op):
            assert isinstance(outcome, Failed)
            assert outcome.failure is FailureKind.INCORRECT
            assert outcome.rank == 1
        else:
            assert isinstance(outcome, Measured), label
