"""DeepEP V2 and NCCL EP on two real GPUs: every token, their defaults, layers, and configs that they refuse."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from bench.backends import BACKENDS, LIBRARY_DEFAULT, PAIR_OPS, join_pair
from bench.nvml import gpus
from bench.protocol import GroupSpec
from bench.records import Dtype, Failed, FailureKind, Line, Measured, Op, Point, Role, SelfCheck
from bench.supervisor import Effort, Supervisor, Task
from tests.builders import facts, small_workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(len(gpus.inventory()) < 2, reason="needs two GPUs")]

NUM_RANKS = 2
LAYER = {"num_tokens": 1024, "hidden": 7168, "num_experts": 64, "num_topk": 8}


class Shard(NamedTuple):
    """What two ranks made of one library's default in one dtype, and of configs that it cannot run."""

    outcomes: dict[str, Measured | Failed]
    self_checks: list[SelfCheck]
    refused: list[Point]
    after: Point


def impossible(backend: str, default: dict[str, int]) -> list[dict[str, int]]:
    """Configs that the rules refuse, in a plan: the library must fail, and no time may be taken."""
    if backend == "deepep_v2":
        return [{"num_sms": 400}]
    return [default | {"num_sms": 400}, default | {"num_pipelines": 3}]


@pytest.fixture(
    scope="module",
    params=[(backend, dtype) for backend in ("deepep_v2", "nccl_ep") for dtype in Dtype],
    ids="-".join,
)
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """Every operation with the library's default, then each impossible config, then the default again."""
    name, dtype = request.param
    backend = BACKENDS[name]
    for problem in backend.problems():
        pytest.skip(f"{problem.what}: {problem.cure}")
    given = facts(num_ranks=NUM_RANKS, **LAYER)
    knobs = {op: backend.defaults(op, given)[LIBRARY_DEFAULT] for op in (Op.DISPATCH, Op.COMBINE)}
    dispatch = Point(name, Op.DISPATCH, dtype, knobs[Op.DISPATCH])
    points = [
        dispatch,
        Point(name, Op.DISPATCH_FULL, dtype, knobs[Op.DISPATCH]),
        Point(name, Op.COMBINE, Dtype.BF16, knobs[Op.COMBINE]),
        *(join_pair(backend, dtype, dispatch=knobs[Op.DISPATCH], combine=knobs[Op.COMBINE], op=op) for op in PAIR_OPS),
    ]
    refused = [Point(name, Op.COMBINE, Dtype.BF16, config) for config in impossible(name, knobs[Op.COMBINE])]
    lines: list[Line] = []
    supervisor = Supervisor(
        GroupSpec(NUM_RANKS, "cuda", shared_gpus=False, workload=small_workload(**LAYER, dtype=dtype), points=points),
        Effort(warmup=1, iterations=3, deadline_s=60.0, startup_s=180.0),
        anchors=[Task(point, point.label, Role.ANCHOR) for point in (points[0], points[2])],
        sink=lines.append,
        log_folder=tmp_path_factory.mktemp("logs"),
    )
    tasks = [Task(point, point.label, Role.GRID) for point in [*points, *refused]]
    again = Task(dispatch, "again", Role.GRID)
    outcomes = {record.point_id: record.outcome for record in supervisor.run([*tasks, again])}
    checks = [line for line in lines if isinstance(line, SelfCheck)]
    return Shard(outcomes, checks, refused, dispatch)


def test_every_operation_of_the_default_is_measured_and_every_token_is_right(shard: Shard) -> None:
    refused = {point.label for point in shard.refused}
    failed = {label: outcome for label, outcome in shard.outcomes.items() if isinstance(outcome, Failed)}
    assert failed.keys() <= refused
    assert len(shard.outcomes) == 3 + len(PAIR_OPS) + len(refused) + 1


def test_every_token_of_the_edge_routings_is_right_and_the_default_is_what_the_library_takes(shard: Shard) -> None:
    (check,) = shard.self_checks
    assert len(check.edge_routings) == 6
    assert set(check.edge_routings.values()) == {"ok"}
    assert check.edge_routings["library_default"] == "ok"


def test_a_config_that_the_library_cannot_run_is_a_failure_of_that_config_alone(shard: Shard) -> None:
    for point in shard.refused:
        outcome = shard.outcomes[point.label]
        assert isinstance(outcome, Failed), point.label
        assert outcome.failure in (FailureKind.ERROR, FailureKind.CUDA, FailureKind.CRASH)
    assert isinstance(shard.outcomes["again"], Measured)
