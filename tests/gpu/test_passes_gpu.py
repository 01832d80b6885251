"""Two real GPUs: pairs serially and overlapped, GEMMs in the dtype of the dispatch, the skew of the ranks' start."""

from __future__ import annotations

import importlib.util
import statistics
from typing import NamedTuple

import pytest
import torch

from bench.backends import BACKENDS, LIBRARY_DEFAULT, join_pair
from bench.nvml import gpus
from bench.protocol import GroupSpec
from bench.rank import scaled
from bench.rank.gemms import ExpertGemms
from bench.records import Alignment, Dtype, Line, Measured, Op, Point, Role
from bench.supervisor import Effort, Supervisor, Task
from launcher.analysis.alignment import spreads_us, start_skew
from tests.builders import facts, small_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(len(gpus.inventory()) < 2, reason="needs two GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("deep_ep") is None, reason="needs deep_ep"),
]

LAYER = {"num_tokens": 2048, "hidden": 7168, "num_experts": 64, "num_topk": 8, "moe_intermediate": 2048}
OPS = (Op.COMPUTE, Op.OVERLAPPED, Op.SERIAL, Op.LAYER, Op.LAYER_TRAINING)


class Passes(NamedTuple):
    """What two ranks measured with DeepEP's default in one dtype."""

    dtype: Dtype
    outcomes: dict[Op, Measured]
    lines: list[Line]

    def median_us(self, op: Op) -> float:
        """Over the iterations."""
        return statistics.median(self.outcomes[op].samples_us)


@pytest.fixture(scope="module", params=list(Dtype))
def passes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Passes:
    """Isolated, overlapped and serial, and layers, in one process group."""
    dtype, backend = request.param, BACKENDS["deepep"]
    given = facts(num_ranks=2, **LAYER)
    configs = {op: backend.defaults(op, given)[LIBRARY_DEFAULT] for op in (Op.DISPATCH, Op.COMBINE)}
    single = [
        Point("deepep", Op.DISPATCH, dtype, configs[Op.DISPATCH]),
        Point("deepep", Op.COMBINE, Dtype.BF16, configs[Op.COMBINE]),
    ]
    together = [
        join_pair(backend, dtype, dispatch=configs[Op.DISPATCH], combine=configs[Op.COMBINE], op=op) for op in OPS[1:]
    ]
    points = [*single, Point("deepep", Op.COMPUTE, dtype, {}), *together]
    lines: list[Line] = []
    supervisor = Supervisor(
        GroupSpec(2, "cuda", shared_gpus=False, workload=small_workload(**LAYER, dtype=dtype), points=single),
        Effort(warmup=2, iterations=8, deadline_s=30.0, startup_s=180.0),
        anchors=[Task(single[0], "dispatch", Role.ANCHOR)],
        sink=lines.append,
        log_folder=tmp_path_factory.mktemp("logs"),
    )
    outcomes = {}
    for record in supervisor.run([Task(point, point.label, Role.GRID) for point in points]):
        assert isinstance(record.outcome, Measured), record
        outcomes[record.point.op] = record.outcome
    return Passes(dtype, outcomes, lines)


def test_the_gemms_multiply_what_was_dispatched(passes: Passes) -> None:
    """Every H100 and H200 runs FP8 GEMMs, with any torch since 2.8."""
    for op in OPS:
        assert passes.outcomes[op].gemms is passes.dtype, op
    assert passes.outcomes[Op.DISPATCH].gemms is None


def test_the_sequence_takes_about_as_long_as_its_parts_and_ends_after_its_gemms(passes: Passes) -> None:
    parts = passes.median_us(Op.COMPUTE) + passes.median_us(Op.DISPATCH) + passes.median_us(Op.COMBINE)
    assert 0.8 * parts < passes.median_us(Op.SERIAL) < 1.5 * parts
    serial = passes.outcomes[Op.SERIAL]
    after_us = [total - gemms for total, gemms in zip(serial.samples_us, serial.compute_us, strict=True)]
    assert 0.5 < statistics.median(after_us) / passes.median_us(Op.COMBINE) < 2.0


def test_ranks_start_within_a_few_microseconds_of_one_another(passes: Passes) -> None:
    (alignment,) = (line for line in passes.lines if isinstance(line, Alignment))
    assert alignment.failure == ""
    skew = start_skew(passes.lines)
    assert skew is not None
    print(f"\n{passes.dtype}: ranks start within {skew.median_us:.2f} us (median), {skew.p95_us:.2f} us (95 %)")
    print(f"signals to {alignment.from_first_us[0]}, back {alignment.to_first_us[0]}")
    assert 0 <= statistics.median(spreads_us(alignment)) < 10


@pytest.mark.parametrize("multiply", [scaled.multiply_at_once, scaled.multiply_each])
def test_products_in_fp8_are_right_on_this_gpu(multiply: scaled.Multiply) -> None:
    device, counts, inner, columns = torch.device("cuda", 0), [100, 0, 300, 17], 512, 384
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    left, right = scaled.scale_rows(draw(sum(counts), inner)), scaled.scale_columns(draw(len(counts), inner, columns))
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    product = multiply(left, right, ends, counts).float()
    begin = 0
    for group, count in enumerate(counts):
        rows = slice(begin, begin + count)
        begin += count
        factors = left.values[rows].float() * left.scales[rows, None], right.values[group].float() * right.scales[group]
        expected = factors[0] @ factors[1]
        assert bool(((product[rows] - expected).norm(dim=1) <= 0.02 * expected.norm(dim=1)).all())


def test_fp8_gemms_take_less_time_than_bf16_gemms() -> None:
    device, tokens = torch.device("cuda", 0), [512] * 32
    times = {}
    for dtype in Dtype:
        gemms = ExpertGemms(small_workload(**LAYER), tokens, dtype=dtype, device=device)
        assert gemms.dtype is dtype
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(3):
            gemms.run()
        start.record()
        for _ in range(5):
            gemms.run()
        stop.record()
        torch.cuda.synchronize()
        times[dtype] = start.elapsed_time(stop) / 5
    print(f"\nGEMMs of {len(tokens)} experts with {tokens[0]} tokens each: {times} ms")
    assert times[Dtype.FP8] < 0.8 * times[Dtype.BF16]
