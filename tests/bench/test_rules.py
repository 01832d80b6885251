"""Each rule at its bound and one past it, with its message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import BACKENDS, LIBRARY_DEFAULT, nccl_ep
from bench.backends.deepep import DEFAULT_NVL_CHUNK, buffer_bytes
from bench.records import Dtype, Op
from bench.rules import Facts, workload_violations
from launcher.config.hardware import facts_of, known_hardware
from tests.builders import facts, small_workload

DEEPEP, ALLTOALL = BACKENDS["deepep"], BACKENDS["alltoall"]
DEEPEP_V2, NCCL_EP = BACKENDS["deepep_v2"], BACKENDS["nccl_ep"]
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [("h100", [22, 16, 14]), ("h200", [22, 16, 14]), ("b200", [44, 30, 26]), ("h800", [10, 8, 6])],
)
def test_deepep_v2_takes_the_sms_of_its_own_formula_and_engines_at_least_64(name: str, expected: list[int]) -> None:
    (gpu,) = (one for one in known_hardware() if one.name == name)
    defaults = [
        DEEPEP_V2.defaults(op, facts_of(gpu, DEEPSEEK, num_ranks=num_ranks))
        for num_ranks in (2, 4, 8)
        for op in (Op.DISPATCH, Op.COMBINE)
    ]
    assert [one[LIBRARY_DEFAULT]["num_sms"] for one in defaults] == [sms for sms in expected for _ in range(2)]
    assert {one["vllm_sglang"]["num_sms"] for one in defaults} == {64}


@given(st.integers(2, 72), st.integers(1, 8), st.floats(0, 2000), st.none() | st.integers(4, 200))
def test_the_defaults_of_deepep_v2_fit_the_gpu_and_are_even_unless_it_is_full(
    num_ranks: int, num_topk: int, nvlink_gb_per_s: float, num_sms: int | None
) -> None:
    layer = small_workload(hidden=7168, num_experts=8 * num_ranks, num_topk=num_topk)
    given_facts = Facts(num_ranks, layer, num_sms, None, nvlink_gb_per_s)
    for config in DEEPEP_V2.defaults(Op.DISPATCH, given_facts).values():
        assert DEEPEP_V2.point_violations(Op.DISPATCH, config, facts=given_facts) == []
        assert config["num_sms"] >= 4
        assert config["num_sms"] % 2 == 0 or config["num_sms"] == num_sms


def test_deepep_v2_takes_4_sms_where_no_link_is_known() -> None:
    unknown = Facts(num_ranks=4, workload=DEEPSEEK, num_sms=None, memory_bytes=None)
    assert DEEPEP_V2.defaults(Op.DISPATCH, unknown) == {"library": {"num_sms": 4}, "vllm_sglang": {"num_sms": 64}}


@pytest.mark.parametrize(
    ("num_sms", "message"),
    [
        (1, None),
        (0, "grid.num_sms must be at least 1, got 0"),
        (132, None),
        (133, "grid.num_sms must be at most 132, the SMs of the GPU, got 133"),
    ],
)
def test_deepep_v2_runs_on_any_number_of_sms_that_the_gpu_has(num_sms: int, message: str | None) -> None:
    found = DEEPEP_V2.point_violations(Op.COMBINE, {"num_sms": num_sms}, facts=facts())
    assert [str(violation) for violation in found] == ([] if message is None else [message])


@pytest.mark.parametrize(
    ("op", "good", "bad", "messages"),
    [
        (
            Op.DISPATCH,
            (16, 32, 12, 2),
            (16, 31, 12, 2),
            ["grid.tokens_per_chunk must lie in 32..1024 for dispatch, got 31"],
        ),
        (
            Op.COMBINE,
            (16, 1024, 12, 2),
            (16, 1025, 12, 2),
            ["grid.tokens_per_chunk must lie in 32..1024 for combine, got 1025"],
        ),
        (Op.DISPATCH, (16, 64, 12, 2), (16, 63, 12, 2), ["grid.tokens_per_chunk must be a multiple of 32, got 63"]),
        (Op.DISPATCH, (16, 64, 3, 1), (16, 64, 2, 1), ["grid.num_stages must lie in 3..15 for dispatch, got 2"]),
        (Op.DISPATCH, (16, 64, 15, 1), (16, 64, 16, 1), ["grid.num_stages must lie in 3..15 for dispatch, got 16"]),
        (Op.COMBINE, (16, 64, 14, 2), (16, 64, 15, 1), ["grid.num_stages must lie in 1..14 for combine, got 15"]),
        (Op.DISPATCH, (16, 64, 12, 1), (16, 64, 12, 0), ["grid.num_pipelines must lie in 1..16 for dispatch, got 0"]),
        (
            Op.DISPATCH,
            (16, 64, 12, 4),
            (16, 64, 12, 5),
            ["grid.num_stages must lie in 15..15 for dispatch, got 12"],
        ),
        (Op.COMBINE, (16, 64, 12, 2), (16, 64, 12, 3), ["grid.num_pipelines must lie in 1..2 for combine, got 3"]),
        (Op.COMBINE, (16, 64, 8, 2), (16, 64, 9, 2), ["grid.num_stages must be a multiple of num_pipelines=2, got 9"]),
    ],
)
def test_a_config_of_nccl_ep_runs_at_the_bound_and_is_refused_one_past_it(
    op: Op, good: tuple[int, ...], bad: tuple[int, ...], messages: list[str]
) -> None:
    assert nccl_ep_messages(op, *good) == []
    assert nccl_ep_messages(op, *bad) == messages


@given(st.sampled_from([Op.DISPATCH, Op.COMBINE]), st.integers(16, 1024))
def test_the_default_of_nccl_ep_fits_the_shared_memory_at_any_hidden_size(op: Op, sixteenths: int) -> None:
    given_facts = facts(hidden=16 * sixteenths)
    config = NCCL_EP.defaults(op, given_facts)[LIBRARY_DEFAULT]
    assert NCCL_EP.point_violations(op, config, facts=given_facts) == []


def nccl_ep_messages(op: Op, *values: int) -> list[str]:
    knobs = dict(zip((knob.name for knob in NCCL_EP.knobs), values, strict=True))
    violations = NCCL_EP.point_violations(op, knobs, facts=facts())
    assert all(violation.hint for violation in violations)
    return [str(violation) for violation in violations]


def test_nccl_ep_runs_on_at_most_the_sms_that_its_installed_version_has_barriers_for() -> None:
    most = nccl_ep.most_safe_sms() or 132
    for num_sms, is_good in ((1, True), (0, False), (most, True), (most + 1, False)):
        expected = [] if is_good else [f"grid.num_sms must lie in 1..{most} for dispatch, got {num_sms}"]
        assert nccl_ep_messages(Op.DISPATCH, num_sms, 64, 12, 2) == expected


@pytest.mark.parametrize(
    ("version", "most"), [("0.1.0", 16), ("0.1.9", 16), ("0.2.0", None), ("0.2.0rc1", None), ("1.0", None)]
)
def test_nccl_ep_may_use_more_sms_from_the_release_with_more_barriers_on(version: str, most: int | None) -> None:
    assert nccl_ep.most_safe_sms(version) == most


PRINTED = """\
[nccl_ep][env]   NCCL_EP_COMM_SMS             = 400
[nccl_ep] NCCL_EP_COMM_SMS=400 out of range (must be in [1, 132]); using 16
[nccl_ep][env] HT dispatch SMEM fit:
[nccl_ep][env]   stages=12 (req 12), pipelines=4 (req 4), in_flight_s2g=2 (req 4)
[nccl_ep][env] HT dispatch kernel (dispatch_LSATeams1_lsa2_hdim7168_stages12_pipe4_inflt2_chunk64_blocks16_fwd_fl):
[nccl_ep][env]   nodes(lsa_teams)=1 lsa_team_size=2 hidden_dim=7168
[nccl_ep][env]   stages=12 in_flight_s2g=2 pipelines=4 tokens_per_chunk=64 max_tokens_per_rank=4096
[nccl_ep][env]   num_blocks=16 block_dim=256 dynamic_smem_bytes=176512
[nccl_ep][env] HT combine SMEM fit:
[nccl_ep][env]   g2s_stages=12 (req 12), s2g_stages=2 (req 2), pipelines=2 (req 2)
[nccl_ep][env] HT combine kernel (combine_LSATeams1_lsa2_hdim7168_g2s12_s2g2_pipe2_chunk64_group4_blocks16_fwd):
[nccl_ep][env]   stages_g2s=12 stages_s2g=2 pipelines=2
[nccl_ep][env]   tokens_per_chunk=64 tokens_per_group=4 max_tokens_per_rank=4096
[nccl_ep][env]   num_blocks=16 block_dim=192 dynamic_smem_bytes=200960
"""
"""What nccl-extensions 0.1.0 printed on an H100, shortened."""


def test_what_a_kernel_of_nccl_ep_prints_of_itself_is_read_as_a_config() -> None:
    dispatch, combine = (nccl_ep.printed_config(PRINTED, op) for op in (Op.DISPATCH, Op.COMBINE))
    assert dispatch == {"num_sms": 16, "tokens_per_chunk": 64, "num_stages": 12, "num_pipelines": 4}
    assert combine == {"num_sms": 16, "tokens_per_chunk": 64, "num_stages": 12, "num_pipelines": 2}
    assert list(combine) == [knob.name for knob in NCCL_EP.knobs]
    assert nccl_ep.printed_config("NCCL EP: using timeout=101010ms", Op.DISPATCH) is None
    later = PRINTED + PRINTED.replace("num_blocks=16", "num_blocks=8")
    assert nccl_ep.printed_config(later, Op.COMBINE) == combine | {"num_sms": 8}


@given(st.integers(1, 256))
def test_the_own_chunk_of_nccl_ep_is_a_multiple_of_32_and_at_least_four_tokens_for_each_sm(num_sms: int) -> None:
    chunk = nccl_ep.own_chunk(num_sms)
    assert chunk % 32 == 0
    assert 4 * num_sms <= chunk < 4 * num_sms + 32


@pytest.mark.parametrize(
    ("backend", "good", "bad", "message"),
    [
        ("deepep_v2", {"num_ranks": 2}, {"num_ranks": 1}, "ep.size must be at least 2, got 1"),
        ("deepep_v2", {"num_topk": 32}, {"num_topk": 33}, "workload.num_topk must be at most 32, got 33"),
        (
            "deepep_v2",
            {"hidden": 2816},
            {"hidden": 2880},
            "workload.hidden must be a multiple of 256 (DeepEP V2's combine), got 2880",
        ),
        ("nccl_ep", {"num_ranks": 8}, {"num_ranks": 9}, "ep.size must lie in 2..8 (NCCL EP on one node), got 9"),
        ("nccl_ep", {"num_ranks": 2}, {"num_ranks": 1}, "ep.size must lie in 2..8 (NCCL EP on one node), got 1"),
        (
            "nccl_ep",
            {"num_tokens": 8192},
            {"num_tokens": 8193},
            "workload.num_tokens must be at most 8192 (NCCL EP), got 8193",
        ),
        (
            "nccl_ep",
            {"num_tokens": 65},
            {"num_tokens": 65, "num_ranks": 2},
            "workload.num_tokens must be even on 2 or 3 ranks (NCCL EP, layout FLAT), got 65",
        ),
        (
            "nccl_ep",
            {"num_experts": 260},
            {"num_experts": 258},
            "workload.num_experts must be a multiple of 4 (NCCL EP), got 258",
        ),
        ("nccl_ep", {"num_topk": 32}, {"num_topk": 33}, "workload.num_topk must be at most 32 (NCCL EP), got 33"),
        (
            "nccl_ep",
            {"hidden": 1536, "dtype": Dtype.FP8},
            {"hidden": 1664, "dtype": Dtype.FP8},
            "workload.hidden must be a multiple of 512 for fp8 (NCCL EP: rows of scales span 16 bytes), got 1664",
        ),
        ("allgather", {"num_ranks": 2}, {"num_ranks": 1}, "ep.size must be at least 2, got 1"),
    ],
)
def test_a_layer_fits_a_library_at_the_bound_and_not_one_past_it(
    backend: str, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    assert BACKENDS[backend].workload_violations(facts(**good)) == []
    (violation,) = BACKENDS[backend].workload_violations(facts(**bad))
    assert str(violation) == message
    assert violation.hint
