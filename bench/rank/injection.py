"""The injected faults of one rank: wrong tokens and delays, which need torch, and those of bench.faults."""

from __future__ import annotations

import torch

from bench import faults
from bench.faults import Fault, FaultKind
from bench.rank.timing import Mark, Operation, hold


class Injection:
    """Applies the faults of the GPU with index ``gpu`` to points and transfers, by their labels."""

    def __init__(self, injected: list[Fault], *, gpu: int) -> None:
        self._faults, self._gpu = injected, gpu

    def inject(self, label: str) -> None:
        """Hangs, crashes or raises if a fault matches the label."""
        faults.inject(self._faults, rank=self._gpu, label=label)

    def delay(self, operation: Operation, *, label: str) -> Operation:
        """The operation, held up before it starts if a SLOW fault matches the label."""
        fault = faults.find_fault(self._faults, FaultKind.SLOW, rank=self._gpu, label=label)
        if fault is None:
            return operation
        slow_us = fault.slow_us

        def delayed(mark: Mark) -> object:
            hold(slow_us, on_gpu=torch.cuda.is_available())
            return operation(mark)

        return delayed

    def corrupts(self, label: str) -> bool:
        """Whether a WRONG_TOKEN fault matches the label."""
        return faults.find_fault(self._faults, FaultKind.WRONG_TOKEN, rank=self._gpu, label=label) is not None

    def corrupt(self, tokens: torch.Tensor, *, label: str) -> torch.Tensor:
        """The tokens, the first two swapped if a WRONG_TOKEN fault matches the label."""
        if not self.corrupts(label):
            return tokens
        corrupted = tokens.clone()
        corrupted[[0, 1]] = corrupted[[1, 0]]
        return corrupted
