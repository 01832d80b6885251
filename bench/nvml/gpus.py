"""Inventory and state of the GPUs from NVML, without a CUDA context; empty on machines without GPUs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from bench.records import Gpu, GpuState

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")
"""The PCI classes of GPUs: VGA and 3D controllers."""

_CUDA_CORES_PER_SM = 128
_FIELD_LINK_COUNT = 91
_FIELD_LINK_SPEED_MBPS = 164
_IDLE = 0x1
_REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
_HARMLESS = 0x2 | 0x100


@functools.cache
def _has_nvml() -> bool:
    """Whether NVML works on this machine. It stays open, since opening it takes tens of milliseconds."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def nvml_or_none(query: Callable[..., Any], *args: Any) -> Any | None:
    """What an NVML query returns, None where NVML raises: an unsupported field must not read as 0."""
    try:
        return query(*args)
    except pynvml.NVMLError:
        return None


def handles() -> list[Any]:
    """NVML's handles of the visible GPUs, in CUDA's order; CUDA_VISIBLE_DEVICES may hold indices or UUIDs."""
    if not _has_nvml():
        return []
    count = pynvml.nvmlDeviceGetCount()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    chosen = []
    for name in filter(None, visible.split(",")):
        if name.isdigit():
            if int(name) >= count:
                break  # as CUDA, which ignores what follows an invalid index
            chosen.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith("GPU-"):
            chosen.append(pynvml.nvmlDeviceGetHandleByUUID(name))
    return chosen


def _field(handle: Any, field: int, scope: int = 0) -> int | None:
    """One NVML field value as an integer."""
    values = nvml_or_none(pynvml.nvmlDeviceGetFieldValues, handle, [(field, scope)])
    if not values or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _describe(handle: Any) -> Gpu:
    cores = nvml_or_none(pynvml.nvmlDeviceGetNumGpuCores, handle)
    speed = _field(handle, _FIELD_LINK_SPEED_MBPS)
    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        num_sms=cores // _CUDA_CORES_PER_SM if cores else None,
        num_links=_field(handle, _FIELD_LINK_COUNT),
        link_gb_per_s=speed / 1000 if speed else None,
    )


def inventory() -> list[Gpu]:
    """What each visible GPU is, in CUDA's order; empty without GPUs."""
    return [_describe(handle) for handle in handles()]


def pci_gpus(devices: Path = PCI_DEVICES) -> int:
    """How many NVIDIA GPUs are on the PCI bus, with or without a driver; 0 where the kernel lists no devices."""
    return sum(_is_gpu(device) for device in devices.glob("*"))


def _is_gpu(device: Path) -> bool:
    try:
        vendor, pci_class = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and pci_class.startswith(_DISPLAY)


def are_chosen() -> bool:
    """Whether CUDA_VISIBLE_DEVICES chooses among the GPUs, which makes fewer visible GPUs intended."""
    return "CUDA_VISIBLE_DEVICES" in os.environ


def uuids() -> list[str]:
    """The UUIDs of the visible GPUs, in CUDA's order."""
    return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles()]


def driver() -> str | None:
    """The version of the driver, None without NVML."""
    return str(pynvml.nvmlSystemGetDriverVersion()) if _has_nvml() else None


def topology() -> str | None:
    """How each pair of visible GPUs is connected: one word when all are alike, else ``0-1:NVLINK 0-2:level20 ...``.

    ``NVLINK``, or ``level`` and NVML's code of the common ancestor (10 a PCI switch, up to 50 the whole system). None
    without NVML or with fewer than two GPUs.
    """
    if not _has_nvml():
        return None
    gpus = handles()
    pairs = [(a, b) for a in range(len(gpus)) for b in range(a + 1, len(gpus))]
    names = [_connection(gpus[a], gpus[b]) for a, b in pairs]
    if not names:
        return None
    if len(set(names)) == 1:
        return names[0]
    return " ".join(f"{a}-{b}:{name}" for (a, b), name in zip(pairs, names, strict=True))


def _connection(first: Any, second: Any) -> str:
    status = nvml_or_none(pynvml.nvmlDeviceGetP2PStatus, first, second, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if status == pynvml.NVML_P2P_STATUS_OK:
        return "NVLINK"
    level = nvml_or_none(pynvml.nvmlDeviceGetTopologyCommonAncestor, first, second)
    return "unknown" if level is None else f"level{level}"


def pair_links() -> dict[tuple[int, int], int]:
    """How many NVLinks connect each ordered pair of visible GPUs; pairs without a link are absent.

    All links of a GPU that is attached to a switch count for each of its peers.
    """
    gpus = handles()
    ids = [_bus_id(nvml_or_none(pynvml.nvmlDeviceGetPciInfo, gpu)) for gpu in gpus]
    num_links: dict[tuple[int, int], int] = {}
    for source, handle in enumerate(gpus):
        for link in range(_field(handle, _FIELD_LINK_COUNT) or 0):
            remote_type = nvml_or_none(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
            is_switch = remote_type == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
            remote = _bus_id(nvml_or_none(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link))
            for target in range(len(gpus)):
                if target != source and (is_switch or (remote is not None and remote == ids[target])):
                    num_links[source, target] = num_links.get((source, target), 0) + 1
    return num_links


def _bus_id(info: Any | None) -> str | None:
    if info is None:
        return None
    name = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    return name.lower()[-12:]


def states(pids: set[int]) -> list[GpuState]:
    """Clock, power, temperature, throttle reasons and foreign processes of each visible GPU.

    ``pids`` are the processes that do not count as foreign.
    """
    return [_state(handle, pids) for handle in handles()]


def _state(handle: Any, pids: set[int]) -> GpuState:
    power = nvml_or_none(pynvml.nvmlDeviceGetPowerUsage, handle)
    reasons = nvml_or_none(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    processes = nvml_or_none(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    mask = 0 if reasons is None else reasons & ~_IDLE & ~_HARMLESS
    return GpuState(
        sm_clock_mhz=nvml_or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        power_w=None if power is None else power / 1000,
        temperature_c=nvml_or_none(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        throttle=[name for bit, name in _REASONS.items() if mask & bit],
        foreign_processes=None if processes is None else sum(process.pid not in pids for process in processes),
    )
