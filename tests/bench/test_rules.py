"""Each rule at its bound and one past it, with its message."""

from __future__ import annotations

from typing import Any

import pytest

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.backends.deepep import DEFAULT_NVL_CHUNK, buffer_bytes
from bench.records import Dtype, Op
from bench.rules import Facts, workload_violations
from tests.builders import facts, small_workload

DEEPEP, ALLTOALL = BACKENDS["deepep"], BACKENDS["alltoall"]
GROUPED = "workload.routing must not be 'grouped' unless 8 groups divide the experts and 4 of them hold num_topk, got "
DEEPSEEK = small_workload(num_tokens=4096, hidden=7168, num_experts=256, num_topk=8)


def messages_of(
    op: Op, num_sms: int, nvl_chunk: int, nvl_buffer: int, *, given_facts: Facts | None = None
) -> list[str]:
    knobs = {"num_sms": num_sms, "nvl_chunk": nvl_chunk, "nvl_buffer": nvl_buffer}
    return [str(violation) for violation in DEEPEP.point_violations(op, knobs, facts=given_facts or facts())]


@pytest.mark.parametrize(
    ("op", "good", "bad", "message"),
    [
        (Op.DISPATCH, (2, 8, 256), (0, 8, 256), "grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 0"),
        (Op.DISPATCH, (2, 8, 256), (1, 8, 256), "grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 1"),
        (Op.COMBINE, (24, 8, 256), (25, 8, 256), "grid.num_sms must be even and at least 2 (DeepEP pairs SMs), got 25"),
        (Op.DISPATCH, (132, 8, 256), (134, 8, 256), "grid.num_sms must be at most 132, the SMs of the GPU, got 134"),
        (Op.DISPATCH, (24, 1, 256), (24, 0, 256), "grid.nvl_chunk must lie in 1..255 (below nvl_buffer=256), got 0"),
        (
            Op.DISPATCH,
            (24, 255, 256),
            (24, 256, 256),
            "grid.nvl_chunk must lie in 1..255 (below nvl_buffer=256), got 256",
        ),
        (Op.DISPATCH, (24, 8, 9), (24, 8, 8), "grid.nvl_chunk must lie in 1..7 (below nvl_buffer=8), got 8"),
        (
            Op.COMBINE,
            (24, 8, 30),
            (24, 8, 29),
            "grid.nvl_buffer must be at least nvl_chunk + 22 = 30 for combine, got 29",
        ),
        (
            Op.COMBINE,
            (24, 234, 256),
            (24, 235, 256),
            "grid.nvl_buffer must be at least nvl_chunk + 22 = 257 for combine, got 256",
        ),
        (
            Op.DISPATCH,
            (132, 8, 1134),
            (132, 8, 1135),
            "grid.nvl_buffer must keep channels * ranks * nvl_buffer * hidden below 2^31, got 1135",
        ),
    ],
)
def test_a_config_runs_at_the_bound_and_is_refused_one_past_it(
    op: Op, good: tuple[int, int, int], bad: tuple[int, int, int], message: str
) -> None:
    assert messages_of(op, *good) == []
    assert messages_of(op, *bad) == [message]


def test_the_margin_of_22_slots_is_a_rule_of_combine_only() -> None:
    assert messages_of(Op.DISPATCH, 24, 8, 29) == []


def test_every_broken_rule_is_named() -> None:
    assert len(messages_of(Op.COMBINE, 135, 8, 29)) == 3


def test_a_buffer_may_take_half_of_the_gpu_and_no_byte_more() -> None:
    needed = buffer_bytes({"num_sms": 132, "nvl_buffer": 1024}, num_ranks=4, hidden_bytes=14336)
    assert messages_of(Op.DISPATCH, 132, 8, 1024, given_facts=facts(memory_bytes=2 * needed)) == []
    assert messages_of(Op.DISPATCH, 132, 8, 1024, given_facts=facts(memory_bytes=2 * needed - 1)) == [
        "grid.nvl_buffer must take at most 50% of the GPU's memory, got 1024 (4.4 GB)"
    ]


def test_without_a_known_gpu_there_are_no_limits_of_sms_and_memory() -> None:
    unknown = Facts(num_ranks=4, workload=DEEPSEEK, num_sms=None, memory_bytes=None)
    assert messages_of(Op.DISPATCH, 200, 8, 512, given_facts=unknown) == []


@pytest.mark.parametrize(("num_sms", "nvl_buffer", "gigabytes"), [(24, 256, 0.20), (132, 1024, 4.43)])
def test_the_buffer_formula_gives_the_sizes_that_deepep_hints(num_sms: int, nvl_buffer: int, gigabytes: float) -> None:
    size = buffer_bytes({"num_sms": num_sms, "nvl_buffer": nvl_buffer}, num_ranks=4, hidden_bytes=2 * 7168)
    assert round(size / 1e9, 2) == gigabytes
    assert size % 128 == 0


def test_the_buffer_formula_is_rounded_up_to_128_bytes() -> None:
    size = buffer_bytes({"num_sms": 2, "nvl_buffer": 1}, num_ranks=2, hidden_bytes=16)
    exact = 1 * 2 * (20 + 1 * (16 + 8 + 128 * 8 + 128 * 4 + 128 * 4))
    assert (exact, size) == (4184, 4224)


@pytest.mark.parametrize(
    ("good", "bad", "messages"),
    [
        (
            {"num_ranks": 8},
            {"num_ranks": 16},
            ["ep.size must be 2, 4 or 8 (DeepEP intranode), got 16"],
        ),
        (
            {"num_ranks": 2, "num_experts": 256},
            {"num_ranks": 2, "num_experts": 258},
            ["workload.num_experts must be at most 256 at ep.size=2 (128 a rank), got 258"],
        ),
        ({"num_topk": 32}, {"num_topk": 33}, ["workload.num_topk must be at most 32, got 33"]),
        ({"hidden": 8184}, {"hidden": 8192}, ["workload.hidden must be at most 8184 (combine is BF16), got 8192"]),
        (
            {"num_experts": 8, "num_topk": 8},
            {"num_experts": 8, "num_topk": 9},
            ["workload.num_topk must lie in 1..8 (workload.num_experts), got 9"],
        ),
        ({"num_topk": 1}, {"num_topk": 0}, ["workload.num_topk must lie in 1..256 (workload.num_experts), got 0"]),
        ({"num_experts": 256}, {"num_experts": 254}, ["workload.num_experts must be divisible by ep.size=4, got 254"]),
        (
            {"hidden": 2880},
            {"hidden": 2884},
            ["workload.hidden must be a multiple of 8 for bf16 (FP8 scales span 128, rows 16 bytes), got 2884"],
        ),
        (
            {"hidden": 2944, "dtype": Dtype.FP8},
            {"hidden": 2880, "dtype": Dtype.FP8},
            ["workload.hidden must be a multiple of 128 for fp8 (FP8 scales span 128, rows 16 bytes), got 2880"],
        ),
        (
            {"routing": "grouped", "num_experts": 16, "num_topk": 8},
            {"routing": "grouped", "num_experts": 16, "num_topk": 9},
            [GROUPED + "16 experts, top-9"],
        ),
        (
            {"routing": "grouped", "num_experts": 32},
            {"routing": "grouped", "num_experts": 36},
            [GROUPED + "36 experts, top-8"],
        ),
    ],
)
def test_a_layer_is_measured_at_the_bound_and_refused_one_past_it(
    good: dict[str, Any], bad: dict[str, Any], messages: list[str]
) -> None:
    def violations(changes: dict[str, Any]) -> list[str]:
        messages = workload_violations(facts(**changes)) + DEEPEP.workload_violations(facts(**changes))
        assert all(violation.hint for violation in messages)
        return [str(violation) for violation in messages]

    assert violations(good) == []
    assert violations(bad) == messages


@pytest.mark.parametrize(
    ("slices", "in_flight", "message"),
    [
        (1, 1, None),
        (0, 1, "grid.num_slices must lie in 1..1024, got 0"),
        (1024, 1024, None),
        (1025, 1, "grid.num_slices must lie in 1..1024, got 1025"),
        (4, 4, None),
        (4, 5, "grid.num_in_flight must lie in 1..4 (num_slices=4), got 5"),
        (4, 0, "grid.num_in_flight must lie in 1..4 (num_slices=4), got 0"),
    ],
)
def test_an_all_to_all_has_at_most_as_many_exchanges_in_flight_as_slices(
    slices: int, in_flight: int, message: str | None
) -> None:
    knobs = {"num_slices": slices, "num_in_flight": in_flight}
    messages = ALLTOALL.point_violations(Op.DISPATCH, knobs, facts=facts())
    assert [str(violation) for violation in messages] == ([] if message is None else [message])


def test_an_all_to_all_needs_two_ranks() -> None:
    assert ALLTOALL.workload_violations(facts(num_ranks=2)) == []
    assert [str(violation) for violation in ALLTOALL.workload_violations(facts(num_ranks=1))] == [
        "ep.size must be at least 2, got 1"
    ]


def test_the_defaults_equal_those_of_deep_ep_and_break_no_rule() -> None:
    assert DEFAULT_NVL_CHUNK == {
        2: {"dispatch": 24, "combine": 10},
        4: {"dispatch": 6, "combine": 9},
        8: {"dispatch": 6, "combine": 4},
    }
    for num_ranks in (2, 4, 8):
        for backend in BACKENDS.values():
            for op in (Op.DISPATCH, Op.COMBINE):
                knobs = backend.defaults(op, facts(num_ranks=num_ranks))[LIBRARY_DEFAULT]
                assert list(knobs) == [knob.name for knob in backend.knobs]
                assert backend.point_violations(op, knobs, facts=facts(num_ranks=num_ranks)) == []
    assert DEEPEP.defaults(Op.COMBINE, facts(num_ranks=4))[LIBRARY_DEFAULT] == {
        "num_sms": 20,
        "nvl_chunk": 9,
        "nvl_buffer": 256,
    }
