"""torch.distributed's all-gather and reduce-scatter of all tokens: what vLLM runs by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.rules import Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from bench.backends.machine import Problem
    from bench.backends.sessions.session import Context, Session
    from bench.records import Op, Point


class AllGather:
    """Every rank receives the tokens of all; a combine sums the rows of all in NCCL. See Backend.

    Its contract is another one: rows that no expert of the rank needs arrive too, and sums are rounded on every rank.
    """

    name = "allgather"
    title = "all-gather + reduce-scatter"
    meaning = "torch.distributed, all tokens to every rank; NCCL on GPUs, gloo on CPUs"
    is_baseline = True
    needs_gpu = False
    packages = ("torch", "nccl")
    preload = ()
    besides_sms = ""
    contract = (
        "Every rank receives all tokens, also those that none of its experts needs; sums are rounded to BF16 on every "
        "rank; NCCL chooses the SMs."
    )
    default_labels: ClassVar[dict[str, str]] = {}
    compiles = False
    kernel_variable = ""
    overlaps = False
    regroups = False
    exchanges = False
    one_kernel = False
    knobs: tuple[Knob, ...] = ()
    grids: ClassVar[Grids] = {"smoke": {}, "standard": {}, "full": {}, "upstream": {}}

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """The only config there is."""
        return {"library": {}}

    def own_tuning(self, op: Op) -> list[dict[str, int]]:
        """Empty: there is nothing to tune."""
        return []

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """None: there is nothing to choose."""
        return []

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """At least two ranks."""
        if facts.num_ranks >= 2:
            return []
        return [Violation("ep.size", "be at least 2", str(facts.num_ranks), "a single rank has no peer")]

    def buffer_bytes(self, knobs: dict[str, int], facts: Facts) -> int | None:
        """None: torch allocates them."""
        return None

    def roundings(self, num_ranks: int) -> int:
        """NCCL rounds each partial sum to BF16."""
        return num_ranks - 1

    def problems(self) -> list[Problem]:
        """None: it is part of torch."""
        return []

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on the context's device group."""
        from bench.backends.sessions.allgather import AllGatherSession

        return AllGatherSession(context)
