"""Plans of several libraries: what each measures, what is left out and why, and the plan in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.records import Dtype, Op, Role
from launcher import api
from launcher.config import hardware, planning, schema
from launcher.config.compose import compose
from launcher.config.plan import Plan
from launcher.errors import UserError
from launcher.jobs import prepare
from tests.builders import small_workload, spec

NAMES = ["deepep", "deepep_v2", "nccl_ep"]
ALL = f"backend=[{','.join(NAMES)}]"
PAIR = (Op.DISPATCH, Op.COMBINE)


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are GPUs, backend=all depends on what is installed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def configs(plan: Plan, library: str, op: Op, *roles: Role) -> list[tuple[int, ...]]:
    points = [one for one in plan.every_point if (one.point.backend, one.point.op) == (library, op)]
    return sorted(tuple(one.point.knobs.values()) for one in points if one.role in roles)


@pytest.mark.parametrize("name", ["all", "auto"])
def test_every_library_is_planned_for_gpus_that_this_machine_does_not_have(name: str) -> None:
    plan = api.plan("hardware=h200", f"backend={name}")
    assert plan.spec.backends == NAMES
    assert plan.left_out == {}
    assert plan == api.plan("hardware=h200")


DEFAULTS = {
    2: {"deepep": [(20, 24, 256), (20, 10, 256)], "deepep_v2": [(22,)] * 2, "nccl_ep": [(16, 64, 12, 2)] * 2},
    4: {"deepep": [(20, 6, 256), (20, 9, 256)], "deepep_v2": [(16,)] * 2, "nccl_ep": [(16, 64, 12, 2)] * 2},
    8: {"deepep": [(20, 6, 256), (20, 4, 256)], "deepep_v2": [(14,)] * 2, "nccl_ep": [(16, 64, 12, 2)] * 2},
}


@pytest.mark.parametrize("ep", [2, 4, 8])
def test_a_plan_has_the_defaults_cells_and_baselines_of_every_library(ep: int) -> None:
    plan = planning.make(spec(ALL, f"ep={ep}"))
    anchors = [(anchor.point.backend, anchor.point.op) for anchor in plan.anchors]
    assert anchors == [(name, op) for name in NAMES for op in PAIR]
    for name in NAMES:
        assert [configs(plan, name, op, Role.ANCHOR) for op in PAIR] == [[one] for one in DEFAULTS[ep][name]]
        alone = planning.make(spec(f"backend={name}", f"ep={ep}"))
        assert [one.id for one in plan.of(name).anchors] == [one.id for one in alone.anchors]
        assert {one.id for one in plan.of(name).cells} == {one.id for one in alone.cells}
    for op in PAIR:
        assert configs(plan, "deepep_v2", op, Role.DEFAULT) == [(64,)]
        assert len(configs(plan, "nccl_ep", op, Role.GRID)) == (5 if op is Op.COMBINE else 11)
    refused = {(one.backend, one.knobs["num_sms"], one.knobs["nvl_buffer"]) for one in plan.refused}
    assert refused == ({("deepep", 128, 256)} if ep == 8 else set())  # a buffer of 2049 MiB
    assert [(one.point.backend, one.point.op.value) for one in plan.baselines] == [
        ("alltoall", "dispatch"),
        ("alltoall", "combine"),
        ("alltoall", "exchange"),
        ("allgather", "dispatch"),
        ("allgather", "combine"),
    ]


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 140), min_size=1, max_size=4, unique=True))
def test_each_library_refuses_by_its_own_rules_only(name: str, sms: list[int]) -> None:
    base = spec(ALL, "grid=smoke", "search.own_tuning=false")
    grid = base.grid | {"num_sms": {library: [16] for library in NAMES} | {name: [16, *sms]}}
    plan = planning.make(msgspec.structs.replace(base, grid=grid))
    facts = hardware.facts_of(base.hardware, base.workload, num_ranks=4)
    assert {cell.backend for cell in plan.refused} <= {name}
    for cell in plan.refused:
        assert cell.violations == BACKENDS[name].point_violations(cell.op, cell.knobs, facts=facts) != []
    for planned in [*plan.anchors, *plan.cells]:
        point = planned.point
        assert BACKENDS[point.backend].point_violations(point.op, point.knobs, facts=facts) == []


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_a_plan_and_the_part_of_each_library_survive_their_file(num_ranks: int) -> None:
    plan = planning.make(spec(ALL, f"ep={num_ranks}", "grid=smoke"))
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    parts = [plan.of(name) for name in NAMES]
    assert [part.backend for part in parts] == NAMES
    assert sum(len(part.cells) for part in parts) == len(plan.cells)
    assert {part.spec.backend for part in parts} == set(NAMES)


LEFT_OUT = {
    ("workload=gpt_oss_120b",): {
        "deepep_v2": "workload.hidden must be a multiple of 256 (DeepEP V2's combine), got 2880"
    },
    ("ep=2", "workload.num_tokens=4095"): {
        "nccl_ep": "workload.num_tokens must be even on 2 or 3 ranks (NCCL EP, layout FLAT), got 4095"
    },
    ("ep.size=3", "workload.num_experts=240"): {"deepep": "ep.size must be 2, 4 or 8 (DeepEP intranode), got 3"},
    ("grid.tokens_per_chunk=[33]",): {
        "nccl_ep": "every cell of the grid of nccl_ep is refused; the first: "
        "grid.tokens_per_chunk must be a multiple of 32, got 33"
    },
    ("grid.num_sms=[7]",): {
        "deepep": "every cell of the grid of deepep is refused; the first: "
        "grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 7"
    },
    ("grid.tokens_per_chunk=[]",): {
        "nccl_ep": "grid.tokens_per_chunk must list at least one value for dispatch of nccl_ep"
    },
}


@pytest.mark.parametrize("overrides", LEFT_OUT, ids=" ".join)
def test_all_leaves_out_what_does_not_fit_and_says_why(overrides: tuple[str, ...]) -> None:
    plan = api.plan("hardware=h200", *overrides)
    assert plan.left_out == LEFT_OUT[overrides]
    assert plan.spec.backends == [name for name in NAMES if name not in plan.left_out]
    (name,) = plan.left_out
    assert f"\n{BACKENDS[name].title} is left out: {plan.left_out[name]}\n" in prepare.describe(plan)
    with pytest.raises(UserError, match=f"^{re.escape(plan.left_out[name])}$"):
        api.plan("hardware=h200", ALL, *overrides)


def test_a_sweep_says_at_its_beginning_which_libraries_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = api.plan("hardware=h200", "workload=gpt_oss_120b")
    _, options = schema.spec_from(compose("sweep", ["hardware=h200", f"outputs={tmp_path}"]))
    folder = prepare.prepare(plan, options, command=[])
    assert folder.plan() == plan
    assert capsys.readouterr() == (
        "",
        "DeepEP V2 is left out: workload.hidden must be a multiple of 256 (DeepEP V2's combine), got 2880\n",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workload.num_experts=6"], "workload.num_experts must be divisible by ep.size=4, got 6"),
        (["ep.size=1"], "ep.size must be 2, 4 or 8 (DeepEP intranode), got 1"),
        (
            ["grid.num_sms=[1000]"],
            "every cell of the grid of deepep is refused; the first: "
            "grid.num_sms must be at most 132, the SMs of the GPU, got 1000",
        ),
        (["ep.size=0"], "ep.size must be at least 1, got 0"),
    ],
)
def test_what_fits_no_library_is_refused_by_the_first(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        api.plan("hardware=h200", *overrides)


@pytest.mark.parametrize("written", ["[nccl_ep,deepep]", "[nccl_ep,deepep,nccl_ep,deepep]"])
def test_a_list_names_libraries_in_the_order_of_the_report(written: str) -> None:
    plan = api.plan("hardware=h200", f"backend={written}")
    assert plan.spec.backends == ["nccl_ep", "deepep"]
    assert [anchor.point.backend for anchor in plan.anchors] == ["nccl_ep", "nccl_ep", "deepep", "deepep"]


def test_a_list_of_one_is_that_library() -> None:
    assert api.plan("hardware=h200", "backend=[nccl_ep]") == api.plan("hardware=h200", "backend=nccl_ep")


KNOWN = "backend must be one of deepep, deepep_v2, nccl_ep, alltoall, allgather, got"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("backend=[]", "backend must name a library or list several, got []", "backend=[deepep,nccl_ep]"),
        ("backend=[5]", "backend must name a library or list several, got [5]", "backend=[deepep,nccl_ep]"),
        ("backend.name=5", "backend must name a library or list several, got 5", "backend=[deepep,nccl_ep]"),
        ("backend=[deepep,deepeq]", f"{KNOWN} deepeq", "backend=all chooses"),
        ("backend=[all]", "backend=all cannot be one of a list, got all", "backend=all"),
        ("backend=[deepep,auto]", "backend=auto cannot be one of a list, got deepep, auto", "backend=all"),
        (
            "backend=[deepep,alltoall,allgather]",
            "backend must not list a plain collective with libraries, got deepep, alltoall, allgather",
            "leave out alltoall, allgather: on GPUs every sweep measures the plain collectives too",
        ),
        (
            "backend=deepep,nccl_ep",
            "backend=deepep,nccl_ep has several values, one is possible here",
            "",
        ),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(override: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        api.plan("hardware=h200", override)
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_all_on_cpus_is_the_all_to_all() -> None:
    plan = api.plan("hardware=cpu", "backend=all", "workload=small", "grid=smoke")
    assert (plan.spec.backend, plan.left_out, plan.baselines) == ("alltoall", {}, [])


def test_on_a_cluster_all_is_what_is_installed_here_or_else_deepep_v1() -> None:
    names, left_out = hardware.resolve_backends("all", spec().hardware, local=False)
    absent = {name for name in NAMES if any(problem.absent for problem in BACKENDS[name].problems())}
    assert names == ([name for name in NAMES if name not in absent] or ["deepep"])
    assert left_out.keys() == absent - {*names}


def test_the_plan_in_words_has_the_defaults_by_name_and_the_refusals_of_each_library() -> None:
    changes: dict[str, Any] = {"workload": small_workload(dtype=Dtype.FP8, hidden=512), "num_shards": 2}
    base = spec(ALL, "grid=smoke", "grid.tokens_per_chunk=[33,64]", "grid.num_stages=[12]", "search.own_tuning=false")
    plan = msgspec.structs.replace(
        planning.make(msgspec.structs.replace(base, **changes)), left_out={"allgather": "a reason"}
    )
    lines = prepare.describe(plan).splitlines()
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines] == [
        "DeepEP V1, DeepEP V2, NCCL EP on h200, EP=4, tiny (64 x 512, 16 experts, top-4, fp8, uniform)",
        "points: 27 (16 cells, 6 of the default, 5 of the baseline), 2 cells refused",
        "shard 0: 8 cells, about N s",
        "shard 1: 8 cells, about N s",
        "DeepEP V1: 12 cells, 0 refused",
        "  default library: dispatch num_sms 20, nvl_chunk 6, nvl_buffer 256; "
        "combine num_sms 20, nvl_chunk 9, nvl_buffer 256",
        "DeepEP V2: 4 cells, 0 refused",
        "  default library: num_sms 16",
        "  default vllm_sglang: num_sms 64",
        "NCCL EP: 0 cells, 2 refused",
        "  default library: num_sms 16, tokens_per_chunk 64, num_stages 12, num_pipelines 2",
        *(
            f"  refused: {op} num_sms 16, tokens_per_chunk 33, num_stages 12, num_pipelines 2: "
            "grid.tokens_per_chunk must be a multiple of 32, got 33"
            for op in PAIR
        ),
        "all-gather + reduce-scatter is left out: a reason",
        "baselines: all-to-all (dispatch, combine, exchange), all-gather + reduce-scatter (dispatch, combine)",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_default_has_a_name_and_both_operations(name: str) -> None:
    plan = planning.make(spec(f"backend={name}"))
    facts = hardware.facts_of(plan.spec.hardware, plan.spec.workload, num_ranks=4)
    dispatch, combine = (BACKENDS[name].defaults(op, facts) for op in PAIR)
    assert list(dispatch) == list(combine)
    assert next(iter(dispatch)) == LIBRARY_DEFAULT
