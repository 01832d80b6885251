"""The limit on a config's buffer."""

from __future__ import annotations

import pytest

from bench.records import Role
from launcher.config import planning
from launcher.errors import UserError
from tests.builders import spec

EP8 = ("ep=8", "backend=deepep", "grid.num_sms=[64,128]", "grid.nvl_chunk=[8]", "grid.nvl_buffer=[256]")


def test_configs_of_two_gib_and_more_are_refused_with_the_key_that_allows_them() -> None:
    plan = planning.make(spec(*EP8))
    assert {cell.knobs["num_sms"] for cell in plan.refused} == {128}
    (violation,) = plan.refused[0].violations
    assert str(violation) == (
        "grid.nvl_buffer must keep the buffer within 2047 MiB (search.max_buffer_mib), got 2050 MiB"
    )
    assert violation.hint.startswith("search.max_buffer_mib=2050 allows it")
    assert {cell.point.knobs["num_sms"] for cell in plan.cells if cell.role is Role.GRID} == {64}


@pytest.mark.parametrize("limit", ["2050", "null"])
def test_a_user_may_ask_for_larger_buffers(limit: str) -> None:
    assert planning.make(spec(*EP8, f"search.max_buffer_mib={limit}")).refused == []


def test_a_candidate_beyond_the_limit_is_an_error_and_the_default_never_is() -> None:
    with pytest.raises(UserError, match="keep the buffer within 2047 MiB"):
        planning.make(spec(*EP8, "search.candidates=[[128,8,256]]"))
    plan = planning.make(spec(*EP8[:2], "grid.num_sms=[2]", "grid.nvl_chunk=[4]", "grid.nvl_buffer=[16]",
                              "search.max_buffer_mib=20", "search.own_tuning=false"))  # fmt: skip
    assert len(plan.anchors) == 2
