"""The user's own configs: a list finds the library that it fits, a dict names it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.records import Op, Role
from launcher import api
from launcher.config import candidates, planning
from launcher.config.plan import Plan
from launcher.errors import UserError
from tests.builders import deepep_plan, spec

LIBRARIES = "backend=[deepep,deepep_v2,nccl_ep]"
HINT = "search.candidates=[[24,8,256]], search.candidates={deepep:[[24,8,256]],deepep_v2:[[24]]}"


def planned(plan: Plan) -> set[tuple[str, str, tuple[int, ...]]]:
    points = [cell.point for cell in plan.cells if cell.role is Role.CANDIDATE]
    return {(point.backend, point.op.value, tuple(point.knobs.values())) for point in points}


def both(*configs: tuple[str, tuple[int, ...]]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(library, op.value, knobs) for library, knobs in configs for op in (Op.DISPATCH, Op.COMBINE)}


@pytest.mark.parametrize(
    "written",
    [
        "[[26,8,256],[26],[6,32,8,2],[30,8,256]]",
        "{deepep:[[26,8,256],[30,8,256]],deepep_v2:[[26]],nccl_ep:[[6,32,8,2]]}",
    ],
)
def test_a_config_of_a_list_belongs_to_the_first_library_with_as_many_knobs_and_a_dict_names_it(written: str) -> None:
    plan = planning.make(spec(LIBRARIES, f"search.candidates={written}"))
    assert planned(plan) == both(
        ("deepep", (26, 8, 256)), ("deepep", (30, 8, 256)), ("deepep_v2", (26,)), ("nccl_ep", (6, 32, 8, 2))
    )
    assert [candidates.of_library(plan.spec, name) for name in plan.spec.backends] == [
        [[26, 8, 256], [30, 8, 256]],
        [[26]],
        [[6, 32, 8, 2]],
    ]
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.parametrize("empty", ["[]", "{}", "null"])
def test_without_candidates_there_are_none(empty: str) -> None:
    assert spec(f"search.candidates={empty}") == spec()
    assert spec().search.candidates == []


def test_a_plan_of_an_earlier_version_holds_a_plain_list() -> None:
    search = msgspec.structs.replace(deepep_plan().spec.search, candidates=[[24, 8, 256]])
    earlier: dict[str, Any] = msgspec.to_builtins(deepep_plan(search=search))
    assert earlier["spec"]["search"]["candidates"] == [[24, 8, 256]]
    read = msgspec.json.decode(msgspec.json.encode(earlier), type=Plan)
    assert candidates.of_library(read.spec, "deepep") == [[24, 8, 256]]


@pytest.mark.parametrize(
    ("backend", "written", "message", "hint"),
    [
        (
            "deepep",
            "[[24,8]]",
            "search.candidates must hold configs of 3 numbers, got [24, 8]",
            "their order is num_sms, nvl_chunk, nvl_buffer",
        ),
        (
            "[deepep,deepep_v2]",
            "[[24,8,256],[24,8]]",
            "search.candidates must hold configs of 3 or 1 numbers, got [24, 8]",
            "their order is num_sms, nvl_chunk, nvl_buffer (deepep); num_sms (deepep_v2)",
        ),
        (
            "[deepep,deepep_v2]",
            "{deepep_v2:[[24,8,256]]}",
            "search.candidates must hold configs of 1 numbers, got [24, 8, 256]",
            "their order is num_sms",
        ),
        (
            "[deepep,deepep_v2]",
            "{nccl_ep:[[8,32,8,2]]}",
            "search.candidates must name libraries of this sweep (deepep, deepep_v2), got nccl_ep",
            "backend=[...] names the libraries of a sweep",
        ),
        (
            "deepep",
            "[[7,8,256]]",
            "search.candidates [7, 8, 256]: grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 7 "
            "(dispatch of deepep)",
            "choose an even number",
        ),
        (
            "deepep",
            "[24,8,256]",
            "search.candidates must list configs, or configs by library, each a list of numbers: "
            "Expected `array`, got `int` - at `$[0]`",
            HINT,
        ),
        (
            "deepep",
            "{deepep:[24,8,256]}",
            "search.candidates must list configs, or configs by library, each a list of numbers: "
            "Expected `array`, got `int` - at `$[...][0]`",
            HINT,
        ),
    ],
)
def test_candidates_of_no_library_are_refused_in_one_line(backend: str, written: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        api.plan("hardware=h200", f"backend={backend}", f"search.candidates={written}")
    assert (str(caught.value), caught.value.hint) == (message, hint)
