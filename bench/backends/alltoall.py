"""torch.distributed's all-to-all of the same tokens: the NCCL baseline on GPUs, the gloo dry run on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.backends.declaration import PlainCollective
from bench.rules import Facts, Grids, Knob, Violation

if TYPE_CHECKING:
    from bench.backends.sessions.session import Context, Session
    from bench.records import Op, Point

_MAX_SLICES = 1024


class AllToAll(PlainCollective):
    """Packs tokens by destination, exchanges them and unpacks by source; combine reverses this and sums in FP32.

    See Backend.
    """

    name = "alltoall"
    title = "all-to-all"
    meaning = "torch.distributed, the same tokens; NCCL on GPUs, gloo on CPUs"
    contract = (
        "The tokens and the sums are those of the libraries, but no knob bounds its SMs: NCCL chooses those of the "
        "exchange, and packing and summing take all."
    )
    exchanges = True
    knobs = (
        Knob("num_slices", "exchanges that the tokens of a rank are divided into", shared=True),
        Knob("num_in_flight", "exchanges that may be in flight at once"),
    )
    grids: ClassVar[Grids] = {
        "smoke": {"num_slices": [1, 2, 4], "num_in_flight": [1, 2]},
        "standard": {"num_slices": [1, 2, 3, 4, 8], "num_in_flight": [1, 2, 4]},
        "full": {"num_slices": [1, 2, 3, 4, 6, 8, 12, 16], "num_in_flight": [1, 2, 3, 4, 8]},
        "upstream": {"num_slices": [1], "num_in_flight": [1]},
    }

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """One exchange, as with a plain ``all_to_all_single``."""
        return {"library": {"num_slices": 1, "num_in_flight": 1}}

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """Bounds on the slices and on those in flight; see Backend."""
        slices, in_flight = knobs["num_slices"], knobs["num_in_flight"]
        violations = []
        if not 1 <= slices <= _MAX_SLICES:
            violations.append(
                Violation("grid.num_slices", f"lie in 1..{_MAX_SLICES}", str(slices), "1 is a plain all-to-all")
            )
        if not 1 <= in_flight <= max(slices, 1):
            violations.append(
                Violation(
                    key="grid.num_in_flight",
                    rule=f"lie in 1..{slices} (num_slices={slices})",
                    value=str(in_flight),
                    hint="num_slices is the number of exchanges",
                )
            )
        return violations

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """At least two ranks."""
        if facts.num_ranks >= 2:
            return []
        return [Violation("ep.size", "be at least 2", str(facts.num_ranks), "a single rank has no peer")]

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on the context's device group."""
        from bench.backends.sessions.alltoall import AllToAllSession

        return AllToAllSession(context)
