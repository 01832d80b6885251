"""Counters of each GPU that show wear and faults: links, ECC, row remapping, throttling. Their growth is judged."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pynvml

from bench.nvml import gpus

ALL_LINKS = 0xFFFFFFFF
_LINK_FIELDS = {
    "nvlink_replay": pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY,
    "nvlink_recovery": pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY,
    "nvlink_crc": pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC,
}
_FIELDS = {
    "throttle_power_ns": pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    "throttle_thermal_ns": pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,
    "throttle_software_thermal_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    "throttle_hardware_thermal_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    "throttle_power_brake_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
    "recovery_action": pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
}
_UP = (pynvml.NVML_NVLINK_STATE_ACTIVE, pynvml.NVML_NVLINK_STATE_SLEEP)
"""A link that sleeps to save power is healthy. INACTIVE and ACTIVE_TRAFFIC_DISABLED links carry nothing."""

_XID_WAIT_MS = 0


class Counters(msgspec.Struct, frozen=True):
    """The counters of one GPU at one moment, by name; None where the driver has no value, which differs from 0.

    ``nvlink_replay``, ``nvlink_recovery``, ``nvlink_crc``: errors, summed over the GPU's links. ``links_up``: links
    that are active or asleep. ``nvlink_tx_kib``, ``nvlink_rx_kib``: payload over all links, in KiB.
    ``throttle_*_ns``: time throttled, in ns. ``ecc_uncorrectable``: errors since the driver was loaded.
    ``remap_pending``, ``remap_failure``: 0 or 1. ``recovery_action``: NVML's code, 0 for none. ``temperature_c``: of
    the GPU, in degrees Celsius.
    """

    uuid: str
    values: dict[str, int | None]


def read() -> list[Counters]:
    """The counters of every visible GPU, in CUDA's order; empty without GPUs."""
    return [_read_gpu(handle) for handle in gpus.handles()]


def _read_gpu(handle: Any) -> Counters:
    count = _number(handle, pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT) or 0
    links = range(count)
    values: dict[str, int | None] = {
        name: _sum([_number(handle, field, link) for link in links]) for name, field in _LINK_FIELDS.items()
    }
    values["links_up"] = count_links_up([_number(handle, pynvml.NVML_FI_DEV_NVLINK_GET_STATE, link) for link in links])
    values["nvlink_tx_kib"] = _number(handle, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS)
    values["nvlink_rx_kib"] = _number(handle, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS)
    values |= {name: _number(handle, field) for name, field in _FIELDS.items()}
    values["ecc_uncorrectable"] = gpus.nvml_or_none(
        pynvml.nvmlDeviceGetTotalEccErrors,
        handle,
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
    )
    remapped = gpus.nvml_or_none(pynvml.nvmlDeviceGetRemappedRows, handle)
    values["remap_pending"], values["remap_failure"] = (None, None) if remapped is None else map(int, remapped[2:4])
    values["temperature_c"] = gpus.nvml_or_none(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    return Counters(str(pynvml.nvmlDeviceGetUUID(handle)), values)


def count_links_up(states: list[int | None]) -> int | None:
    """How many links are up, from NVML's state of each; None without links, or if a state is unknown."""
    return _sum([None if state is None else int(state in _UP) for state in states])


def _sum(values: list[int | None]) -> int | None:
    """The sum, None without values or if one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _number(handle: Any, field: int, scope: int = 0) -> int | None:
    """One NVML field as an integer, None where the driver does not support it."""
    values = gpus.nvml_or_none(pynvml.nvmlDeviceGetFieldValues, handle, [(field, scope)])
    if not values or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    value = values[0].value
    members = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    }
    member = members.get(values[0].valueType)
    return None if member is None else int(getattr(value, member))


class XidWatch:
    """Collects the XID errors that the driver reports from now on. Needs no root; collects nothing without GPUs."""

    def __init__(self) -> None:
        self._events: Any = None
        handles = gpus.handles()
        if not handles:
            return
        self._events = gpus.nvml_or_none(pynvml.nvmlEventSetCreate)
        for handle in handles if self._events is not None else []:
            gpus.nvml_or_none(
                pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, self._events
            )

    def read_errors(self) -> list[str]:
        """The errors since the last call, each as ``gpu 2: XID 79``."""
        errors: list[str] = []
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, _XID_WAIT_MS)
            except pynvml.NVMLError:
                break
            uuid = gpus.nvml_or_none(pynvml.nvmlDeviceGetUUID, event.device)
            uuids = gpus.uuids()
            errors.append(f"gpu {uuids.index(uuid) if uuid in uuids else '?'}: XID {int(event.eventData)}")
        return errors

    def close(self) -> None:
        """Stops collecting."""
        if self._events is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._events)
            self._events = None
