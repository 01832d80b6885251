"""What the machine says of its GPUs before and after, by NVML; or made up, for self_test on machines without any."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
import pynvml

from bench.nvml import counters
from bench.nvml import gpus as telemetry
from bench.nvml.counters import Counters, XidWatch
from bench.records import Gpu, GpuState
from launcher.config.schema import Hardware
from launcher.validation.node import Preflight

T = TypeVar("T")


class SilentDriverError(Exception):
    """NVML does not come back."""


def answered(question: Callable[[], T], *, within_s: float) -> T:
    """What the driver responses. SilentDriverError when it does not in time.

    Nothing ends a call that is stuck in the kernel: the thread that waits for it is left behind.
    """
    responses: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def request() -> None:
        try:
            responses.put(question())
        except BaseException as error:  # noqa: BLE001  (it is raised again where it was asked)
            responses.put(error)

    threading.Thread(target=request, name="NVML", daemon=True).start()
    try:
        response = responses.get(timeout=within_s)
    except queue.Empty:
        raise SilentDriverError(f"NVML does not response within {within_s:.3g} s") from None
    if isinstance(response, BaseException):
        raise response
    return response


class Readings(Protocol):
    """One machine's."""

    def preflight(self) -> Preflight:
        """What is there, without a CUDA context."""

    def counters(self) -> list[Counters]:
        """Every GPU's now."""

    def xids(self) -> list[str]:
        """XID errors since the last look."""

    def pair_links(self, one: int, other: int) -> int | None:
        """NVLinks between two GPUs; None when the driver does not say."""


class Nvml:
    """The real ones. Empty on machines without GPUs. Nothing is asked before the first preflight, which has a limit."""

    def __init__(self) -> None:
        self._watch: XidWatch | None = None
        self._links: dict[tuple[int, int], int] = {}

    def preflight(self) -> Preflight:
        """See Readings."""
        if self._watch is None:
            self._watch = XidWatch()
            self._links = telemetry.pair_links()
        return Preflight(
            gpus=telemetry.inventory(),
            states=telemetry.states(set()),
            links_up=[one.values.get("links_up") for one in counters.read()],
            topology=telemetry.topology(),
            driver=telemetry.driver(),
            pci_gpus=None if telemetry.are_chosen() else telemetry.pci_gpus(),
        )

    def counters(self) -> list[Counters]:
        """See Readings."""
        return counters.read()

    def xids(self) -> list[str]:
        """See Readings."""
        return self._watch.read_errors() if self._watch is not None else []

    def pair_links(self, one: int, other: int) -> int | None:
        """See Readings."""
        return self._links.get((one, other))


class Doctored:
    """Readings with faults of the machine put in. Where there is no GPU, healthy ones are made up first."""

    def __init__(self, real: Readings, faults: list[tuple[str, int]], *, gpus: int, hardware: Hardware) -> None:
        self._real, self._faults, self._gpus, self._hardware = real, faults, gpus, hardware
        self._looks = 0

    def preflight(self) -> Preflight:
        """See Readings."""
        found = self._real.preflight()
        if not found.gpus:
            links = self._hardware.num_links
            gpu = Gpu("made up", 0, None, links, None)
            state = GpuState(None, None, None, [], 0)
            count = self._gpus
            found = Preflight([gpu] * count, [state] * count, [links] * count, None, None, made_up=True)
        for kind, index in self._faults:
            if kind == "missing_gpu":
                found = msgspec.structs.replace(
                    found,
                    gpus=_without(found.gpus, index),
                    states=_without(found.states, index),
                    links_up=_without(found.links_up, index),
                )
            if kind == "foreign":
                states = list(found.states)
                states[index] = msgspec.structs.replace(states[index], foreign_processes=1)
                found = msgspec.structs.replace(found, states=states)
        return found

    def counters(self) -> list[Counters]:
        """See Readings; the faults leave their marks between two looks."""
        found = self._real.counters() or [Counters(f"made up {index}", {}) for index in range(self._gpus)]
        self._looks += 1
        marks = {"throttle": "throttle_hardware_thermal_ns", "ecc": "ecc_uncorrectable", "remap": "remap_pending"}
        for kind, index in self._faults:
            if kind == "lost_gpu" and self._looks > 1:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            name = marks.get(kind)
            if name is not None and index < len(found):
                one = found[index]
                value = (one.values.get(name) or 0) + (10**10 if kind == "throttle" else 1) * (self._looks - 1)
                found[index] = Counters(one.uuid, one.values | {name: value})
        return found

    def xids(self) -> list[str]:
        """See Readings."""
        return self._real.xids() + [f"gpu{index}: XID 79, injected" for kind, index in self._faults if kind == "xid"]

    def pair_links(self, one: int, other: int) -> int | None:
        """See Readings."""
        return self._real.pair_links(one, other)


def _without(values: list[T], index: int) -> list[T]:
    return values[:index] + values[index + 1 :]
