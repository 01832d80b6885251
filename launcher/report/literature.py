"""Numbers that others published for the shape measured here: each with its source, none reproduced; pure."""

from __future__ import annotations

import msgspec

from bench.records import Dtype, Op
from bench.workload import Workload
from launcher.report.columns import LOGICAL
from launcher.report.report import Report
from launcher.text import table, text


class Reported(msgspec.Struct, frozen=True):
    """One operation on a node of eight GPUs. ``peak_gb_per_s``: the link peak of one GPU in one direction."""

    gpu: str
    op: Op
    dtype: Dtype
    logical_gb_per_s: float
    peak_gb_per_s: float
    source: str


_LIBRARY = "deepep"
_EP = 8
_SHAPE = (4096, 7168, 256, 8)
"""Tokens per rank, hidden, experts, top-k, as in DeepEP's own tests and README."""

_README = "README of DeepEP V1"
_UNKNOWN = "often cited with 20 SMs, origin not recorded"
_ALL = (
    Reported("H800", Op.DISPATCH, Dtype.FP8, 153, 200, _README),
    Reported("H800", Op.COMBINE, Dtype.BF16, 158, 200, _README),
    Reported("H800", Op.DISPATCH, Dtype.BF16, 160.5, 200, "perplexityai/pplx-kernels#10, 24 SMs, chunk 16"),
    Reported("H100", Op.DISPATCH, Dtype.BF16, 329, 450, _UNKNOWN),
    Reported("H100", Op.COMBINE, Dtype.BF16, 287, 450, _UNKNOWN),
    Reported("H200", Op.DISPATCH, Dtype.BF16, 320, 450, "often cited, origin not recorded"),
)


def section(report: Report) -> list[str]:
    """Others' numbers for this shape next to ours, each labelled."""
    results = report.results
    spec, optimal = results.plan.spec, results.choice.optimal
    if spec.backends != [_LIBRARY]:
        return []
    published = _find_published(spec.workload, num_ranks=spec.ep.size, dtype=spec.workload.dtype)
    if not published or results.plan.is_dry or spec.ep.share_gpus:
        return []
    volumes = zip((Op.DISPATCH, Op.COMBINE), results.volumes, strict=True)
    wire_share = {op: volume.wire / volume.logical for op, volume in volumes}
    rows = [
        [
            "reported",
            f"{number.gpu}, {number.op} {number.dtype}",
            f"{number.logical_gb_per_s:.0f}",
            f"{number.logical_gb_per_s * wire_share[number.op] / number.peak_gb_per_s:.0%}",
            text(number.source),
        ]
        for number in published
    ]
    for config in (optimal.dispatch, optimal.combine) if optimal is not None else ():
        if config.logical_gb_per_s is not None and config.peak_fraction is not None:
            what = f"{text(spec.hardware.name)}, {config.point.op} {config.point.dtype}"
            rows.append(
                ["**measured**", what, f"{config.logical_gb_per_s:.0f}", f"{config.peak_fraction:.0%}", "this run"]
            )
    return [
        "## Published numbers for this shape",
        "",
        "Reported by others, not reproduced here. Their share of the link peak is computed: with the share of tokens "
        "that leave their rank in this run's layout, over the peak of their GPU (H800: 200 GB/s, H100 and H200: 450).",
        "",
        *table(("", "what", LOGICAL.heading, "wire, of peak", "source"), rows),
    ]


def _find_published(workload: Workload, *, num_ranks: int, dtype: Dtype) -> list[Reported]:
    """The numbers for this shape with this payload in the dispatch; empty for any other shape."""
    shape = (workload.num_tokens, workload.hidden, workload.num_experts, workload.num_topk)
    if num_ranks != _EP or shape != _SHAPE:
        return []
    return [number for number in _ALL if number.op is Op.COMBINE or number.dtype is dtype]
