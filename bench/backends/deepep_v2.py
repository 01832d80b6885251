"""DeepEP V2 (``deep_ep.ElasticBuffer``, 2.1) on one NVLink node: knobs, defaults and the rules of its kernels.

The rules come from its source (buffers/elastic.py, impls/*.cuh). Received rows are not expanded: each token once for
each rank, as in V1. For such rows ``allow_multiple_reduction`` only decides where combine puts them in its buffer: on
two H100s, with 16, 22, 64 and 128 SMs, its outputs were equal bit for bit and switching it off never made it faster.
So it is not a knob, and stays on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from bench.backends import machine
from bench.backends.declaration import Library
from bench.backends.machine import Problem
from bench.rules import Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from bench.backends.sessions.session import Context, Session
    from bench.records import Op, Point

ENGINES_NUM_SMS = 64
"""The least that the library takes with prefer_overlap_with_compute=False, which vLLM and SGLang pass."""

_MAX_TOPK = 32
_LINK_RATE = 1.0625
"""What nvidia-smi reports for a link over what its datasheet says: 26.562 of 25 GB/s, 53.125 of 50."""

_LINK_SHARE, _SM_READ_GB_PER_S, _SM_WRITE_GB_PER_S, _MARGIN, _LEAST = 0.9, 200.0, 50.0, 1.25, 4
"""The constants of get_theoretical_num_sms and get_nvlink_gbs."""

_NVCC, _NCCL = (12, 3), (2, 30, 4)


def theoretical_num_sms(facts: Facts) -> int:
    """What ``ElasticBuffer.get_theoretical_num_sms`` returns on one node: even, at least 4.

    SMs that write (or read) as fast as the links move what is not local, and a quarter more. Without known links it
    is 4, as where nvidia-smi cannot be read.
    """
    workload, ranks = facts.workload, facts.num_ranks
    rest = workload.num_experts - workload.num_experts // ranks
    expected = ranks * (1 - math.comb(rest, workload.num_topk) / math.comb(workload.num_experts, workload.num_topk))
    rate = _LINK_SHARE * _LINK_RATE * (facts.nvlink_gb_per_s or 0.0)
    traffic = 1 - 1 / ranks
    num_sms = max(rate / traffic / expected / _SM_READ_GB_PER_S, rate / traffic / _SM_WRITE_GB_PER_S)
    num_sms = max(_LEAST, math.ceil(num_sms * _MARGIN))
    even = num_sms + num_sms % 2
    return even if facts.num_sms is None else min(even, facts.num_sms)


class DeepEPV2(Library):
    """DeepEP's ElasticBuffer within one NVLink node; see Backend.

    One node lets dispatch and combine take different numbers of SMs. Engines pass one, so it is a shared knob here;
    the report names the best of each operation as well.
    """

    name = "deepep_v2"
    title = "DeepEP V2"
    meaning = "deep_ep.ElasticBuffer on one NVLink node"
    packages = ("torch", "deep_ep", "nccl")
    preload = ("deep_ep",)
    besides_sms = "Each call ends with an epilogue on all SMs of the GPU: a copy after dispatch, a sum after combine."
    default_labels: ClassVar[dict[str, str]] = {"vllm_sglang": "vLLM, SGLang"}
    compiles = True
    kernel_variable = "EP_JIT_CACHE_DIR"
    overlaps = True
    knobs = (Knob("num_sms", "SMs of the transfer; the epilogue takes all", shared=True, counts_sms=True),)
    grids: ClassVar[Grids] = {
        "smoke": {"num_sms": [16, 24]},
        "standard": {"num_sms": [8, 12, 16, 20, 24, 32, 48, 64, 96, 128]},
        "full": {"num_sms": [8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 112, 128]},
        "upstream": {"num_sms": [24]},
    }

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """The library's own choice, and what vLLM and SGLang run."""
        own = theoretical_num_sms(facts)
        engines = max(own, ENGINES_NUM_SMS)
        if facts.num_sms is not None:
            engines = min(engines, facts.num_sms)
        return {"library": {"num_sms": own}, "vllm_sglang": {"num_sms": engines}}

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """The cooperative launch needs as many free SMs; see Backend."""
        sms, most = knobs["num_sms"], facts.num_sms
        if sms < 1:
            return [Violation("grid.num_sms", "be at least 1", str(sms), "choose a larger number")]
        if most is not None and sms > most:
            rule = f"be at most {most}, the SMs of the GPU"
            return [Violation("grid.num_sms", rule, str(sms), "the cooperative launch would fail")]
        return []

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """Limits on top-k and hidden size, which the library asserts."""
        workload = facts.workload
        violations = []
        if facts.num_ranks < 2:
            violations.append(Violation("ep.size", "be at least 2", str(facts.num_ranks), "a single rank has no peer"))
        if workload.num_topk > _MAX_TOPK:
            violations.append(
                Violation("workload.num_topk", f"be at most {_MAX_TOPK}", str(workload.num_topk), "a warp has 32 lanes")
            )
        if workload.hidden % 256:
            rule = "be a multiple of 256 (DeepEP V2's combine)"
            next_multiple = workload.hidden // 256 * 256 + 256
            violations.append(
                Violation("workload.hidden", rule, str(workload.hidden), f"the next multiple is {next_multiple}")
            )
        return violations

    def problems(self) -> list[Problem]:
        """A deep_ep with ElasticBuffer, a CUDA compiler, and one NCCL that is new enough."""
        if not machine.is_importable("deep_ep"):
            return [Problem("deep_ep is not installed", machine.INSTALL, absent=True)]
        if not machine.has_elastic_buffer():
            return [Problem("the installed deep_ep has no ElasticBuffer (DeepEP 2)", machine.INSTALL, absent=True)]
        return machine.nvcc_problems(least=_NVCC) + machine.nccl_problems(least=_NCCL) + machine.gin_problems()

    def environment(self) -> dict[str, str]:
        """A communicator of its own, kernels on the node's own disk, and no GIN where there is no RDMA."""
        variables = {
            "EP_REUSE_NCCL_COMM": "0",
            "EP_JIT_CACHE_DIR": str(machine.kernel_folder("deepep_v2")),
            "NCCL_CUMEM_ENABLE": "1",
        }
        return variables if machine.has_rdma() else variables | {"EP_DISABLE_GIN": "1"}

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session with an ElasticBuffer for the workload; imports deep_ep."""
        from bench.backends.sessions.deepep_v2 import DeepEPV2Session

        return DeepEPV2Session(context)
