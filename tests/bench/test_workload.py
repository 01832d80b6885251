"""Routings and the bytes that they move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

from bench.records import Dtype
from bench.workload import ROUTINGS, route, token_in_rank, token_matrix, volume
from tests.builders import small_workload

DEEPSEEK = small_workload(num_tokens=4096, hidden=7168, num_experts=256, num_topk=8)

sizes = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda pair: (8 * pair[0], min(pair[1], 4 * pair[0])))


@given(st.sampled_from(ROUTINGS), sizes, st.integers(0, 50), st.integers(0, 2**32), st.integers(0, 7))
def test_a_routing_gives_each_token_distinct_experts_in_range_and_always_the_same(
    routing: str, size: tuple[int, int], tokens: int, seed: int, rank: int
) -> None:
    experts, topk = size
    layer = small_workload(num_tokens=tokens, num_experts=experts, num_topk=topk, routing=routing, seed=seed)
    chosen = route(layer, rank=rank, num_ranks=8)
    assert chosen.shape == (tokens, topk)
    assert chosen.dtype == np.int64
    assert ((chosen >= 0) & (chosen < experts)).all()
    assert (np.diff(chosen, axis=1) > 0).all()
    assert np.array_equal(chosen, route(layer, rank=rank, num_ranks=8))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_ranks_and_seeds_draw_different_tokens(routing: str) -> None:
    layer, reseeded = (small_workload(routing=routing, seed=seed) for seed in (1, 2))
    drawn = [route(layer, rank=rank, num_ranks=2) for rank in (0, 1)] + [route(reseeded, rank=0, num_ranks=2)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_routing_is_the_same_in_every_version_of_this_program() -> None:
    drawn = {name: route(small_workload(num_tokens=2, routing=name), rank=1, num_ranks=2).tolist() for name in ROUTINGS}
    assert drawn == {
        "uniform": [[5, 6, 14, 15], [4, 5, 7, 10]],
        "zipf": [[5, 6, 14, 15], [5, 7, 8, 10]],
        "grouped": [[3, 6, 7, 10], [7, 9, 10, 11]],
    }


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_uniform_routing_sends_a_token_to_a_rank_as_often_as_combinatorics_say(ranks: int) -> None:
    tokens, experts, topk = DEEPSEEK.num_tokens, DEEPSEEK.num_experts, DEEPSEEK.num_topk
    chance = 1 - comb(experts - experts // ranks, topk) / comb(experts, topk)
    matrix = np.array(token_matrix(DEEPSEEK, num_ranks=ranks))
    sigma = np.sqrt(tokens * chance * (1 - chance))
    assert np.abs(matrix - tokens * chance).max() < 5 * sigma


@pytest.mark.parametrize(
    ("ranks", "received", "bf16", "fp8"),
    [
        (2, 8163, (117.0, 58.5), (60.3, 30.2)),
        (4, 14804, (212.2, 159.2), (109.4, 82.1)),
        (8, 21687, (310.9, 272.0), (160.3, 140.3)),
    ],
)
def test_the_standard_layer_moves_the_megabytes_that_were_calculated(
    ranks: int, received: int, bf16: tuple[float, float], fp8: tuple[float, float]
) -> None:
    matrix = token_matrix(DEEPSEEK, num_ranks=ranks)
    assert np.array(matrix).sum(axis=0).mean() == pytest.approx(received, rel=0.01)
    for dtype, (logical, wire) in ((Dtype.BF16, bf16), (Dtype.FP8, fp8)):
        moved = volume(matrix, bytes_per_token=DEEPSEEK.bytes_per_token(dtype))
        assert moved.logical / 1e6 == pytest.approx(logical, rel=0.01)
        assert moved.wire / 1e6 == pytest.approx(wire, rel=0.01)


def test_a_token_has_two_bytes_a_column_in_bf16_and_one_with_scales_in_fp8() -> None:
    assert DEEPSEEK.bytes_per_token(Dtype.BF16) == 14336
    assert DEEPSEEK.bytes_per_token(Dtype.FP8) == 7168 + 4 * 56


def test_zipf_routing_prefers_the_same_few_experts_on_every_rank() -> None:
    layer = small_workload(num_tokens=2000, num_experts=64, num_topk=4, routing="zipf")
    counts = [np.bincount(route(layer, rank=rank, num_ranks=2).ravel(), minlength=64) for rank in (0, 1)]
    uniform = 2000 * 4 / 64
    for count in counts:
        assert count.max() > 8 * uniform
        assert np.median(count) < uniform / 2
    assert set(np.argsort(counts[0])[-3:]) == set(np.argsort(counts[1])[-3:])


def test_the_favourites_of_zipf_routing_depend_on_the_seed() -> None:
    favourites = set()
    for seed in range(5):
        layer = small_workload(num_tokens=500, num_experts=64, routing="zipf", seed=seed)
        favourites.add(int(np.bincount(route(layer, rank=0, num_ranks=1).ravel()).argmax()))
    assert len(favourites) > 1


def test_grouped_routing_keeps_each_token_to_four_of_eight_groups() -> None:
    layer = small_workload(num_tokens=2000, num_experts=256, num_topk=8, routing="grouped")
    groups = route(layer, rank=0, num_ranks=1) // 32
    used = np.array([len(set(row)) for row in groups.tolist()])
    assert used.max() == 4
    assert set(groups.ravel().tolist()) == set(range(8))
    ungrouped = route(small_workload(num_tokens=2000, num_experts=256, num_topk=8), rank=0, num_ranks=1) // 32
    assert max(len(set(row)) for row in ungrouped.tolist()) > 4


def trace(tmp_path: Path, array: np.ndarray) -> str:
    path = tmp_path / "trace.npy"
    np.save(path, array)
    return str(path)


def test_a_saved_trace_is_routed_as_it_stands(tmp_path: Path) -> None:
    saved = np.random.default_rng(0).integers(-1, 16, size=(2, 64, 4))
    layer = small_workload(routing=trace(tmp_path, saved))
    for rank in (0, 1):
        assert np.array_equal(route(layer, rank=rank, num_ranks=2), saved[rank])


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((4, 64, 4), dtype=np.int64), r"has shape \(4, 64, 4\), the workload needs \(2, 64, 4\)"),
        (np.zeros((2, 64), dtype=np.int64), r"has shape \(2, 64\)"),
        (np.full((2, 64, 4), 16), r"names experts outside -1\.\.15"),
        (np.full((2, 64, 4), -2), r"names experts outside -1\.\.15"),
        (np.zeros((2, 64, 4)), "int"),
        (np.array([[["a"] * 4] * 64] * 2), "int"),
        (np.array({"pickled": True}), "."),
    ],
)
def test_a_trace_that_does_not_fit_is_a_value_error(tmp_path: Path, array: np.ndarray, why: str) -> None:
    layer = small_workload(routing=trace(tmp_path, array))
    with pytest.raises(ValueError, match=why):
        route(layer, rank=0, num_ranks=2)


def test_a_file_that_is_not_an_array_is_a_value_error(tmp_path: Path) -> None:
    for name, content in (("empty.npy", b""), ("text.npy", b"0 1 2 3\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            route(small_workload(routing=str(tmp_path / name)), rank=0, num_ranks=2)


def test_an_archive_of_arrays_is_a_value_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "trace.npz", trace=np.zeros((2, 64, 4), dtype=np.int64))
    with pytest.raises(ValueError, match=r"."):
        route(small_workload(routing=str(tmp_path / "trace.npz")), rank=0, num_ranks=2)


def test_a_token_goes_to_a_rank_once_for_all_its_experts_and_an_empty_choice_to_no_rank() -> None:
    chosen = np.array([[0, 1, 2], [0, 4, 7], [-1, -1, 5], [-1, -1, -1]])
    assert token_in_rank(chosen, num_experts=8, num_ranks=2).tolist() == [
        [True, False],
        [True, True],
        [False, True],
        [False, False],
    ]


def test_the_matrix_counts_the_tokens_from_each_source_to_each_destination() -> None:
    layer = small_workload()
    for source, row in enumerate(token_matrix(layer, num_ranks=4)):
        owners = route(layer, rank=source, num_ranks=4) // 4
        assert row == [sum(rank in token for token in owners.tolist()) for rank in range(4)]


@st.composite
def layouts(draw: st.DrawFn) -> list[list[int]]:
    ranks = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 1000), min_size=ranks, max_size=ranks)
    return draw(st.lists(row, min_size=ranks, max_size=ranks))


@given(layouts(), st.integers(1, 10_000))
def test_the_wire_carries_no_more_than_the_rank_moves(tokens: list[list[int]], size: int) -> None:
    moved = volume(tokens, bytes_per_token=size)
    assert 0 <= moved.wire <= moved.logical
    assert moved.logical == size * volume(tokens, bytes_per_token=1).logical
    assert moved.wire == size * volume(tokens, bytes_per_token=1).wire


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6))
def test_tokens_that_stay_on_their_rank_use_no_wire(tokens: list[int]) -> None:
    moved = volume(np.diag(tokens).tolist(), bytes_per_token=2)
    assert moved.wire == 0
    assert moved.logical == 2 * max(tokens)


@given(layouts(), st.data())
def test_naming_the_ranks_in_another_order_changes_no_volume(tokens: list[list[int]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(tokens))))
    turned = [[tokens[source][destination] for destination in order] for source in order]
    assert volume(turned, bytes_per_token=3) == volume(tokens, bytes_per_token=3)


@given(layouts())
def test_combine_returns_the_tokens_of_dispatch_with_the_same_volume(tokens: list[list[int]]) -> None:
    back = np.array(tokens).T.tolist()
    assert volume(back, bytes_per_token=3) == volume(tokens, bytes_per_token=3)


def test_the_volume_is_the_larger_direction_of_the_busiest_rank() -> None:
    moved = volume([[5, 1, 1], [9, 0, 0], [0, 0, 0]], bytes_per_token=10)
    assert (moved.logical, moved.wire) == (140, 90)
