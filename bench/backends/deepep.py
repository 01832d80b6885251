"""DeepEP V1 (``deep_ep.Buffer``) on one NVLink node: knobs, defaults and the rules of its kernels.

The rules come from DeepEP's source (csrc/config.hpp, csrc/kernels/intranode.cu) and were tested on H200s. The hint of
each names what breaks without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.backends import machine
from bench.backends.declaration import Library
from bench.backends.machine import Problem
from bench.records import Op
from bench.rules import INT32_LIMIT, Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.backends.sessions.session import Context, Session
    from bench.records import Point

DEFAULT_NUM_SMS = 20
DEFAULT_NVL_BUFFER = 256
DEFAULT_NVL_CHUNK = {
    2: {"dispatch": 24, "combine": 10},
    4: {"dispatch": 6, "combine": 9},
    8: {"dispatch": 6, "combine": 4},
}
"""By number of ranks, from ``Buffer.get_dispatch_config`` and ``get_combine_config`` of deep_ep 1.2.1.

Copied, since ``deep_ep.Config`` does not give its values back.
"""

DEFAULT_RDMA = {"num_max_rdma_chunked_send_tokens": 6, "num_max_rdma_chunked_recv_tokens": 128}
"""The RDMA part of the same tables at 2, 4 and 8 ranks, which a single node never uses."""

COMBINE_MARGIN = 22
"""Slots that combine needs in its receive queue beyond one chunk."""

MEMORY_SHARE = 0.5
"""Largest part of the GPU's memory that the NVLink buffer may take."""

_MAX_TOPK = 32
_MAX_LOCAL_EXPERTS = 128
_MAX_BF16_HIDDEN = 8184


def buffer_bytes(knobs: dict[str, int], *, num_ranks: int, hidden_bytes: int) -> int:
    """Bytes of the NVLink buffer of one rank, by the formula of DeepEP's ``Config.get_nvl_buffer_size_hint``.

    ``hidden_bytes``: of one token in BF16.
    """
    per_slot = hidden_bytes + 8 + 128 * 8 + 128 * 4 + 128 * 4
    size = knobs["num_sms"] // 2 * num_ranks * (20 + knobs["nvl_buffer"] * per_slot)
    return (size + 127) // 128 * 128


def config_arguments(knobs: dict[str, int]) -> dict[str, int]:
    """The keyword arguments of ``deep_ep.Config``, in the order of its parameters."""
    return {
        "num_sms": knobs["num_sms"],
        "num_max_nvl_chunked_send_tokens": knobs["nvl_chunk"],
        "num_max_nvl_chunked_recv_tokens": knobs["nvl_buffer"],
    } | DEFAULT_RDMA


class DeepEP(Library):
    """DeepEP's high-throughput kernels within one NVLink node; see Backend."""

    name = "deepep"
    title = "DeepEP V1"
    meaning = "deep_ep.Buffer on one NVLink node"
    packages = ("torch", "deep_ep", "nccl")
    preload = ("deep_ep",)
    overlaps = True
    one_kernel = True
    knobs = (
        Knob("num_sms", "SMs that the kernels occupy; each pair serves one channel", shared=True, counts_sms=True),
        Knob("nvl_chunk", "tokens that a channel sends at once (num_max_nvl_chunked_send_tokens)"),
        Knob("nvl_buffer", "token slots of a channel's receive queue (num_max_nvl_chunked_recv_tokens)"),
    )

    grids: ClassVar[Grids] = {
        "smoke": {"num_sms": [20, 24, 64], "nvl_chunk": [8, 16], "nvl_buffer": [256]},
        "standard": {
            "num_sms": [8, 16, 20, 24, 32, 40, 48, 64, 80, 96, 112, 128],
            "nvl_chunk": [2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32],
            "nvl_buffer": [256],  # 128, 256 and 512 were alike at EP=2 on H200s
        },
        "full": {
            "num_sms": [8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 112, 120, 128],
            "nvl_chunk": [2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32],
            "nvl_buffer": [128, 256, 512, 1024],
        },
        "upstream": {
            "num_sms": [24],
            "nvl_chunk": {"dispatch": list(range(4, 33, 2)), "combine": list(range(1, 17))},
            "nvl_buffer": [256],
        },
    }

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """The table of deep_ep 1.2.1. KeyError for other numbers of ranks, which ``workload_violations`` refuses."""
        direction = "combine" if op is Op.COMBINE else "dispatch"
        chunk = DEFAULT_NVL_CHUNK[facts.num_ranks][direction]
        return {"library": {"num_sms": DEFAULT_NUM_SMS, "nvl_chunk": chunk, "nvl_buffer": DEFAULT_NVL_BUFFER}}

    def own_tuning(self, op: Op) -> list[dict[str, int]]:
        """The loops of DeepEP's tests/test_intranode.py: 24 SMs, a buffer of 256 slots, a range of chunks."""
        chunks = range(1, 17) if op is Op.COMBINE else range(4, 33, 2)
        return [{"num_sms": 24, "nvl_chunk": chunk, "nvl_buffer": DEFAULT_NVL_BUFFER} for chunk in chunks]

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """Rules of the kernels, the buffer and the GPU; see Backend."""
        return [*_sm_violations(knobs, facts), *_chunk_violations(op, knobs), *_buffer_violations(knobs, facts)]

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """Limits on ranks, experts, top-k and hidden size; DeepEP asserts them or traps in its kernels."""
        workload, ranks = facts.workload, facts.num_ranks
        violations = []
        if ranks not in DEFAULT_NVL_CHUNK:
            violations.append(
                Violation("ep.size", "be 2, 4 or 8 (DeepEP intranode)", str(ranks), "use ep=2, ep=4 or ep=8")
            )
        if workload.num_experts // ranks > _MAX_LOCAL_EXPERTS:
            violations.append(
                Violation(
                    key="workload.num_experts",
                    rule=f"be at most {_MAX_LOCAL_EXPERTS * ranks} at ep.size={ranks} ({_MAX_LOCAL_EXPERTS} a rank)",
                    value=str(workload.num_experts),
                    hint=f"use a larger ep, or workload.num_experts={_MAX_LOCAL_EXPERTS * ranks}",
                )
            )
        if workload.num_topk > _MAX_TOPK:
            violations.append(
                Violation("workload.num_topk", f"be at most {_MAX_TOPK}", str(workload.num_topk), "a warp has 32 lanes")
            )
        if workload.hidden > _MAX_BF16_HIDDEN:
            violations.append(
                Violation(
                    key="workload.hidden",
                    rule=f"be at most {_MAX_BF16_HIDDEN} (combine is BF16)",
                    value=str(workload.hidden),
                    hint="the kernel traps on longer rows",
                )
            )
        return violations

    def buffer_bytes(self, knobs: dict[str, int], facts: Facts) -> int | None:
        """The NVLink buffer, by DeepEP's hint."""
        return buffer_bytes(knobs, num_ranks=facts.num_ranks, hidden_bytes=2 * facts.workload.hidden)

    def problems(self) -> list[Problem]:
        """deep_ep; version 2 brings Buffer, the class of V1, as well, and asks for a CUDA toolkit at its import."""
        if not machine.is_importable("deep_ep"):
            return [Problem("deep_ep is not installed", machine.INSTALL, absent=True)]
        return machine.cuda_home_problems() if machine.has_elastic_buffer() else []

    def environment(self) -> dict[str, str]:
        """Nothing but what the import of version 2 needs on a node without RDMA."""
        return {} if machine.has_rdma() else {"EP_DISABLE_GIN": "1"}

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session with a Buffer for the largest of the points; imports deep_ep."""
        from bench.backends.sessions.deepep import DeepEPSession

        return DeepEPSession(context, points)


def _refuse(knob: str, rule: str, value: object, hint: str) -> Violation:
    return Violation(key=f"grid.{knob}", rule=rule, value=str(value), hint=hint)


def _sm_violations(knobs: dict[str, int], facts: Facts) -> Iterator[Violation]:
    sms = knobs["num_sms"]
    if sms < 2 or sms % 2:
        yield _refuse("num_sms", "be even and at least 2 (DeepEP pairs SMs)", sms, "choose an even number")
    if facts.num_sms is not None and sms > facts.num_sms:
        rule = f"be at most {facts.num_sms}, the SMs of the GPU"
        yield _refuse("num_sms", rule, sms, "the cooperative launch would fail")


def _chunk_violations(op: Op, knobs: dict[str, int]) -> Iterator[Violation]:
    chunk, buffer = knobs["nvl_chunk"], knobs["nvl_buffer"]
    if chunk < 1 or chunk >= buffer:
        rule = f"lie in 1..{buffer - 1} (below nvl_buffer={buffer})"
        yield _refuse("nvl_chunk", rule, chunk, "DeepEP asserts this")
    elif op is Op.COMBINE and buffer < chunk + COMBINE_MARGIN:
        rule = f"be at least nvl_chunk + {COMBINE_MARGIN} = {chunk + COMBINE_MARGIN} for combine"
        yield _refuse(
            "nvl_buffer", rule, buffer, "DeepEP does not check it: combine hangs and the CUDA context is lost"
        )


def _buffer_violations(knobs: dict[str, int], facts: Facts) -> Iterator[Violation]:
    buffer, hidden = knobs["nvl_buffer"], facts.workload.hidden
    if knobs["num_sms"] // 2 * facts.num_ranks * buffer * hidden >= INT32_LIMIT:
        rule = "keep channels * ranks * nvl_buffer * hidden below 2^31"
        yield _refuse("nvl_buffer", rule, buffer, "an int of DeepEP's kernels overflows")
    needed = buffer_bytes(knobs, num_ranks=facts.num_ranks, hidden_bytes=2 * hidden)
    if facts.memory_bytes is not None and needed > MEMORY_SHARE * facts.memory_bytes:
        rule = f"take at most {MEMORY_SHARE:.0%} of the GPU's memory"
        value = f"{buffer} ({needed / 1e9:.1f} GB)"
        yield _refuse("nvl_buffer", rule, value, "choose a smaller nvl_buffer or fewer SMs")
