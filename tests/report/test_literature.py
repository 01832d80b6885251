"""Numbers of others beside ours."""

from __future__ import annotations

import pytest

from bench.records import (
    Line,
    Traffic,
)
from bench.workload import token_matrix
from launcher.config.plan import Plan
from launcher.config.schema import Ep
from launcher.report import optimal_configs
from tests.analysis.runs import build
from tests.builders import (
    ENVIRONMENT,
    HOST,
    SELF_CHECK,
    deepep_plan,
    noisy,
    record,
    spec,
)


def of_ep(size: int) -> tuple[Plan, list[Line]]:
    """DeepSeek-V3's shape on so many ranks, every point in 900 us, with the layout that its routing gives."""
    made = deepep_plan(workload=spec("workload=deepseek_v3").workload, ep=Ep(size=size, share_gpus=False))
    traffic = Traffic(token_matrix(made.spec.workload, num_ranks=size))
    timed = [record(planned, noisy(900.0), sequence=at) for at, planned in enumerate(made.every_point)]
    return made, [ENVIRONMENT, HOST, SELF_CHECK, traffic, *timed]


def test_published_numbers_stand_beside_ours_where_the_shape_is_theirs_and_are_labelled() -> None:
    made, lines = of_ep(8)
    text = optimal_configs.markdown(build(lines, plan=made))
    section = text.split("## Published numbers for this shape")[1].split("\n## ")[0]
    assert "| reported | H800, combine bf16 | 158 | 69% | README of DeepEP V1 |" in section
    assert "| **measured** | h200, dispatch bf16 | 347 | 68% | this run |" in section
    assert "fp8" not in section  # the dispatch was BF16


@pytest.mark.parametrize("size", [2, 4])
def test_no_number_of_another_shape_stands_beside_ours(size: int) -> None:
    made, lines = of_ep(size)
    assert "reported" not in optimal_configs.markdown(build(lines, plan=made)).split("## Points")[0]
