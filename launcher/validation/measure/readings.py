"""NVML's readings of the GPUs, before and after the suite run; for tests also with machine faults injected."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
import pynvml

from bench.nvml import counters
from bench.nvml import gpus as nvml
from bench.nvml.counters import Counters, XidWatch
from bench.records import Gpu, GpuState
from launcher.config.schema import Hardware
from launcher.validation.node import Preflight

_COUNTER_FAULTS = {
    "throttle": ("throttle_hardware_thermal_ns", 10**10),
    "ecc": ("ecc_uncorrectable", 1),
    "remap": ("remap_pending", 1),
}
"""Machine faults that raise a counter: which, and by how much per reading."""

T = TypeVar("T")


class SilentDriverError(Exception):
    """NVML does not respond."""


def await_response(query: Callable[[], T], *, within_s: float) -> T:
    """NVML's response to a query. SilentDriverError if it does not come in time.

    Nothing ends a call that is stuck in the kernel: the thread that waits for it stays behind.
    """
    responses: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def request() -> None:
        try:
            responses.put(query())
        except BaseException as error:  # noqa: BLE001  (the caller's thread raises it again)
            responses.put(error)

    threading.Thread(target=request, name="NVML", daemon=True).start()
    try:
        response = responses.get(timeout=within_s)
    except queue.Empty:
        raise SilentDriverError(f"NVML does not respond within {within_s:.3g} s") from None
    if isinstance(response, BaseException):
        raise response
    return response


class Readings(Protocol):
    """The readings of one machine."""

    def preflight(self) -> Preflight:
        """The GPUs, their links and states, read without a CUDA context."""

    def counters(self) -> list[Counters]:
        """The counters of every GPU now."""

    def xids(self) -> list[str]:
        """XID errors since the last call."""

    def pair_links(self, gpu: int, other: int) -> int | None:
        """The number of NVLinks between two GPUs; None where the driver does not report it."""


class Nvml:
    """Readings by NVML, empty on a machine without GPUs. The preflight makes the first query, under its limit."""

    def __init__(self) -> None:
        self._watch: XidWatch | None = None
        self._links: dict[tuple[int, int], int] = {}

    def preflight(self) -> Preflight:
        """See Readings."""
        if self._watch is None:
            self._watch = XidWatch()
            self._links = nvml.pair_links()
        return Preflight(
            gpus=nvml.inventory(),
            states=nvml.states(set()),
            links_up=[gpu.values.get("links_up") for gpu in counters.read()],
            topology=nvml.topology(),
            driver=nvml.driver(),
            pci_gpus=None if nvml.are_chosen() else nvml.pci_gpus(),
        )

    def counters(self) -> list[Counters]:
        """See Readings."""
        return counters.read()

    def xids(self) -> list[str]:
        """See Readings."""
        return self._watch.read_errors() if self._watch is not None else []

    def pair_links(self, gpu: int, other: int) -> int | None:
        """See Readings."""
        return self._links.get((gpu, other))


class FaultyReadings:
    """Readings with machine faults injected. On a machine without GPUs these go into healthy synthetic GPUs."""

    def __init__(
        self, readings: Readings, faults: Sequence[tuple[str, int]], *, num_gpus: int, hardware: Hardware
    ) -> None:
        """``faults``: kind and GPU of each."""
        self._readings, self._faults, self._num_gpus, self._hardware = readings, faults, num_gpus, hardware
        self._num_readings = 0

    def preflight(self) -> Preflight:
        """See Readings."""
        preflight = self._readings.preflight()
        if not preflight.gpus:
            preflight = self._synthesize()
        for kind, gpu in self._faults:
            if kind == "missing_gpu":
                preflight = msgspec.structs.replace(
                    preflight,
                    gpus=_drop(preflight.gpus, gpu),
                    states=_drop(preflight.states, gpu),
                    links_up=_drop(preflight.links_up, gpu),
                )
            if kind == "foreign":
                states = list(preflight.states)
                states[gpu] = msgspec.structs.replace(states[gpu], foreign_processes=1)
                preflight = msgspec.structs.replace(preflight, states=states)
        return preflight

    def _synthesize(self) -> Preflight:
        count, links = self._num_gpus, self._hardware.num_links
        gpu, state = Gpu("synthetic", 0, None, links, None), GpuState(None, None, None, [], 0)
        return Preflight([gpu] * count, [state] * count, [links] * count, None, None, is_synthetic=True)

    def counters(self) -> list[Counters]:
        """See Readings. The faults show from the second reading on."""
        current = self._readings.counters() or [Counters(f"synthetic {gpu}", {}) for gpu in range(self._num_gpus)]
        self._num_readings += 1
        for kind, gpu in self._faults:
            if kind == "lost_gpu" and self._num_readings > 1:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            if kind in _COUNTER_FAULTS and gpu < len(current):
                name, step = _COUNTER_FAULTS[kind]
                uuid, values = current[gpu].uuid, current[gpu].values
                grown = (values.get(name) or 0) + step * (self._num_readings - 1)
                current[gpu] = Counters(uuid, values | {name: grown})
        return current

    def xids(self) -> list[str]:
        """See Readings."""
        return self._readings.xids() + [f"gpu{gpu}: XID 79, injected" for kind, gpu in self._faults if kind == "xid"]

    def pair_links(self, gpu: int, other: int) -> int | None:
        """See Readings."""
        return self._readings.pair_links(gpu, other)


def _drop(values: list[T], index: int) -> list[T]:
    return values[:index] + values[index + 1 :]
