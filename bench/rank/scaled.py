"""Grouped GEMMs in FP8 (e4m3), with an FP32 scale for each row of the left and each column of the right factor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

_LARGEST = 448.0
"""The largest number in e4m3."""

_SMALLEST_SCALE = 1e-12
_PROBE = 128


class Scaled(NamedTuple):
    """Numbers ``values`` * ``scales``.

    A left factor: values [rows, inner], scales [rows]. The right factors of all groups: values [groups, inner, columns]
    with adjacent elements of ``inner`` next to each other in memory, scales [groups, columns].
    """

    values: torch.Tensor
    scales: torch.Tensor

    def rows(self, index: torch.Tensor) -> Scaled:
        """Some rows of a left factor."""
        values = self.values.view(torch.uint8).index_select(0, index).view(self.values.dtype)
        return Scaled(values, self.scales.index_select(0, index))

    def in_bf16(self) -> torch.Tensor:
        """The numbers of a left factor."""
        return self.values.to(torch.bfloat16) * self.scales[:, None].to(torch.bfloat16)


Multiply = Callable[[Scaled, Scaled, torch.Tensor, Sequence[int]], torch.Tensor]
"""The product of each group in BF16 [rows, columns], by left and right factor, where the rows of each group end (int32
on the device), and how many each has."""


def scale_rows(tensor: torch.Tensor) -> Scaled:
    """A BF16 left factor [rows, inner] in FP8."""
    largest = torch.linalg.vector_norm(tensor, ord=torch.inf, dim=-1, keepdim=True)
    scales = (largest.float() / _LARGEST).clamp(min=_SMALLEST_SCALE)
    values = (tensor * scales.reciprocal().to(tensor.dtype)).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return Scaled(values, scales.squeeze(-1))


def scale_columns(weights: torch.Tensor) -> Scaled:
    """BF16 right factors [groups, inner, columns] in FP8; one group at a time, to save memory."""
    groups, inner, columns = weights.shape
    values = weights.new_empty(groups, columns, inner, dtype=torch.float8_e4m3fn)
    scales = weights.new_empty(groups, columns, dtype=torch.float32)
    for group in range(groups):
        values[group], scales[group] = scale_rows(weights[group].t().contiguous())
    return Scaled(values.transpose(1, 2), scales)


def multiply_at_once(left: Scaled, right: Scaled, ends: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
    """A single kernel for all groups."""
    product: torch.Tensor = torch._scaled_grouped_mm(  # noqa: SLF001  (its public form takes no plain scales)
        left.values,
        right.values,
        left.scales,
        right.scales,
        offs=ends,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product


def multiply_each(left: Scaled, right: Scaled, _: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """A kernel for each group, where torch has none for all of them."""
    product = left.scales.new_empty(len(left.values), right.values.shape[2], dtype=torch.bfloat16)
    begin = 0
    for group, count in enumerate(counts):
        rows = slice(begin, begin + count)
        begin += count
        if count:
            product[rows] = torch._scaled_mm(  # noqa: SLF001  (its public form takes no plain scales)
                left.values[rows],
                right.values[group],
                scale_a=left.scales[rows, None],
                scale_b=right.scales[group, None],
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
    return product


@functools.cache
def find_multiply(device: torch.device) -> Multiply | None:
    """What multiplies FP8 on this device; None on CPUs, and where neither torch nor the GPU can."""
    for multiply in (multiply_at_once, multiply_each) if device.type == "cuda" else ():
        if _runs(multiply, device):
            return multiply
    return None


def _runs(multiply: Multiply, device: torch.device) -> bool:
    """Whether two small products run: torch and the GPU know that, no list of versions does."""
    left = scale_rows(torch.ones(2 * _PROBE, _PROBE, device=device, dtype=torch.bfloat16))
    right = scale_columns(torch.ones(2, _PROBE, _PROBE, device=device, dtype=torch.bfloat16))
    ends = torch.tensor([_PROBE, 2 * _PROBE], device=device, dtype=torch.int32)
    try:
        product = multiply(left, right, ends, [_PROBE, _PROBE])
    except (RuntimeError, AttributeError):  # what torch raises where a kernel or the function is missing
        return False
    return bool(torch.allclose(product.float(), torch.full_like(product, _PROBE, dtype=torch.float32), rtol=0.01))
