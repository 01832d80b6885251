"""The part of deep_ep 2.1 that the program uses, on CPUs: tokens move through gloo, and configs are "compiled"."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

topk_idx_t = torch.int64


class Handle(NamedTuple):
    """What a dispatch leaves for its combine. ``masks``: for each source, which of its tokens came here."""

    topk_idx: torch.Tensor
    topk_weights: torch.Tensor
    masks: list[torch.Tensor]
    num_recv_tokens_per_expert_list: list[int]
    recv_src_metadata: torch.Tensor
    psum_num_recv_tokens_per_scaleup_rank: torch.Tensor


class ElasticBuffer:
    """deep_ep.ElasticBuffer without GPUs; an odd num_sms fails."""

    def __init__(self, group: dist.ProcessGroup, **_: Any) -> None:
        self._group = group

    def dispatch(
        self, x: torch.Tensor, *, num_experts: int, num_sms: int, topk_idx=None, topk_weights=None, handle=None
    ) -> tuple[Any, ...]:
        compile_kernel(f"dispatch-{num_sms}-{handle is not None}", num_sms)
        if handle is not None:
            topk_idx, topk_weights = handle.topk_idx, handle.topk_weights
        sent = self._gather((x, topk_idx, topk_weights))
        local = num_experts // dist.get_world_size(self._group)
        first = dist.get_rank(self._group) * local
        masks = [((idx >= first) & (idx < first + local)).any(dim=1) for _, idx, _ in sent]
        tokens, idx, weights = (
            torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)])
            for parts in zip(*sent, strict=True)
        )
        is_remote = (idx < first) | (idx >= first + local)
        counts = torch.bincount(idx[~is_remote] - first, minlength=local).tolist()
        rows, ends = torch.arange(len(tokens))[:, None], torch.tensor([int(mask.sum()) for mask in masks]).cumsum(0)
        made = Handle(topk_idx, topk_weights, masks, counts, rows, ends)
        received = (idx - first).masked_fill(is_remote, -1), weights.masked_fill(is_remote, 0.0)
        return tokens, *received, made, None

    def combine(self, tokens: torch.Tensor, handle: Handle, *, num_sms: int) -> tuple[torch.Tensor, None, None]:
        compile_kernel(f"combine-{num_sms}", num_sms)
        rank = dist.get_rank(self._group)
        total = torch.zeros(len(handle.topk_idx), tokens.shape[1])
        for returned, masks in self._gather((tokens, handle.masks)):
            begin = sum(int(mask.sum()) for mask in masks[:rank])
            total[masks[rank]] += returned[begin : begin + int(masks[rank].sum())].float()
        return total.to(torch.bfloat16), None, None

    def _gather(self, value: Any) -> list[Any]:
        everyone = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone


def compile_kernel(name: str, num_sms: int) -> None:
    assert num_sms % 2 == 0, "odd"
    (Path(os.environ["EP_JIT_CACHE_DIR"]) / name).touch()
