"""torch.distributed's all-gather and reduce-scatter of all tokens: what vLLM runs by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.backends.declaration import PlainCollective
from bench.rules import Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from bench.backends.sessions.session import Context, Session
    from bench.records import Op, Point


class AllGather(PlainCollective):
    """Every rank receives the tokens of all; a combine sums the rows of all in NCCL. See Backend.

    Its contract is another one: rows that no expert of the rank needs arrive too, and sums are rounded on every rank.
    """

    name = "allgather"
    title = "all-gather + reduce-scatter"
    meaning = "torch.distributed, all tokens to every rank; NCCL on GPUs, gloo on CPUs"
    contract = (
        "Every rank receives all tokens, also those that none of its experts needs; sums are rounded to BF16 on every "
        "rank; NCCL chooses the SMs."
    )
    knobs: tuple[Knob, ...] = ()
    grids: ClassVar[Grids] = {"smoke": {}, "standard": {}, "full": {}, "upstream": {}}

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """The only config there is."""
        return {"library": {}}

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """None: there is nothing to choose."""
        return []

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """At least two ranks."""
        if facts.num_ranks >= 2:
            return []
        return [Violation("ep.size", "be at least 2", str(facts.num_ranks), "a single rank has no peer")]

    def roundings(self, num_ranks: int) -> int:
        """NCCL rounds each partial sum to BF16."""
        return num_ranks - 1

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on the context's device group."""
        from bench.backends.sessions.allgather import AllGatherSession

        return AllGatherSession(context)
