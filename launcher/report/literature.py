"""What others published for a shape that was measured here: each with its source, none reproduced; pure."""

from __future__ import annotations

import msgspec

from bench.records import Dtype, Op
from bench.workload import Workload
from launcher.report.report import Report
from launcher.text import table, text


class Reported(msgspec.Struct, frozen=True):
    """One operation on a node of eight. ``logical_gb_per_s`` is DeepEP's convention; the peak is one GPU's, one way."""

    gpu: str
    op: Op
    dtype: Dtype
    logical_gb_per_s: float
    peak_gb_per_s: float
    source: str


_EP = 8
_SHAPE = (4096, 7168, 256, 8)
"""Tokens a rank, hidden, experts, top-k: what DeepEP's own tests and README use."""

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
    """What others published for this shape beside what was measured here, each labelled."""
    results = report.results
    spec, optimal = results.plan.spec, results.choice.optimal
    known = _of(spec.workload, num_ranks=spec.ep.size, dtype=spec.workload.dtype)
    if not known or results.plan.is_dry or spec.ep.share_gpus:
        return []
    volumes = dict(zip((Op.DISPATCH, Op.COMBINE), results.volumes, strict=True))
    rows = [
        [
            "reported",
            f"{one.gpu}, {one.op} {one.dtype}",
            f"{one.logical_gb_per_s:.0f}",
            f"{one.logical_gb_per_s * volumes[one.op].wire / volumes[one.op].logical / one.peak_gb_per_s:.0%}",
            text(one.source),
        ]
        for one in known
    ]
    for result in (optimal.dispatch, optimal.combine) if optimal is not None else ():
        if result.logical_gb_per_s is not None and result.peak_fraction is not None:
            what = f"{text(spec.hardware.name)}, {result.point.op} {result.point.dtype}"
            rows.append(
                ["**measured**", what, f"{result.logical_gb_per_s:.0f}", f"{result.peak_fraction:.0%}", "this run"]
            )
    return [
        "## Published numbers for this shape",
        "",
        "Reported: by others, not reproduced here. Their share of the link's peak is computed: without tokens "
        "that stay on their rank as in the layout of this run, over the peak of their GPU, 200 GB/s (H800) or 450.",
        "",
        *table(("", "what", "logical GB/s", "wire, of peak", "source"), rows),
    ]


def _of(workload: Workload, *, num_ranks: int, dtype: Dtype) -> list[Reported]:
    """What was published for this shape, with this type of payload in the dispatch; empty for any other shape."""
    shape = (workload.num_tokens, workload.hidden, workload.num_experts, workload.num_topk)
    if num_ranks != _EP or shape != _SHAPE:
        return []
    return [one for one in _ALL if one.op is Op.COMBINE or one.dtype is dtype]
