"""Real GPUs and the real deep_ep: smoke sweeps, the check of the timer, and configs that DeepEP refuses."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.nvml import gpus
from bench.protocol import GroupSpec
from bench.records import Dtype, Failed, FailureKind, Line, Measured, Op, Point, Role
from bench.supervisor import Effort, Supervisor, Task
from tests.builders import command, facts, small_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(len(gpus.inventory()) < 2, reason="needs two GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("deep_ep") is None, reason="needs deep_ep"),
]

WORKLOAD = small_workload(num_tokens=1024, hidden=7168, num_experts=64, num_topk=8)


def default_dispatch(*, num_ranks: int) -> Point:
    """The dispatch of DeepEP's default."""
    knobs = BACKENDS["deepep"].defaults(Op.DISPATCH, facts(num_ranks=num_ranks))[LIBRARY_DEFAULT]
    return Point("deepep", Op.DISPATCH, Dtype.BF16, knobs)


@pytest.fixture(scope="module", params=list(Dtype))
def sweep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a smoke sweep of DeepEP on two GPUs."""
    outputs = tmp_path_factory.mktemp("outputs")
    process = command(
        "launcher.sweep",
        *("-m", "ep=2", "grid=smoke", "measure=standard", "backend=deepep"),
        f"workload.dtype={request.param}",
        f"outputs={outputs}",
        environment=dict(os.environ),
    )
    assert process.returncode == 0, process.stderr
    results: dict[str, Any] = msgspec.json.decode(
        (Path(process.stdout.strip()).parent / "RESULTS_EP2.json").read_bytes()
    )
    assert results["workload"]["dtype"] == request.param
    return results


def test_every_point_of_a_smoke_sweep_is_measured(sweep: dict[str, Any]) -> None:
    points = sweep["points"]
    assert (points["measured"], points["failed"], points["missing"]) == (points["planned"], 0, 0)
    assert sweep["dry_run"] is False
    assert sweep["environment"]["versions"].keys() >= {"torch", "cuda", "nccl", "deep_ep"}


def test_every_token_of_the_edge_routings_is_right(sweep: dict[str, Any]) -> None:
    for check in sweep["self_checks"]:
        assert len(check["edge_routings"]) == 5
        assert set(check["edge_routings"].values()) == {"ok"}


def test_an_empty_operation_reads_less_than_10_us_and_no_rank_waits_for_another(sweep: dict[str, Any]) -> None:
    readings = sorted(reading for check in sweep["self_checks"] for reading in check["empty_op_us"])
    assert readings[len(readings) // 2] < 10
    assert sweep["rank_ratio"] < 1.05


def test_a_layer_and_its_training_step_are_measured_with_correct_outputs(sweep: dict[str, Any]) -> None:
    assert {one["op"] for one in sweep["measurements"]} >= {"layer", "layer_training", "overlapped", "exchange"}
    (library,) = sweep["libraries"]
    assert {layer["training"] for layer in library["layers"]} == {False, True}


def test_no_time_is_shorter_than_the_links_allow(sweep: dict[str, Any]) -> None:
    shares = [one["peak_fraction"] for one in sweep["measurements"] if one["peak_fraction"] is not None]
    assert shares
    assert all(0 < share <= 1 for share in shares)
    assert {one["backend"] for one in sweep["baselines"]} == {"alltoall", "allgather"}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_combine_runs_with_22_slots_more_than_its_chunk_and_hangs_with_21_while_the_shard_lives_on(
    num_ranks: int, tmp_path: Path
) -> None:
    """DeepEP does not assert this bound; four ranks share GPUs where there are fewer than four."""
    shared = len(gpus.inventory()) < num_ranks
    at_bound, below = (
        Point("deepep", Op.COMBINE, Dtype.BF16, {"num_sms": 24, "nvl_chunk": 8, "nvl_buffer": 8 + more})
        for more in (22, 21)
    )
    default = default_dispatch(num_ranks=num_ranks)
    spec = GroupSpec(num_ranks, "cuda", shared_gpus=shared, workload=WORKLOAD, points=[default, at_bound, below])
    anchor = Task(default, "default", Role.ANCHOR)
    supervisor = Supervisor(spec, Effort(1, 3, 20.0, 180.0), anchors=[anchor], sink=lambda _: None, log_folder=tmp_path)
    tasks = [anchor, Task(at_bound, "at", Role.GRID), Task(below, "below", Role.GRID), Task(at_bound, "at", Role.GRID)]
    first, runs, hangs, after = supervisor.run(tasks)
    assert isinstance(first.outcome, Measured)
    assert isinstance(runs.outcome, Measured)
    assert isinstance(hangs.outcome, Failed)
    assert hangs.outcome.failure is FailureKind.HANG
    assert isinstance(after.outcome, Measured)


def test_an_odd_num_sms_past_the_rules_is_a_failure_and_the_shard_lives_on(tmp_path: Path) -> None:
    default = default_dispatch(num_ranks=2)
    odd, good = (
        Point("deepep", Op.DISPATCH, Dtype.BF16, {"num_sms": num_sms, "nvl_chunk": 8, "nvl_buffer": 256})
        for num_sms in (7, 24)
    )
    spec = GroupSpec(2, "cuda", shared_gpus=False, workload=WORKLOAD, points=[default, odd, good])
    anchor = Task(default, "default", Role.ANCHOR)
    lines: list[Line] = []
    supervisor = Supervisor(spec, Effort(3, 10, 30.0, 180.0), anchors=[anchor], sink=lines.append, log_folder=tmp_path)
    tasks = [anchor, Task(odd, "odd", Role.GRID), Task(good, "good", Role.GRID)]
    first, refused, after = supervisor.run(tasks)
    assert isinstance(first.outcome, Measured)
    assert isinstance(refused.outcome, Failed)
    assert refused.outcome.failure in (FailureKind.ERROR, FailureKind.CUDA)
    assert isinstance(after.outcome, Measured)
    assert after.group == refused.group + 1
