"""Plans: every cell once and in one shard; sweeps that cannot run are refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.records import Dtype, Op, Role, Stage
from launcher.config import planning
from launcher.config.plan import ANCHOR_EVERY, Plan
from launcher.config.schema import Ep
from launcher.errors import UserError
from launcher.tuner.shard import in_order
from tests.builders import ROOT, anchor_of, deepep_plan, facts, small_workload, spec


def axis(values: st.SearchStrategy[int], always: int) -> st.SearchStrategy[list[int]]:
    """Distinct values in any order; ``always``, which no rule refuses, is among them."""
    return st.lists(values, max_size=3).flatmap(lambda drawn: st.permutations(sorted({*drawn, always})))


grids = st.fixed_dictionaries(
    {
        "num_sms": axis(st.integers(0, 70).map(lambda half: 2 * half), 24),
        "nvl_chunk": axis(st.integers(1, 40), 6),
        "nvl_buffer": axis(st.sampled_from([16, 30, 256, 512]), 256),
    }
)


def replaced(plan: Plan, **changes: Any) -> Plan:
    return planning.make(msgspec.structs.replace(plan.spec, **changes))


@given(grids, st.integers(1, 9), st.integers(0, 10_000))
def test_shards_partition_the_grid(grid: dict[str, list[int]], num_shards: int, seed: int) -> None:
    plan = deepep_plan(grid=grid, num_shards=num_shards, seed=seed)
    shards = [plan.shard(index) for index in range(num_shards)]
    ids = [planned.id for shard in shards for planned in shard]
    assert sorted(ids) == sorted(planned.id for planned in plan.cells)
    assert len(set(ids)) == len(ids)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(grids, st.integers(0, 10_000))
def test_every_cell_is_the_default_or_planned_or_refused(grid: dict[str, list[int]], seed: int) -> None:
    plan = deepep_plan(grid=grid, seed=seed)
    product = {
        (op, combination)
        for op in (Op.DISPATCH, Op.COMBINE)
        for combination in itertools.product(grid["num_sms"], grid["nvl_chunk"], grid["nvl_buffer"])
    }
    cells = {(planned.point.op, tuple(planned.point.knobs.values())) for planned in plan.cells}
    refused = {(cell.op, tuple(cell.knobs.values())) for cell in plan.refused}
    defaults = {(planned.point.op, tuple(planned.point.knobs.values())) for planned in plan.anchors}
    assert cells | refused | (defaults & product) == product
    assert len(cells) + len(refused) + len(defaults & product) == len(product)
    assert all(cell.violations for cell in plan.refused)
    assert len(plan.cells) == len(cells)


@given(grids)
def test_the_default_is_planned_once_whether_or_not_the_grid_names_it(grid: dict[str, list[int]]) -> None:
    for num_sms in ([24], [20, 24]):
        plan = deepep_plan(grid=grid | {"num_sms": num_sms})
        for op in (Op.DISPATCH, Op.COMBINE):
            default = BACKENDS["deepep"].defaults(op, facts(num_ranks=4))[LIBRARY_DEFAULT]
            matching = [one for one in plan.every_point if (one.point.op, one.point.knobs) == (op, default)]
            assert [one.role for one in matching] == [Role.ANCHOR]


def test_the_seed_changes_only_the_order(plan: Plan) -> None:
    other = replaced(plan, seed=plan.spec.seed + 1)
    assert [one.id for one in plan.cells] != [one.id for one in other.cells]
    assert {one.id for one in plan.cells} == {one.id for one in other.cells}
    assert planning.make(plan.spec) == plan


def test_a_library_is_planned_with_every_plain_collective_as_a_baseline_and_a_plain_collective_without(
    plan: Plan,
) -> None:
    assert [(one.point.backend, one.point.op) for one in plan.baselines] == [
        ("alltoall", Op.DISPATCH),
        ("alltoall", Op.COMBINE),
        ("alltoall", Op.EXCHANGE),
        ("allgather", Op.DISPATCH),
        ("allgather", Op.COMBINE),
    ]
    assert replaced(plan, backend="alltoall", grid={"num_slices": [1], "num_in_flight": [1]}).baselines == []
    assert replaced(plan, ep=Ep(size=4, share_gpus=True)).baselines == []


def test_combine_is_always_bf16(plan: Plan) -> None:
    fp8 = replaced(plan, workload=small_workload(dtype=Dtype.FP8))
    assert {(one.point.op, one.point.dtype) for one in fp8.every_point} == {
        (Op.DISPATCH, Dtype.FP8),
        (Op.EXCHANGE, Dtype.FP8),
        (Op.COMBINE, Dtype.BF16),
    }


def test_a_knob_may_have_different_values_for_each_operation(plan: Plan) -> None:
    chunks = {"dispatch": [8, 12], "combine": [16]}
    separate = replaced(plan, grid={"num_sms": [24], "nvl_chunk": chunks, "nvl_buffer": [256]})
    assert {(one.point.op.value, one.point.knobs["nvl_chunk"]) for one in separate.cells} == {
        ("dispatch", 8),
        ("dispatch", 12),
        ("combine", 16),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grid": {"num_sms": [7], "nvl_chunk": [8], "nvl_buffer": [256]}},
            "every cell of the grid of deepep is refused; the first: "
            "grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 7",
        ),
        (
            {"grid": {"num_sms": [], "nvl_chunk": [8], "nvl_buffer": [256]}},
            "grid.num_sms must list at least one value for dispatch of deepep",
        ),
        (
            {"grid": {"num_sms": [24], "nvl_chunk": {"dispatch": [8]}, "nvl_buffer": [256]}},
            "grid.nvl_chunk must list at least one value for combine of deepep",
        ),
        (
            {"grid": {"num_sms": [24], "nvl_chunk": [8]}},
            "grid.nvl_buffer must list at least one value for dispatch of deepep",
        ),
        ({"grid": {"num_smss": [24]}}, "grid.num_smss is not a knob"),
        ({"backend": "deepeq"}, "backend must be one of deepep, deepep_v2, nccl_ep, alltoall, allgather, got deepeq"),
        ({"num_shards": 0}, "shard.count must be at least 1, got 0"),
        ({"ep": Ep(size=16, share_gpus=False)}, "ep.size must be at most 8, the GPUs of a h200 node, got 16"),
        ({"ep": Ep(size=0, share_gpus=False)}, "ep.size must be at least 1, got 0"),
        (
            {"ep": Ep(size=3, share_gpus=False), "workload": small_workload(num_experts=15)},
            "ep.size must be 2, 4 or 8 (DeepEP intranode), got 3",
        ),
        ({"workload": small_workload(num_experts=18)}, "workload.num_experts must be divisible by ep.size=4, got 18"),
        (
            {"workload": small_workload(num_topk=17)},
            "workload.num_topk must lie in 1..16 (workload.num_experts), got 17",
        ),
        ({"workload": small_workload(num_tokens=0)}, "workload.num_tokens must be at least 1, got 0"),
        ({"workload": small_workload(seed=-1)}, "workload.seed must be at least 0, got -1"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_in_one_line(plan: Plan, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        replaced(plan, **changes)
    assert str(caught.value) == message


def test_a_fault_that_is_not_one_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        spec("faults=['melt@0:dispatch']")
    assert str(caught.value) == (
        "faults: a fault is written KIND@RANK:TEXT with KIND one of hang, segfault, exception, wrong_token, slow, "
        "got 'melt@0:dispatch'"
    )


@pytest.mark.parametrize("budget_s", [-5.0, 0.0, math.nan])
@pytest.mark.parametrize("final_groups", [0, 5])
def test_a_budget_that_is_not_positive_is_refused(plan: Plan, budget_s: float, final_groups: int) -> None:
    settings = msgspec.structs.replace(plan.spec.search, budget_s=budget_s, final_groups=final_groups)
    with pytest.raises(UserError) as caught:
        replaced(plan, search=settings)
    assert str(caught.value) == f"search.budget_s must be positive, or null for none, got {budget_s:g}"


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("round_trip", (1, 1)),
        ("dispatch", (1, 0)),
        ("combine", (0, 1)),
        ("training", (2, 2)),
        ("{dispatch:2,combine:1}", (2, 1)),
        ("{combine:0.5}", (0, 0.5)),
        ("{dispatch:3,combine:0}", (3, 0)),
    ],
)
def test_an_objective_is_a_name_or_weights(objective: str, weights: tuple[float, float]) -> None:
    planned = planning.make(spec("workload=small", f"search.objective={objective}"))
    assert planned.spec.search.weights == weights
    assert msgspec.json.decode(msgspec.json.encode(planned), type=Plan) == planned


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        ("fastest", "fastest"),
        ("null", "None"),
        ("3", "3"),
        ("[1,2]", "[1, 2]"),
        ("{}", "{}"),
        ("{dispatch:0,combine:0}", "{'dispatch': 0, 'combine': 0}"),
        ("{dispatch:2,combine:-1}", "{'dispatch': 2, 'combine': -1}"),
        ("{dispatch:inf}", "{'dispatch': inf}"),
        ("{dispatch:nan}", "{'dispatch': nan}"),
        ("{dispatch:true}", "{'dispatch': True}"),
        ("{dispatch:much}", "{'dispatch': 'much'}"),
        ("{dispatch:1,overlapped:1}", "{'dispatch': 1, 'overlapped': 1}"),
    ],
)
def test_any_other_objective_is_refused_in_one_line(objective: str, shown: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(f"search.objective={objective}")
    assert str(caught.value) == (
        "search.objective must be one of round_trip, forward, dispatch, combine, training, or weights of dispatch and "
        f"combine that are not negative and not all 0, got {shown}"
    )
    assert caught.value.hint == "search.objective={dispatch:2,combine:1}"


def test_a_refusal_of_the_grid_hints_at_the_knobs_of_the_backend(plan: Plan) -> None:
    with pytest.raises(UserError) as caught:
        replaced(plan, grid={"num_smss": [24]})
    assert caught.value.hint == "knobs of this sweep: num_sms, nvl_chunk, nvl_buffer"


@pytest.mark.parametrize("content", [None, b"", b"no array"])
def test_an_unreadable_trace_is_refused_when_planning(plan: Plan, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trace.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^workload\.routing must be .* or a readable trace, got {path}") as caught:
        replaced(plan, workload=small_workload(routing=str(path)))
    assert "\n" not in str(caught.value)


def test_a_fitting_trace_is_planned(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    np.save(path, np.zeros((4, 64, 4), dtype=np.int64))
    assert replaced(plan, workload=small_workload(routing=str(path))).cells


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": small_workload(num_tokens=65)},
        {"workload": small_workload(seed=2)},
        {"workload": small_workload(routing="zipf")},
        {"ep": Ep(size=2, share_gpus=False)},
        {"ep": Ep(size=4, share_gpus=True)},
        {"hardware": spec("hardware=h100").hardware},
        {"measure": spec("measure=quick").measure},
    ],
)
def test_ids_change_with_all_that_a_result_depends_on(changes: dict[str, Any]) -> None:
    base = deepep_plan(workload=small_workload())
    other = replaced(base, **changes)
    assert not {one.id for one in base.every_point} & {one.id for one in other.every_point}
    assert base.id != other.id


def test_ids_do_not_depend_on_the_rest_of_the_sweep(plan: Plan) -> None:
    larger = replaced(plan, grid=plan.spec.grid | {"num_sms": [16, 24, 32, 40]}, seed=9, num_shards=3)
    assert {one.id for one in plan.every_point} < {one.id for one in larger.every_point}
    assert plan.id != larger.id


@given(grids, st.integers(1, 4))
def test_a_plan_survives_its_file(grid: dict[str, list[int]], num_shards: int) -> None:
    plan = deepep_plan(grid=grid, num_shards=num_shards)
    read = msgspec.json.decode(msgspec.json.format(msgspec.json.encode(plan), indent=1), type=Plan)
    assert read == plan
    assert read.id == plan.id


@given(grids)
def test_a_plan_of_an_earlier_version_keeps_its_id_although_it_names_a_removed_option(
    grid: dict[str, list[int]],
) -> None:
    plan = deepep_plan(grid=grid)
    earlier = msgspec.to_builtins(plan)
    earlier["spec"]["search"]["finalists_per_group"] = 2
    read = msgspec.json.decode(msgspec.json.encode(earlier), type=Plan)
    assert read == plan
    assert read.id == plan.id


def test_labels_are_unique_within_a_plan(plan: Plan) -> None:
    labels = [one.point.label for one in plan.every_point]
    assert len(set(labels)) == len(labels)


def test_anchors_come_first_last_and_every_25_points() -> None:
    plan = deepep_plan(grid={"num_sms": [2 * sms for sms in range(1, 16)], "nvl_chunk": [8, 12], "nvl_buffer": [256]})
    roles = [task.role for task in in_order(plan, [*plan.baselines, *plan.cells], 0)]
    assert roles[:7] == [Role.ANCHOR] * 2 + [Role.BASELINE] * 5
    assert roles[-2:] == [Role.ANCHOR] * 2
    runs = [len(list(group)) for role, group in itertools.groupby(roles, lambda role: role is Role.ANCHOR) if not role]
    assert max(runs) == ANCHOR_EVERY
    assert sum(runs) == len(plan.cells) + len(plan.baselines)
    assert len(runs) == math.ceil(sum(runs) / ANCHOR_EVERY)


def test_ranks_that_replace_failed_ones_measure_the_default_of_both_operations_in_the_current_round(
    plan: Plan,
) -> None:
    for task in in_order(plan, [*plan.baselines, *plan.cells], 3):
        assert (task.stage, task.round) == (Stage.SWEEP, 3)
        if task.role is Role.ANCHOR:
            assert task.references == ()
        else:
            assert [(one.point, one.role) for one in task.references] == [
                (anchor.point, Role.ANCHOR) for anchor in plan.anchors
            ]
            assert {(one.stage, one.round) for one in task.references} == {(Stage.SWEEP, 3)}


def test_the_default_of_a_plan_is_deepep_s_config_for_that_many_ranks(plan: Plan) -> None:
    assert anchor_of(plan, Op.DISPATCH).point.knobs == {"num_sms": 20, "nvl_chunk": 6, "nvl_buffer": 256}
    two = replaced(plan, ep=Ep(size=2, share_gpus=False))
    assert anchor_of(two, Op.DISPATCH).point.knobs == {"num_sms": 20, "nvl_chunk": 24, "nvl_buffer": 256}


@pytest.mark.parametrize(
    "choice",
    [
        f"{group.name}={file.stem}"
        for group in (ROOT / "conf").iterdir()
        if group.name in ("workload", "hardware", "measure")
        for file in sorted(group.glob("*.yaml"))
        if file.stem not in ("auto", "cpu")
    ],
)
def test_every_config_file_makes_a_plan(choice: str) -> None:
    assert planning.make(spec("workload=small", "grid=smoke", choice)).cells
