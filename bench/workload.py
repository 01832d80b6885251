"""Seeded routings and the bytes that they move, computed with numpy only: planning needs no torch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.records import Dtype

ROUTINGS = ("uniform", "zipf", "grouped")
"""Routings drawn from a seed; any other value is the path of a saved trace (.npy)."""

_NUM_GROUPS = 8
_NUM_TOP_GROUPS = 4

TopK = npt.NDArray[np.int64]
"""Expert indices [num_tokens, num_topk]; -1 for a dropped choice."""


class Workload(msgspec.Struct, frozen=True):
    """One MoE layer as its communication sees it.

    ``num_tokens`` is per rank; ``hidden`` and ``moe_intermediate`` count elements. ``routing``: uniform, zipf, grouped
    or the path of a trace. ``num_moe_layers``: how many such layers the model has.
    """

    name: str
    num_tokens: int
    hidden: int
    num_experts: int
    num_topk: int
    dtype: Dtype
    routing: str
    num_moe_layers: int
    moe_intermediate: int
    seed: int = 1

    def bytes_per_token(self, dtype: Dtype) -> int:
        """Payload of one token: 2 bytes per element in BF16; in FP8 one byte, and one FP32 scale per 128 elements."""
        if dtype is Dtype.BF16:
            return 2 * self.hidden
        return self.hidden + 4 * (self.hidden // 128)


def route(workload: Workload, *, rank: int, num_ranks: int) -> TopK:
    """The experts that each token of this rank chooses, ascending; the same on every machine for one seed.

    ``uniform``: every set of experts is equally likely. ``zipf``: the i-th expert of a seeded order, from 0, is chosen
    with weight 1 / (i + 1). Both draw without replacement, by the Gumbel top-k trick [Kool et al. 2019]. ``grouped``:
    each token first draws 4 of 8 groups of experts (group-limited gating, as in DeepSeek-V3). A path: this rank's part
    of a saved array [num_ranks, num_tokens, num_topk], as it is; OSError or ValueError if it cannot be read or does
    not fit the workload.
    """
    if workload.routing not in ROUTINGS:
        return _trace(workload, rank=rank, num_ranks=num_ranks)
    generator = np.random.default_rng([workload.seed, rank])
    scores = generator.gumbel(size=(workload.num_tokens, workload.num_experts))
    if workload.routing == "zipf":
        order = np.random.default_rng(workload.seed).permutation(workload.num_experts)
        scores = scores - np.log(order + 1.0)
    elif workload.routing == "grouped":
        scores = scores + _closed_groups(workload, generator)
    return np.sort(np.argpartition(-scores, workload.num_topk - 1, axis=1)[:, : workload.num_topk], axis=1)


def _closed_groups(workload: Workload, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """0 for experts in the groups that a token has drawn, -infinity for the others [num_tokens, num_experts]."""
    draw = generator.random((workload.num_tokens, _NUM_GROUPS))
    closed = np.argsort(draw, axis=1) >= _NUM_TOP_GROUPS
    group_of_expert = np.arange(workload.num_experts) * _NUM_GROUPS // workload.num_experts
    penalty: npt.NDArray[np.float64] = np.where(closed[:, group_of_expert], -np.inf, 0.0)
    return penalty


def _trace(workload: Workload, *, rank: int, num_ranks: int) -> TopK:
    """One rank's part of a saved trace; ValueError if its type, shape or values do not fit the workload."""
    try:
        trace = np.load(Path(workload.routing), allow_pickle=False)
    except EOFError:
        raise ValueError("the file is empty") from None
    if not isinstance(trace, np.ndarray) or not np.issubdtype(trace.dtype, np.integer):
        raise ValueError("a routing trace is one saved array of integers")
    shape = (num_ranks, workload.num_tokens, workload.num_topk)
    if trace.shape != shape:
        raise ValueError(f"routing trace has shape {trace.shape}, the workload needs {shape}")
    if trace.min() < -1 or trace.max() >= workload.num_experts:
        raise ValueError(f"routing trace names experts outside -1..{workload.num_experts - 1}")
    return np.asarray(trace[rank], dtype=np.int64)


def token_in_rank(topk: TopK, *, num_experts: int, num_ranks: int) -> npt.NDArray[np.bool_]:
    """Whether a token goes to a rank [num_tokens, num_ranks]: once, however many of its experts are there."""
    owner = np.where(topk >= 0, topk // (num_experts // num_ranks), -1)
    mask: npt.NDArray[np.bool_] = (owner[:, :, None] == np.arange(num_ranks)).any(axis=1)
    return mask


def token_matrix(workload: Workload, *, num_ranks: int) -> list[list[int]]:
    """How many tokens each rank sends to each, itself included: ``tokens[source][destination]``."""
    return [
        token_in_rank(
            route(workload, rank=rank, num_ranks=num_ranks), num_experts=workload.num_experts, num_ranks=num_ranks
        )
        .sum(axis=0)
        .tolist()
        for rank in range(num_ranks)
    ]


class Volume(msgspec.Struct, frozen=True):
    """Bytes that the busiest rank moves in one direction: ``logical`` with those that stay on it, ``wire`` without."""

    logical: int
    wire: int


def volume(tokens: list[list[int]], *, bytes_per_token: int) -> Volume:
    """The bytes that the busiest rank moves for a layout ``tokens[source][destination]``.

    Logical bytes follow DeepEP's tests, which count received bytes with those of the own rank. Wire bytes are those
    that cross the rank's links; the fuller direction of the busiest rank bounds the time.
    """
    matrix = np.asarray(tokens, dtype=np.int64)
    received, sent, local = matrix.sum(axis=0), matrix.sum(axis=1), matrix.diagonal()
    return Volume(
        logical=int(np.maximum(received, sent).max()) * bytes_per_token,
        wire=int(np.maximum(received - local, sent - local).max()) * bytes_per_token,
    )
