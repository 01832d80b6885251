"""The part of RESULTS_EP{n}.json about how much a run with repeats scatters."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from bench.records import Op

Level = Literal["iteration", "repetition", "group", "run", "machine"]
Count = Annotated[int, msgspec.Meta(ge=0)]


class SavedComponent(msgspec.Struct, frozen=True):
    """The standard deviation that one level adds to a log time; 0.01 is 1 %.

    ``op`` is null for all isolated operations together. ``deviation`` and its 95 % interval are null where nothing
    shows them, such as the machines' on a single one. ``freedom``: degrees of freedom.
    """

    level: Level
    op: Op | None
    deviation: float | None
    ci95: tuple[float, float] | None
    freedom: Count


class SavedComponents(msgspec.Struct, frozen=True):
    """Of ``configs`` in so many runs, the final and its repeats, on so many machines (sets of GPUs)."""

    runs: Count
    machines: Count
    configs: Count
    levels: list[SavedComponent]
