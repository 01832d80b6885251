"""Rules for configs and workloads: facts in, violations out; pure, for planning on any machine."""

from __future__ import annotations

import msgspec

from bench.records import Dtype
from bench.workload import Workload

INT32_LIMIT = 2**31


class Facts(msgspec.Struct, frozen=True):
    """What a rule may depend on. ``num_sms`` and ``memory_bytes`` are those of one GPU, None where unknown."""

    num_ranks: int
    workload: Workload
    num_sms: int | None
    memory_bytes: int | None


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

    ``shared``: it belongs to the handle, so a dispatch and its combine must have the same value. Other knobs may differ
    between the two.
    """

    name: str
    meaning: str
    shared: bool = False


def workload_violations(facts: Facts) -> list[Violation]:
    """The rules of every backend that the workload breaks on this number of ranks; empty when it may run."""
    workload, ranks = facts.workload, facts.num_ranks
    violations = []
    if workload.num_experts % ranks:
        violations.append(
            Violation(
                key="workload.num_experts",
                rule=f"be divisible by ep.size={ranks}",
                value=str(workload.num_experts),
                hint="each rank holds the same number of experts",
            )
        )
    if not 1 <= workload.num_topk <= workload.num_experts:
        violations.append(
            Violation(
                key="workload.num_topk",
                rule=f"lie in 1..{workload.num_experts} (workload.num_experts)",
                value=str(workload.num_topk),
                hint="a token chooses distinct experts",
            )
        )
    if workload.routing == "grouped" and (workload.num_experts % 8 or workload.num_topk > workload.num_experts // 2):
        violations.append(
            Violation(
                key="workload.routing",
                rule="not be 'grouped' unless 8 groups divide the experts and 4 of them hold num_topk",
                value=f"{workload.num_experts} experts, top-{workload.num_topk}",
                hint="use workload.routing=uniform or zipf",
            )
        )
    unit = 128 if workload.dtype is Dtype.FP8 else 8
    if workload.hidden % unit:
        violations.append(
            Violation(
                key="workload.hidden",
                rule=f"be a multiple of {unit} for {workload.dtype} (FP8 scales span 128, rows 16 bytes)",
                value=str(workload.hidden),
                hint="use workload.dtype=bf16" if unit == 128 else f"the next one is {workload.hidden // 8 * 8 + 8}",
            )
        )
    return violations
