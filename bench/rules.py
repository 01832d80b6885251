"""Rules for configs and workloads: facts in, violations out; pure, for planning on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bench.records import Dtype, Op

if TYPE_CHECKING:  # it imports numpy, and the declarations are read for --help
    from bench.workload import Workload

INT32_LIMIT = 2**31

Axis = list[int] | dict[str, list[int]]
"""Values of a knob: one list, or one for each of dispatch and combine."""

GridAxis = list[int] | dict[str, list[int] | dict[str, list[int]]]
"""An Axis, or one for each library."""

Grids = dict[str, dict[str, Axis]]
"""For each choice of ``grid=NAME`` the values of every knob."""


def values_of(axis: Axis, op: Op) -> list[int]:
    """The values of an axis for dispatch or combine; empty if it names the other one only."""
    return axis if isinstance(axis, list) else axis.get(op, [])


class Facts(msgspec.Struct, frozen=True):
    """What a rule may depend on, of one GPU, None where unknown. ``nvlink_gb_per_s``: all its links, one direction."""

    num_ranks: int
    workload: Workload
    num_sms: int | None
    memory_bytes: int | None
    nvlink_gb_per_s: float | None = None


class Violation(msgspec.Struct, frozen=True):
    """A broken rule, worded for an error message: ``KEY must RULE, got VALUE``, and a hint at the remedy."""

    key: str
    rule: str
    value: str
    hint: str

    def __str__(self) -> str:
        return f"{self.key} must {self.rule}, got {self.value}"


class Knob(msgspec.Struct, frozen=True):
    """A tuning parameter of a backend, an integer.

    ``shared``: a dispatch and its combine must have the same value. Other knobs may differ between the two.
    ``counts_sms``: its value is the number of SMs that the kernels occupy.
    """

    name: str
    meaning: str
    shared: bool = False
    counts_sms: bool = False


def workload_violations(facts: Facts) -> list[Violation]:
    """The rules of every backend that the workload breaks on this number of ranks; empty when it may run."""
    workload = facts.workload
    violations = (_experts(workload, facts.num_ranks), _topk(workload), _routing(workload), _hidden(workload))
    return [violation for violation in violations if violation is not None]


def _experts(workload: Workload, num_ranks: int) -> Violation | None:
    if workload.num_experts % num_ranks == 0:
        return None
    return Violation(
        key="workload.num_experts",
        rule=f"be divisible by ep.size={num_ranks}",
        value=str(workload.num_experts),
        hint="each rank holds the same number of experts",
    )


def _topk(workload: Workload) -> Violation | None:
    if 1 <= workload.num_topk <= workload.num_experts:
        return None
    return Violation(
        key="workload.num_topk",
        rule=f"lie in 1..{workload.num_experts} (workload.num_experts)",
        value=str(workload.num_topk),
        hint="a token chooses distinct experts",
    )


def _routing(workload: Workload) -> Violation | None:
    if workload.routing != "grouped":
        return None
    if workload.num_experts % 8 == 0 and workload.num_topk <= workload.num_experts // 2:
        return None
    return Violation(
        key="workload.routing",
        rule="not be 'grouped' unless 8 groups divide the experts and 4 of them hold num_topk",
        value=f"{workload.num_experts} experts, top-{workload.num_topk}",
        hint="use workload.routing=uniform or zipf",
    )


def _hidden(workload: Workload) -> Violation | None:
    unit = 128 if workload.dtype is Dtype.FP8 else 8
    if workload.hidden % unit == 0:
        return None
    next_multiple = workload.hidden // 8 * 8 + 8
    return Violation(
        key="workload.hidden",
        rule=f"be a multiple of {unit} for {workload.dtype} (FP8 scales span 128, rows 16 bytes)",
        value=str(workload.hidden),
        hint="use workload.dtype=bf16" if unit == 128 else f"the next multiple is {next_multiple}",
    )
