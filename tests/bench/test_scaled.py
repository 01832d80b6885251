"""FP8 GEMMs of experts: their products are those of the numbers that they hold, within the rounding of FP8."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.rank import scaled
from bench.rank.gemms import ExpertGemms
from bench.rank.scaled import Scaled
from bench.records import Dtype
from tests.bench.test_layer import experts, one_by_one, received_by_rank_0
from tests.builders import small_workload

CPU = torch.device("cpu")
INNER, COLUMNS = 64, 48

counts = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)
seeds = st.integers(0, 2**32 - 1)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def ends_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


@given(seeds, st.integers(-20, 20))
def test_a_row_in_fp8_is_off_by_at_most_a_rounding_of_its_largest_element(seed: int, exponent: int) -> None:
    rows = draw(8, INNER, seed=seed) * 2.0**exponent
    rows[3] = 0
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    assert bool(((scaled.scale_rows(rows).in_bf16() - rows).float().abs() <= largest / 16).all())


@given(counts, seeds)
def test_the_product_of_each_group_is_that_of_its_factors(counts: list[int], seed: int) -> None:
    left = scaled.scale_rows(draw(sum(counts), INNER, seed=seed))
    right = scaled.scale_columns(draw(len(counts), INNER, COLUMNS, seed=seed + 1))
    product = scaled.multiply_each(left, right, ends_of(counts), counts).float()
    begin = 0
    for group, count in enumerate(counts):
        rows = slice(begin, begin + count)
        begin += count
        expected = (left.values[rows].float() * left.scales[rows, None]) @ (
            right.values[group].float() * right.scales[group]
        )
        assert torch.allclose(
            product[rows], expected, rtol=0.01, atol=0.01 * float(expected.abs().max() if count else 0)
        )


def test_torch_takes_the_factors_of_all_groups_at_once() -> None:
    """Without a GPU torch checks types, shapes and strides only."""
    left = scaled.scale_rows(draw(40, INNER, seed=1))
    right = scaled.scale_columns(draw(3, INNER, COLUMNS, seed=2))
    on_meta = [Scaled(*(tensor.to("meta") for tensor in factor)) for factor in (left, right)]
    product = scaled.multiply_at_once(*on_meta, ends_of([10, 0, 30]).to("meta"), [10, 0, 30])
    assert (product.shape, product.dtype) == ((40, COLUMNS), torch.bfloat16)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_gemms_on_a_cpu_are_bf16_and_say_so(dtype: Dtype) -> None:
    gemms = ExpertGemms(small_workload(), [3, 0, 5], dtype=dtype, device=CPU)
    gemms.run()
    assert gemms.dtype is Dtype.BF16
    assert experts().dtype(dtype) is Dtype.BF16


def test_a_layer_in_fp8_gives_what_one_in_bf16_gives_within_the_rounding_of_fp8() -> None:
    layer, received = experts(), received_by_rank_0(Dtype.FP8)
    in_bf16, saved_in_bf16 = layer.forward(received)
    layer._multiply = scaled.multiply_each
    in_fp8, saved = layer.forward(received)
    assert layer.dtype(Dtype.FP8) is Dtype.FP8
    assert not torch.equal(in_fp8, in_bf16)
    assert relative_error(in_fp8, in_bf16) <= 0.08
    gradients = draw(*in_fp8.shape, seed=3)
    backward = layer.backward(gradients, saved)
    assert relative_error(backward, layer.backward(gradients, saved_in_bf16)) <= 0.08


def test_a_layer_of_bf16_tokens_stays_in_bf16_where_fp8_gemms_can_run() -> None:
    layer, received = experts(), received_by_rank_0(Dtype.BF16)
    layer._multiply = scaled.multiply_each
    assert layer.dtype(Dtype.BF16) is Dtype.BF16
    assert relative_error(layer.forward(received)[0], one_by_one(layer, received)) <= 0.03


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
