"""What most libraries have in common: the members of Backend that a declaration need not write down."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from bench.backends.machine import Problem
    from bench.records import Op
    from bench.rules import Facts


class Library:
    """A library on GPUs that needs nothing special: the members of Backend that have an answer without it."""

    is_baseline = False
    needs_gpu = True
    preload: tuple[str, ...] = ()
    besides_sms = ""
    contract = ""
    default_labels: ClassVar[dict[str, str]] = {}
    compiles = False
    kernel_variable = ""
    overlaps = False
    regroups = False
    exchanges = False
    one_kernel = False

    def own_tuning(self, op: Op) -> list[dict[str, int]]:
        """Empty: no script tunes it."""
        return []

    def buffer_bytes(self, knobs: dict[str, int], facts: Facts) -> int | None:
        """None: no config changes the size of its buffers."""
        return None

    def roundings(self, num_ranks: int) -> int:
        """Sums are taken in FP32."""
        return 1

    def problems(self) -> list[Problem]:
        """None: it is part of torch."""
        return []

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}


class PlainCollective(Library):
    """A collective of torch.distributed: a baseline, which runs on CPUs too."""

    is_baseline = True
    needs_gpu = False
    packages = ("torch", "nccl")
