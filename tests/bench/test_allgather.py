"""The all-gather on real ranks, which gloo connects: every token arrives, and sums are within their rounding."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from bench.faults import Fault
from bench.protocol import GroupSpec
from bench.records import Dtype, Failed, FailureKind, Line, Measured, Op, Point, Record, Role, SelfCheck, Traffic
from bench.supervisor import Effort, Supervisor, Task
from bench.workload import token_matrix
from tests.builders import small_workload

pytestmark = pytest.mark.usefixtures("on_cpus")

EFFORT = Effort(warmup=1, iterations=5, deadline_s=20.0, startup_s=120.0)
OPS = (Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE)


class Group(NamedTuple):
    """A group of ranks and what it wrote."""

    spec: GroupSpec
    lines: list[Line]


def point(op: Op, dtype: Dtype) -> Point:
    return Point("allgather", op, Dtype.BF16 if op is Op.COMBINE else dtype, {})


def measured(folder: Path, num_ranks: int, dtype: Dtype, *faults: str) -> Group:
    """The lines of a group that measures every operation once."""
    points = [point(op, dtype) for op in OPS]
    workload = small_workload(num_experts=24, dtype=dtype)
    spec = GroupSpec(
        num_ranks, "cpu", shared_gpus=False, workload=workload, points=points, faults=[*map(Fault.parse, faults)]
    )
    tasks = [Task(each, each.label, Role.GRID) for each in points]
    lines: list[Line] = []
    anchor = Task(points[0], points[0].label, Role.ANCHOR)
    supervisor = Supervisor(spec, EFFORT, anchors=[anchor], sink=lines.append, log_folder=folder)
    list(supervisor.run(tasks))
    return Group(spec, lines)


@pytest.fixture(scope="module", params=[(2, Dtype.BF16), (2, Dtype.FP8), (3, Dtype.BF16), (4, Dtype.FP8)], ids=str)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    return measured(tmp_path_factory.mktemp("allgather"), *request.param)


def test_every_operation_delivers_every_token_and_sums_within_its_rounding(group: Group) -> None:
    records = [line for line in group.lines if isinstance(line, Record)]
    assert {record.point.op for record in records} == {*OPS}
    assert [record.outcome for record in records if not isinstance(record.outcome, Measured)] == []


def test_every_edge_routing_is_right(group: Group) -> None:
    (check,) = (line for line in group.lines if isinstance(line, SelfCheck))
    assert check.edge_routings == dict.fromkeys(
        ["one_token", "empty_source", "empty_destination", "all_to_one", "odd"], "ok"
    )


def test_its_layout_counts_the_tokens_that_a_rank_needs_and_not_those_that_arrive(group: Group) -> None:
    (traffic,) = (line for line in group.lines if isinstance(line, Traffic))
    assert traffic.tokens == token_matrix(group.spec.workload, num_ranks=group.spec.num_ranks)


def test_a_wrong_token_and_a_wrong_sum_are_noticed(tmp_path: Path) -> None:
    group = measured(tmp_path, 2, Dtype.BF16, "wrong_token@1:allgather/dispatch/", "wrong_token@0:allgather/combine/")
    records = [line for line in group.lines if isinstance(line, Record) and line.role is Role.GRID]
    outcomes = {record.point.op: record.outcome for record in records}
    assert isinstance(outcomes[Op.DISPATCH_FULL], Measured)
    for op, rank in ((Op.DISPATCH, 1), (Op.COMBINE, 0)):
        outcome = outcomes[op]
        assert isinstance(outcome, Failed)
        assert (outcome.failure, outcome.rank) == (FailureKind.INCORRECT, rank)
