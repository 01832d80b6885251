"""NCCL EP (``nccl.ep``, high throughput, layout FLAT) on one NVLink node: knobs, defaults and the rules of its kernels.

The rules come from its headers and its source (nccl_ep.h, ht_ep_configs.cuh, nccl_ep.cc 0.1.0). FLAT has DeepEP's
contract: each token once for each rank, sums without weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from bench.backends import machine
from bench.backends.declaration import Library
from bench.backends.machine import Problem
from bench.records import Dtype, Op
from bench.rules import Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from bench.backends.sessions.session import Context, Session
    from bench.records import Point

DEFAULT_NUM_SMS = 16
DEFAULT_STAGES = 12
DEFAULT_PIPELINES = 2

SAFE_NUM_SMS = 16
"""More is unsafe with nccl-extensions 0.1.0, which reserves 17 barriers and gives one to each block."""

_FIXED = (0, 2)
"""The first release whose barriers grow with the number of SMs (NVIDIA/nccl-extensions#14)."""

_CHUNK_UNIT = 32
_MAX_CHUNK = 1024
_LEAST_STAGES = 3
"""Of a pipeline of dispatch."""

_DISPATCH_PIPELINES = 16
_COMBINE_PIPELINES = 2
_COMBINE_SENDS = 2
"""Stages of combine's way out, which keeps its default, and which its pipelines must divide."""

_SHARED_BYTES = 227 * 1024
"""Shared memory of a block on Hopper and Blackwell."""

_DISPATCH_STAGE_BYTES, _COMBINE_STAGE_BYTES = 1040, 32
"""What a stage takes beside a token, at most."""

_MAX_TOKENS = 8192
_MAX_TOPK = 32
_FP8_UNIT = 512
_NVCC, _NCCL = (12, 3), (2, 30, 4)


_SETTING = re.compile(r"\b(num_blocks|tokens_per_chunk|stages|stages_g2s|pipelines)=(\d+)\b")
_NAMES = {
    "num_blocks": "num_sms",
    "tokens_per_chunk": "tokens_per_chunk",
    "stages": "num_stages",
    "stages_g2s": "num_stages",
    "pipelines": "num_pipelines",
}
"""What the library prints of a kernel (NCCL_EP_ENV_VERBOSE), and the knob that it is."""


def printed_config(text: str, op: Op) -> dict[str, int] | None:
    """The config that the last kernel of an operation has printed of itself; None where none has."""
    kernel = "combine kernel" if op is Op.COMBINE else "dispatch kernel"
    for part in reversed(text.split("HT ")):
        if part.startswith(kernel):
            found = {_NAMES[name]: int(value) for name, value in _SETTING.findall(part)}
            return {name: found[name] for name in dict.fromkeys(_NAMES.values()) if name in found}
    return None


def agrees(asked: dict[str, int | None], reported: Sequence[dict[str, int]]) -> bool:
    """Whether one of the configs that kernels have reported is the one that was asked for, as far as both say.

    None in ``asked``: left to the library. True where nothing was reported, as on all ranks but the first.
    """
    return not reported or any(
        all(asked[name] in (None, value) for name, value in config.items()) for config in reported
    )


def own_chunk(num_sms: int) -> int:
    """The tokens of a chunk that the library takes by itself on one node: four for each SM, in units of 32."""
    return -(-4 * num_sms // _CHUNK_UNIT) * _CHUNK_UNIT


def most_stages(op: Op, facts: Facts) -> int:
    """The most stages of one token each, in BF16, that the shared memory of a block holds."""
    row = 2 * facts.workload.hidden
    if op is Op.COMBINE:
        return _SHARED_BYTES // (row + _COMBINE_STAGE_BYTES) - _COMBINE_SENDS
    return _SHARED_BYTES // (row + _DISPATCH_STAGE_BYTES)


def most_safe_sms(version: str | None = None) -> int | None:
    """The most SMs that an nccl-extensions of this version may use, None for no limit; by default the installed one.

    Plans are also made where it is not installed: then for 0.1.0.
    """
    if version is None:
        import importlib.metadata  # slow, and --help reads the declarations

        try:
            version = importlib.metadata.version("nccl-extensions")
        except importlib.metadata.PackageNotFoundError:
            return SAFE_NUM_SMS
    return SAFE_NUM_SMS if machine.version_of(version) < _FIXED else None


class NcclEP(Library):
    """NCCL EP's high-throughput kernels within one NVLink node; see Backend.

    A config belongs to a group, which is made anew for each; dispatch and combine may share one.
    """

    name = "nccl_ep"
    title = "NCCL EP"
    meaning = "nccl.ep, high throughput, on one NVLink node"
    packages = ("torch", "nccl.ep", "nccl")
    preload = ("nccl.ep", "nccl.ep.interop.torch")
    besides_sms = (
        "A full dispatch begins with a preprocessing kernel on all SMs of the GPU. In every dispatch, also a cached "
        "one, the host waits for the number of received tokens before the kernel starts, unless a CUDA graph captures "
        "it."
    )
    compiles = True
    kernel_variable = "NCCL_EP_JIT_CACHE_DIR"
    overlaps = True
    regroups = True
    knobs = (
        Knob("num_sms", "SMs of dispatch and combine (NCCL_EP_COMM_SMS)", shared=True, counts_sms=True),
        Knob("tokens_per_chunk", "tokens of a chunk (NCCL_EP_TOKENS_PER_CHUNK)", shared=True),
        Knob("num_stages", "slots of a pipeline (NCCL_EP_DISPATCH_NUM_STAGES, NCCL_EP_COMBINE_NUM_STAGES_G2S)"),
        Knob("num_pipelines", "pipelines of an SM (NCCL_EP_DISPATCH_NUM_PIPELINES, NCCL_EP_COMBINE_NUM_PIPELINES)"),
    )
    grids: ClassVar[Grids] = {
        "smoke": {"num_sms": [16], "tokens_per_chunk": [64], "num_stages": [8, 12], "num_pipelines": [2]},
        "standard": {  # fewer stages and one pipeline of combine were never faster at EP=2 on H100s
            "num_sms": [8, 12, 16],
            "tokens_per_chunk": [32, 64],
            "num_stages": [12],
            "num_pipelines": {"dispatch": [1, 2], "combine": [2]},
        },
        "full": {
            "num_sms": [4, 8, 12, 16],
            "tokens_per_chunk": [32, 64, 128],
            "num_stages": [6, 8, 12],
            "num_pipelines": {"dispatch": [1, 2, 4], "combine": [1, 2]},
        },
        "upstream": {"num_sms": [16], "tokens_per_chunk": [64], "num_stages": [12], "num_pipelines": [2]},
    }

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """16 SMs and what follows from them: what Megatron, TE and FlashInfer run, which set nothing."""
        return {
            "library": {
                "num_sms": DEFAULT_NUM_SMS,
                "tokens_per_chunk": own_chunk(DEFAULT_NUM_SMS),
                "num_stages": min(DEFAULT_STAGES, most_stages(op, facts) // DEFAULT_PIPELINES * DEFAULT_PIPELINES),
                "num_pipelines": DEFAULT_PIPELINES,
            }
        }

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """Bounds that the library refuses, or only warns about while it keeps its default; see Backend."""
        safe, chunk = most_safe_sms(), knobs["tokens_per_chunk"]
        most = min(limit for limit in (safe, facts.num_sms, _MAX_CHUNK) if limit is not None)
        why = "nccl-extensions 0.1.0 has barriers for 16" if most == safe else "the GPU has no more"
        pipelines, stages = knobs["num_pipelines"], most_stages(op, facts)
        most_pipelines, least = (_COMBINE_PIPELINES, 1) if op is Op.COMBINE else (_DISPATCH_PIPELINES, _LEAST_STAGES)
        bounds = (
            ("num_sms", 1, most, why),
            ("tokens_per_chunk", _CHUNK_UNIT, _MAX_CHUNK, f"the library's own is {own_chunk(knobs['num_sms'])}"),
            ("num_pipelines", 1, most_pipelines, f"the library's own is {DEFAULT_PIPELINES}"),
            ("num_stages", least * pipelines, stages, f"each pipeline needs {least}, and all must fit into an SM"),
        )
        violations = [
            Violation(f"grid.{name}", f"lie in {low}..{high} for {op}", str(knobs[name]), hint)
            for name, low, high, hint in bounds
            if not low <= knobs[name] <= high
        ]
        if violations:
            return violations
        if chunk % _CHUNK_UNIT:
            hint = "the library rounds it up"
            violations.append(Violation("grid.tokens_per_chunk", f"be a multiple of {_CHUNK_UNIT}", str(chunk), hint))
        if knobs["num_stages"] % pipelines:
            rule, value = f"be a multiple of num_pipelines={pipelines}", str(knobs["num_stages"])
            violations.append(Violation("grid.num_stages", rule, value, "the library refuses the kernel"))
        return violations

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """Limits on ranks, tokens, experts and top-k; the library asserts them or reads beyond its buffers."""
        workload, ranks = facts.workload, facts.num_ranks
        checks = (
            (2 <= ranks <= 8, "ep.size", "lie in 2..8 (NCCL EP on one node)", ranks, "use ep=2, ep=4 or ep=8"),
            (
                workload.num_tokens <= _MAX_TOKENS,
                "workload.num_tokens",
                f"be at most {_MAX_TOKENS} (NCCL EP)",
                workload.num_tokens,
                f"use workload.num_tokens={_MAX_TOKENS}",
            ),
            (
                ranks > 3 or workload.num_tokens % 2 == 0,
                "workload.num_tokens",
                "be even on 2 or 3 ranks (NCCL EP, layout FLAT)",
                workload.num_tokens,
                f"use workload.num_tokens={workload.num_tokens + 1}",
            ),
            (
                workload.num_experts % 4 == 0,
                "workload.num_experts",
                "be a multiple of 4 (NCCL EP)",
                workload.num_experts,
                "leave nccl_ep out of backend",
            ),
            (
                workload.dtype is Dtype.BF16 or workload.hidden % _FP8_UNIT == 0,
                "workload.hidden",
                f"be a multiple of {_FP8_UNIT} for fp8 (NCCL EP: rows of scales span 16 bytes)",
                workload.hidden,
                "use workload.dtype=bf16",
            ),
            (
                workload.num_topk <= _MAX_TOPK,
                "workload.num_topk",
                f"be at most {_MAX_TOPK} (NCCL EP)",
                workload.num_topk,
                "a warp has 32 lanes",
            ),
        )
        return [Violation(key, rule, str(value), hint) for holds, key, rule, value, hint in checks if not holds]

    def problems(self) -> list[Problem]:
        """nccl.ep, a CUDA compiler, and one NCCL that is new enough and may map the memory of peers."""
        if not machine.is_importable("nccl.ep"):
            return [Problem("nccl-extensions is not installed", machine.INSTALL, absent=True)]
        return machine.nvcc_problems(least=_NVCC) + machine.nccl_problems(least=_NCCL) + machine.cumem_problems()

    def environment(self) -> dict[str, str]:
        """Memory that peers can map, kernels on the node's own disk, and a line in the log for every setting."""
        variables = {
            "NCCL_CUMEM_ENABLE": "1",
            "NCCL_EP_JIT_CACHE_DIR": str(machine.kernel_folder("nccl_ep")),
            "NCCL_EP_ENV_VERBOSE": "1",
        }
        nvcc = machine.find_nvcc()
        return variables if nvcc is None else variables | {"NCCL_EP_JIT_NVCC": str(nvcc)}

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session with a communicator of its own; imports nccl.ep."""
        from bench.backends.sessions.nccl_ep import NcclEPSession

        return NcclEPSession(context)
