"""The oracle accepts a correct exchange and names the error in a wrong one; plain torch does the exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.backends.sessions.session import Dispatched
from bench.rank.oracle import Oracle, edge_routings, quantise
from bench.records import Dtype
from bench.workload import TopK, Workload, route
from tests.builders import small_workload

CPU = torch.device("cpu")
NUM_RANKS = 2
LAYER = small_workload()
DTYPES = pytest.mark.parametrize("dtype", list(Dtype))


def oracles(routings: list[TopK], dtype: Dtype = Dtype.BF16, workload: Workload = LAYER) -> list[Oracle]:
    return [Oracle(workload, routings, rank=rank, dtype=dtype, device=CPU) for rank in range(len(routings))]


def uniform(dtype: Dtype = Dtype.BF16) -> list[Oracle]:
    return oracles([route(LAYER, rank=rank, num_ranks=NUM_RANKS) for rank in range(NUM_RANKS)], dtype)


def goes_to(idx: torch.Tensor, rank: int, local: int) -> torch.Tensor:
    return ((idx >= rank * local) & (idx < (rank + 1) * local)).any(dim=1)


def dispatched(ranks: list[Oracle], rank: int) -> Dispatched:
    """The dispatch of a correct library on this rank, in order of source and token."""
    local = ranks[0].workload.num_experts // len(ranks)
    tokens, scales, indices, weights = [], [], [], []
    counts = [0] * local
    for source in ranks:
        payload, scale = source.inputs.payload
        for token in range(len(payload)):
            mine = [int(e) - rank * local for e in source.inputs.topk_idx[token]]
            here = [0 <= expert < local for expert in mine]
            if not any(here):
                continue
            tokens.append(payload[token])
            scales += [] if scale is None else [scale[token]]
            indices.append(torch.tensor([e if yes else -1 for e, yes in zip(mine, here, strict=True)]))
            weights.append(source.inputs.topk_weights[token] * torch.tensor(here))
            for expert in (e for e, yes in zip(mine, here, strict=True) if yes):
                counts[expert] += 1
    topk, hidden = ranks[0].workload.num_topk, ranks[0].workload.hidden
    empty = ranks[0].inputs.payload[0][:0]
    return Dispatched(
        (
            torch.stack(tokens) if tokens else empty,
            None if ranks[0].dtype is Dtype.BF16 else torch.stack(scales) if scales else torch.empty(0, hidden // 128),
        ),
        torch.stack(indices) if indices else torch.empty(0, topk, dtype=torch.int64),
        torch.stack(weights) if weights else torch.empty(0, topk),
        counts,
    )


def combined(ranks: list[Oracle], rank: int) -> torch.Tensor:
    """The combine of a correct library: FP32 sums of the returned rows, rounded once."""
    local = ranks[0].workload.num_experts // len(ranks)
    total = torch.zeros(len(ranks[rank].inputs.topk_idx), ranks[0].workload.hidden)
    for destination, oracle in enumerate(ranks):
        row = 0
        for source, sender in enumerate(ranks):
            for token, here in enumerate(goes_to(sender.inputs.topk_idx, destination, local).tolist()):
                if here and source == rank:
                    total[token] += oracle.returned[row].float()
                row += here
    return total.to(torch.bfloat16)


@DTYPES
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_truth_is_accepted_on_every_rank(dtype: Dtype, num_ranks: int) -> None:
    ranks = oracles([route(LAYER, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)], dtype)
    for rank, oracle in enumerate(ranks):
        assert oracle.check_dispatch(dispatched(ranks, rank)) is None
        assert oracle.check_combine(combined(ranks, rank)) is None


@DTYPES
@pytest.mark.parametrize("name", ["one_token", "empty_source", "empty_destination", "all_to_one", "odd"])
def test_the_truth_of_every_edge_routing_is_accepted(dtype: Dtype, name: str) -> None:
    ranks = oracles(edge_routings(LAYER, num_ranks=NUM_RANKS)[name], dtype)
    for rank, oracle in enumerate(ranks):
        assert oracle.check_dispatch(dispatched(ranks, rank)) is None
        assert oracle.check_combine(combined(ranks, rank)) is None


def swap(tokens: torch.Tensor) -> None:
    rows = tokens.view(torch.uint8)
    rows[[0, 1]] = rows[[1, 0]]


def flip(tokens: torch.Tensor) -> None:
    rows = tokens.view(torch.uint8)
    rows[3, 17] ^= 1


def shift_columns(tokens: torch.Tensor) -> None:
    rows = tokens.view(torch.uint8)
    rows[5] = rows[5].roll(2)


@DTYPES
@pytest.mark.parametrize("spoil", [swap, flip, shift_columns])
def test_a_wrong_row_is_named_by_source_and_token(dtype: Dtype, spoil: Callable[[torch.Tensor], None]) -> None:
    ranks = uniform(dtype)
    got = dispatched(ranks, 1)
    spoil(got.payload[0])
    first, count = {swap: (0, 2), flip: (3, 1), shift_columns: (5, 1)}[spoil]
    sent = goes_to(ranks[0].inputs.topk_idx, 1, 8).nonzero()[:, 0].tolist()
    message = f"{count} of {len(got.payload[0])} received tokens are wrong, first token {sent[first]} of rank 0"
    assert ranks[1].check_dispatch(got) == message
    assert ranks[1].check_payload(got.payload) == message


def test_a_token_of_the_wrong_source_is_noticed() -> None:
    ranks = uniform()
    got = dispatched(ranks, 0)
    from_rank_0 = int(goes_to(ranks[0].inputs.topk_idx, 0, 8).sum())
    got.payload[0][0] = got.payload[0][from_rank_0]
    assert "first token" in (ranks[0].check_dispatch(got) or "")


def test_sources_in_the_wrong_order_are_noticed() -> None:
    ranks = uniform()
    got = dispatched(ranks, 0)
    cut = int(goes_to(ranks[0].inputs.topk_idx, 0, 8).sum())
    turned = torch.cat([got.payload[0][cut:], got.payload[0][:cut]])
    assert ranks[0].check_payload((turned, None)) is not None


def test_a_negative_zero_is_not_a_zero() -> None:
    ranks = uniform()
    got = dispatched(ranks, 0)
    ranks[0].expected.payload[0][0, 0] = 0.0
    got.payload[0][0, 0] = -0.0
    assert ranks[0].check_payload(got.payload) is not None


def test_a_wrong_scale_is_noticed() -> None:
    ranks = uniform(Dtype.FP8)
    got = dispatched(ranks, 1)
    scales = got.payload[1]
    assert scales is not None
    scales[2, 1] *= 1.0001
    assert "1 of" in (ranks[1].check_dispatch(got) or "")
    assert "scales are wrong" in (ranks[1].check_dispatch(got) or "")
    assert ranks[1].check_payload((got.payload[0], None)) == "scales are missing"


def test_a_missing_token_is_noticed() -> None:
    ranks = uniform()
    got = dispatched(ranks, 1)
    count, hidden = got.payload[0].shape
    assert ranks[1].check_payload((got.payload[0][1:], None)) == (
        f"tokens have shape ({count - 1}, {hidden}), expected ({count}, {hidden})"
    )


def test_wrong_counts_weights_and_experts_are_noticed() -> None:
    ranks = uniform()
    got = dispatched(ranks, 1)
    counts = [*got.tokens_per_expert]
    counts[0], counts[1] = counts[0] - 1, counts[1] + 1
    assert ranks[1].check_dispatch(got._replace(tokens_per_expert=counts)) == (
        f"tokens per expert are {counts}, expected {got.tokens_per_expert}"
    )
    weights = got.topk_weights.clone()
    weights[weights > 0] *= 1.001
    assert ranks[1].check_dispatch(got._replace(topk_weights=weights)) == "expert weights of received tokens differ"
    idx = got.topk_idx.clone()
    idx[0] = torch.where(idx[0] >= 0, (idx[0] + 1) % len(counts), -1)
    assert ranks[1].check_dispatch(got._replace(topk_idx=idx)) == "expert indices of received tokens differ"


def test_the_choices_of_a_row_may_come_in_any_order_with_their_weights() -> None:
    ranks = uniform()
    got = dispatched(ranks, 1)
    order = torch.arange(got.topk_idx.shape[1]).roll(1)
    rolled = got._replace(topk_idx=got.topk_idx[:, order], topk_weights=got.topk_weights[:, order])
    assert ranks[1].check_dispatch(rolled) is None
    assert ranks[1].check_dispatch(got._replace(topk_idx=rolled.topk_idx)) == "expert weights of received tokens differ"


def test_indices_and_weights_of_other_ranks_experts_mean_nothing() -> None:
    ranks = uniform()
    got = dispatched(ranks, 1)
    is_remote = got.topk_idx < 0
    other = got._replace(
        topk_idx=got.topk_idx.masked_fill(is_remote, 1000), topk_weights=got.topk_weights.masked_fill(is_remote, 0.5)
    )
    assert ranks[1].check_dispatch(other) is None


@pytest.mark.parametrize("steps", [-2, 2])
def test_a_combine_off_by_two_bf16_steps_in_any_element_is_noticed(steps: int) -> None:
    ranks = uniform()
    right, truth = combined(ranks, 0), ranks[0].expected_sums
    for column in (truth[9].abs() > 0.05).nonzero()[:, 0].tolist():
        got = right.clone()
        got.view(torch.int16)[9, column] += steps
        assert ranks[0].check_combine(got) == f"1 of {len(got)} combined tokens are wrong, first token 9"


def test_a_combine_may_round_the_exact_sum_to_either_neighbour() -> None:
    ranks = uniform()
    right, truth = combined(ranks, 0), ranks[0].expected_sums
    other = right.clone()
    inward = (right.float() - truth) * truth > 0
    other.view(torch.int16).add_(torch.where(inward, -1, 1).to(torch.int16))
    near = (other.float() - truth).abs() < 2.0**-8 * truth.abs()
    assert near.any()
    assert ranks[0].check_combine(torch.where(near, other, right)) is None


def test_a_combine_that_misses_one_rank_or_is_not_a_number_is_noticed() -> None:
    ranks = uniform()
    right = combined(ranks, 1)
    for value in (0.0, float("nan"), float("inf")):
        got = right.clone()
        got[7] = value
        assert ranks[1].check_combine(got) == f"1 of {len(right)} combined tokens are wrong, first token 7"
    assert ranks[1].check_combine(right.float()) is not None
    assert ranks[1].check_combine(right[1:]) is not None


def returned_to(ranks: list[Oracle], rank: int) -> list[torch.Tensor]:
    """For each rank what it returns for the tokens of this one [tokens, hidden], zero where it had no expert."""
    local = ranks[0].workload.num_experts // len(ranks)
    parts = []
    for destination, oracle in enumerate(ranks):
        masks = [goes_to(sender.inputs.topk_idx, destination, local) for sender in ranks]
        first = sum(int(mask.sum()) for mask in masks[:rank])
        part = torch.zeros(len(masks[rank]), ranks[0].workload.hidden)
        part[masks[rank]] = oracle.returned[first : first + int(masks[rank].sum())].float()
        parts.append(part)
    return parts


@given(st.permutations(range(4)), st.integers(0, 3))
def test_a_sum_that_is_rounded_at_every_rank_is_accepted_in_any_order_and_without_a_rank_it_is_not(
    order: list[int], rank: int
) -> None:
    ranks = oracles([route(LAYER, rank=source, num_ranks=4) for source in range(4)])
    parts = returned_to(ranks, rank)
    total = torch.zeros_like(parts[0], dtype=torch.bfloat16)
    for at in order:
        total = (total.float() + parts[at]).to(torch.bfloat16)
    assert ranks[rank].check_combine(total, roundings=3) is None
    lost = (total.float() - parts[order[0]]).to(torch.bfloat16)
    assert "combined tokens are wrong" in (ranks[rank].check_combine(lost, roundings=3) or "")


def test_a_sum_with_several_roundings_is_wrong_where_one_is_promised() -> None:
    ranks = oracles([route(LAYER, rank=source, num_ranks=4) for source in range(4)])
    total = torch.zeros_like(ranks[0].expected_sums, dtype=torch.bfloat16)
    for part in returned_to(ranks, 0):
        total = (total.float() + part).to(torch.bfloat16)
    assert "combined tokens are wrong" in (ranks[0].check_combine(total) or "")


def test_a_combine_that_swaps_two_tokens_is_noticed() -> None:
    ranks = uniform()
    got = combined(ranks, 0)
    got[[2, 3]] = got[[3, 2]]
    assert ranks[0].check_combine(got) == f"2 of {len(got)} combined tokens are wrong, first token 2"


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_edge_routings_cover_their_edge_cases(num_ranks: int) -> None:
    local = LAYER.num_experts // num_ranks
    edges = edge_routings(LAYER, num_ranks=num_ranks)
    matrices = {name: oracles(routings)[0].tokens for name, routings in edges.items()}
    assert [len(array) for array in edges["one_token"]] == [1] * num_ranks
    assert [len(array) for array in edges["empty_source"]] == [0] + [64] * (num_ranks - 1)
    assert matrices["empty_source"][0] == [0] * num_ranks
    assert all(row[-1] == 0 and sum(row) > 0 for row in matrices["empty_destination"])
    assert all(row[0] == 64 and sum(row) == 64 for row in matrices["all_to_one"])
    assert all(len(array) % 2 for array in edges["odd"])
    assert len({len(array) for array in edges["odd"]}) == num_ranks
    assert all(0 < (array == -1).sum() < array.size for array in edges["odd"])
    for routings in edges.values():
        assert len(routings) == num_ranks
        for array in routings:
            assert array.shape[1] == LAYER.num_topk
            assert ((array >= -1) & (array < LAYER.num_experts)).all()
            for row in array.tolist():
                chosen = [expert for expert in row if expert >= 0]
                assert len(set(chosen)) == len(chosen)
    assert local * num_ranks == LAYER.num_experts


def test_ranks_and_seeds_send_different_tokens() -> None:
    ranks = uniform()
    reseeded = oracles([route(LAYER, rank=rank, num_ranks=2) for rank in range(2)], workload=small_workload(seed=2))
    rows = torch.cat([oracle.inputs.payload[0] for oracle in (*ranks, *reseeded)])
    assert len(rows.unique(dim=0)) == len(rows)


def test_fp8_tokens_times_their_scales_are_the_tokens_within_fp8_rounding() -> None:
    tokens = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    quantised, scales = quantise(tokens)
    assert (quantised.dtype, quantised.shape) == (torch.float8_e4m3fn, (8, 256))
    assert scales is not None
    assert (scales.dtype, scales.shape) == (torch.float32, (8, 2))
    back = quantised.float().view(8, 2, 128) * scales[:, :, None]
    largest = tokens.float().view(8, 2, 128).abs().amax(dim=2, keepdim=True)
    assert ((back - tokens.float().view(8, 2, 128)).abs() <= largest * 2.0**-4).all()
    assert (quantised.float().abs().view(8, 2, 128).amax(dim=2) == 448).all()
