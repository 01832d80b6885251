"""One of two ranks: python shim_rank.py RENDEZVOUS RANK. Tries the shim on real GPUs and prints JSON.

``channels`` of a dispatch is the second dimension of its handle's channel_prefix_matrix, half the SMs that it ran on:
the only number of a Config that a dispatch shows. ``hints`` are buffer sizes; they depend on num_sms and nvl_buffer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

HIDDEN, EXPERTS, TOPK, TOKENS = 7168, 64, 8, 512
RANKS = (2, 4, 8)


def hints(buffer: Any) -> dict[int, list[int]]:
    """Buffer size hints of the library's configs for dispatch and combine, by number of ranks."""
    configs = {n: (buffer.get_dispatch_config(n), buffer.get_combine_config(n)) for n in RANKS}
    return {n: [config.get_nvl_buffer_size_hint(2 * HIDDEN, n) for config in pair] for n, pair in configs.items()}


def round_trip(deep_ep: Any, group: Any, size: int) -> tuple[int, bool]:
    """Channels of a dispatch without config=, and whether a combine without config= returns the right tokens."""
    buffer = deep_ep.Buffer(group, size, 0, explicitly_destroy=True)
    tokens = torch.randn(TOKENS, HIDDEN, device="cuda").to(torch.bfloat16)
    choices = torch.rand(TOKENS, EXPERTS, device="cuda").topk(TOPK).indices.to(deep_ep.topk_idx_t)
    weights = torch.ones(TOKENS, TOPK, device="cuda")
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices, EXPERTS)
    received, _, _, _, handle, _ = buffer.dispatch(
        tokens,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=choices,
        topk_weights=weights,
    )
    combined, _, _ = buffer.combine(received, handle)
    copies = in_rank.sum(dim=1, keepdim=True)
    same = torch.allclose(combined.float(), tokens.float() * copies, rtol=2e-2, atol=2e-2)
    torch.cuda.synchronize()
    buffer.destroy()
    return handle[1].shape[1], bool(same)


def main(rendezvous: str, rank: int) -> None:
    """Prints the observations before and after the import of the shim."""
    torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    import deep_ep

    before = hints(deep_ep.Buffer)
    channels_before, right_before = round_trip(deep_ep, dist.group.WORLD, max(before[2]))
    import deepep_shim

    after = hints(deep_ep.Buffer)
    channels, right = round_trip(deep_ep, dist.group.WORLD, max(after[2]))
    if rank == 0:
        observations = {
            "before": before,
            "after": after,
            "num_sms": deep_ep.Buffer.num_sms,
            "active": deepep_shim.active(),
        }
        observations |= {"channels": [channels_before, channels], "right": [right_before, right]}
        print(json.dumps(observations))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
