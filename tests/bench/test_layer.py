"""A layer computes what its experts make of every token, whatever the order of the received rows."""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

from bench.backends.sessions.session import Dispatched
from bench.rank.layer import Experts
from bench.records import Dtype
from bench.workload import route
from tests.bench.test_oracle import oracles
from tests.builders import small_workload

NUM_RANKS = 2
WORKLOAD = small_workload(num_tokens=24, hidden=128, num_experts=8, num_topk=3, moe_intermediate=32)
DEVICE = torch.device("cpu")


def received_by_rank_0(dtype: Dtype) -> Dispatched:
    routings = [route(WORKLOAD, rank=rank, num_ranks=NUM_RANKS) for rank in range(NUM_RANKS)]
    return oracles(routings, dtype, WORKLOAD)[0].expected


def experts(rank: int = 0) -> Experts:
    return Experts(WORKLOAD, WORKLOAD.num_experts // NUM_RANKS, rank=rank, device=DEVICE)


def one_by_one(layer: Experts, received: Dispatched) -> torch.Tensor:
    """The same, a GEMM for each token and expert, in FP32."""
    up, down = layer._up.float(), layer._down.float()
    rows = []
    for token, idx, weights in zip(received.payload[0].float(), received.topk_idx, received.topk_weights, strict=True):
        total = torch.zeros(WORKLOAD.hidden)
        for expert, weight in zip(idx.tolist(), weights.tolist(), strict=True):
            if 0 <= expert < len(up):
                gate, linear = (token @ up[expert]).chunk(2)
                total += weight * ((nnf.silu(gate) * linear) @ down[expert])
        rows.append(total)
    return torch.stack(rows)


def test_the_grouped_gemms_equal_a_gemm_for_each_token_and_expert() -> None:
    layer, received = experts(), received_by_rank_0(Dtype.BF16)
    output, _ = layer.forward(received)
    expected = one_by_one(layer, received)
    errors = (output.float() - expected).norm(dim=1)
    assert bool((errors <= 0.03 * expected.norm(dim=1) + 1e-3).all())


@given(seed=st.integers(0, 1000))
def test_the_order_of_the_received_rows_changes_no_output(seed: int) -> None:
    layer, received = experts(), received_by_rank_0(Dtype.BF16)
    order = torch.randperm(len(received.topk_idx), generator=torch.Generator().manual_seed(seed))
    shuffled = Dispatched(
        (received.payload[0][order], None),
        received.topk_idx[order],
        received.topk_weights[order],
        received.tokens_per_expert,
    )
    first, _ = layer.forward(received)
    second, _ = layer.forward(shuffled)
    assert torch.allclose(first[order].float(), second.float(), atol=0.02, rtol=0.02)


def test_the_gradients_of_the_tokens_are_those_of_autograd() -> None:
    layer, received = experts(), received_by_rank_0(Dtype.BF16)
    tokens = received.payload[0].float().requires_grad_()
    output = one_by_one(layer, received._replace(payload=(tokens, None)))
    gradients = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    output.backward(gradients)
    assert tokens.grad is not None
    _, saved = layer.forward(received)
    own = layer.backward(gradients.to(torch.bfloat16), saved).float()
    assert bool(((own - tokens.grad).norm(dim=1) <= 0.03 * tokens.grad.norm(dim=1) + 1e-3).all())


def test_the_same_token_on_another_rank_gives_another_output() -> None:
    received = received_by_rank_0(Dtype.BF16)
    here, _ = experts(rank=0).forward(received)
    there, _ = experts(rank=1).forward(received)
    assert bool(((here - there).float().norm(dim=1) > 0.5 * here.float().norm(dim=1)).all())


def test_fp8_tokens_are_scaled_before_the_gemms() -> None:
    plain, _ = experts().forward(received_by_rank_0(Dtype.BF16))
    scaled, _ = experts().forward(received_by_rank_0(Dtype.FP8))
    assert bool(((plain - scaled).float().norm(dim=1) <= 0.1 * plain.float().norm(dim=1)).all())


def test_a_wrong_row_is_found_and_named() -> None:
    oracle = oracles([route(WORKLOAD, rank=rank, num_ranks=NUM_RANKS) for rank in range(NUM_RANKS)], workload=WORKLOAD)[
        0
    ]
    expected = torch.randn(WORKLOAD.num_tokens, WORKLOAD.hidden, generator=torch.Generator().manual_seed(1))
    output = expected.to(torch.bfloat16)
    assert oracle.check_layer(output, expected) is None
    output[5] = output[6]
    assert oracle.check_layer(output, expected) == "1 of 24 outputs of the layer are wrong, first token 5"
    output[5, 0] = float("nan")
    assert oracle.check_layer(output, expected) == "1 of 24 outputs of the layer are wrong, first token 5"
    shorter = msgspec.structs.replace(WORKLOAD, num_tokens=23)
    assert oracle.check_layer(output[: shorter.num_tokens], expected) == (
        "the layer's output has shape (23, 128), expected (24, 128)"
    )
