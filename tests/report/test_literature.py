"""Published numbers in the report."""

from __future__ import annotations

import pytest

from bench.records import (
    Line,
    Traffic,
)
from bench.workload import token_matrix
from launcher.config.plan import Plan
from launcher.config.schema import Ep
from tests.analysis.runs import build
from tests.builders import (
    ENVIRONMENT,
    HOST,
    SELF_CHECK,
    deepep_plan,
    markdown_of,
    noisy,
    record,
    spec,
)


def of_ep(size: int) -> tuple[Plan, list[Line]]:
    """A run of DeepSeek-V3's shape on ``size`` ranks with its real layout; every point takes 900 us."""
    plan = deepep_plan(workload=spec("workload=deepseek_v3").workload, ep=Ep(size=size, share_gpus=False))
    traffic = Traffic(token_matrix(plan.spec.workload, num_ranks=size))
    timed = [record(planned, noisy(900.0), sequence=at) for at, planned in enumerate(plan.every_point)]
    return plan, [ENVIRONMENT, HOST, SELF_CHECK, traffic, *timed]


def test_published_numbers_for_the_same_shape_are_listed_and_labelled() -> None:
    plan, lines = of_ep(8)
    text = markdown_of(build(lines, plan=plan))
    section = text.split("## Published numbers for this shape")[1].split("\n## ")[0]
    assert "| reported | H800, combine bf16 | 158 | 69% | README of DeepEP V1 |" in section
    assert "| **measured** | h200, dispatch bf16 | 347 | 68% | this run |" in section
    assert "fp8" not in section  # the dispatch was BF16


@pytest.mark.parametrize("size", [2, 4])
def test_published_numbers_for_another_shape_are_left_out(size: int) -> None:
    plan, lines = of_ep(size)
    assert "reported" not in markdown_of(build(lines, plan=plan)).split("## Points")[0]
