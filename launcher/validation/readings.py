"""What the machine says of its GPUs before and after, by NVML; or made up, for self_test on machines without any."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from bench import counters, telemetry
from bench.counters import Counters, XidWatch
from bench.records import Gpu, GpuState
from launcher.schema import Hardware
from launcher.validation.node import Preflight


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
    """The real ones. Empty on machines without GPUs."""

    def __init__(self) -> None:
        self._watch = XidWatch()
        self._links = telemetry.pair_links()

    def preflight(self) -> Preflight:
        """See Readings."""
        return Preflight(
            gpus=telemetry.inventory(),
            states=telemetry.states(set()),
            links_up=[one.values.get("links_up") for one in counters.read()],
            topology=telemetry.topology(),
            driver=telemetry.driver(),
        )

    def counters(self) -> list[Counters]:
        """See Readings."""
        return counters.read()

    def xids(self) -> list[str]:
        """See Readings."""
        return self._watch.heard()

    def pair_links(self, one: int, other: int) -> int | None:
        """See Readings."""
        return self._links.get((one, other))


MACHINE_FAULTS = ("missing_gpu", "throttle", "foreign", "ecc", "remap", "xid")
"""Faults that are injected into the readings: KIND@GPU:any text."""


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
        """See Readings; from the second look on the faults have left their marks."""
        found = self._real.counters() or [Counters(f"made up {index}", {}) for index in range(self._gpus)]
        self._looks += 1
        marks = {"throttle": "throttle_hardware_thermal_ns", "ecc": "ecc_uncorrectable", "remap": "remap_pending"}
        for kind, index in self._faults:
            name = marks.get(kind)
            if name is not None and index < len(found):
                one = found[index]
                value = (one.values.get(name) or 0) + (10**10 if kind == "throttle" else 1) * (self._looks > 1)
                found[index] = Counters(one.uuid, one.values | {name: value})
        return found

    def xids(self) -> list[str]:
        """See Readings."""
        return self._real.xids() + [f"gpu{index}: XID 79, injected" for kind, index in self._faults if kind == "xid"]

    def pair_links(self, one: int, other: int) -> int | None:
        """See Readings."""
        return self._real.pair_links(one, other)


T = TypeVar("T")


def _without(values: list[T], index: int) -> list[T]:
    return values[:index] + values[index + 1 :]
