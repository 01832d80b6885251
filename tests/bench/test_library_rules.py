"""The rules of DeepEP V2, NCCL EP and the plain collectives at their bounds, and what they take by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import BACKENDS, LIBRARY_DEFAULT, nccl_ep
from bench.records import Dtype, Op
from bench.rules import Facts
from launcher.config.hardware import facts_of, known_hardware
from tests.builders import facts, small_workload

DEEPEP_V2, NCCL_EP = BACKENDS["deepep_v2"], BACKENDS["nccl_ep"]
DEEPSEEK = small_workload(num_tokens=4096, hidden=7168, num_experts=256, num_topk=8)


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


def test_a_kernel_that_reports_nothing_must_have_been_launched_before() -> None:
    asked: dict[str, int | None] = {"num_sms": 8, "tokens_per_chunk": 64, "num_stages": 12, "num_pipelines": 2}
    own = {"num_sms": 16, "num_stages": 12, "num_pipelines": 2}
    assert not nccl_ep.agrees(asked, [own])
    assert nccl_ep.agrees(asked, [own, own | {"num_sms": 8}])
    assert nccl_ep.agrees(dict.fromkeys(asked), [own])  # all left to the library
    assert nccl_ep.agrees(asked, [])  # only the first rank reports


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
