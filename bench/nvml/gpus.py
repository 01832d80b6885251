"""What NVML says of the GPUs: inventory and state, without a CUDA context; empty answers on machines without GPUs."""

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
"""The PCI classes of GPUs: with and without a screen."""

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
def _nvml() -> bool:
    """Whether NVML answers here. It stays open: opening it takes tens of milliseconds, and it is asked often."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def nvml_or_none(question: Callable[..., Any], *args: Any) -> Any | None:
    """NVML's answer, None where it has none: an unsupported field is never a zero."""
    try:
        return question(*args)
    except pynvml.NVMLError:
        return None


def handles() -> list[Any]:
    """The GPUs that this process may use, in CUDA's order (CUDA_VISIBLE_DEVICES as indices or UUIDs)."""
    if not _nvml():
        return []
    count = pynvml.nvmlDeviceGetCount()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    found = []
    for name in filter(None, visible.split(",")):
        if name.isdigit():
            if int(name) >= count:
                break
            found.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith("GPU-"):
            found.append(pynvml.nvmlDeviceGetHandleByUUID(name))
    return found


def _field(handle: Any, field: int, scope: int = 0) -> int | None:
    """One NVML field value as an integer."""
    values = nvml_or_none(pynvml.nvmlDeviceGetFieldValues, handle, [(field, scope)])
    if not values or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _gpu(handle: Any) -> Gpu:
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
    """The visible GPUs, empty where there are none."""
    return [_gpu(handle) for handle in handles()]


def pci_gpus(devices: Path = PCI_DEVICES) -> int:
    """NVIDIA GPUs on the PCI bus, whether a driver knows them or not; 0 where the kernel does not say."""
    return sum(_is_gpu(device) for device in devices.glob("*"))


def _is_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def are_chosen() -> bool:
    """Whether CUDA_VISIBLE_DEVICES says which GPUs to use, so that seeing fewer is meant."""
    return "CUDA_VISIBLE_DEVICES" in os.environ


def uuids() -> list[str]:
    """The visible GPUs' UUIDs."""
    return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles()]


def driver() -> str | None:
    """The driver's version."""
    return str(pynvml.nvmlSystemGetDriverVersion()) if _nvml() else None


def topology() -> str | None:
    """How each pair of visible GPUs is connected, as ``0-1:NVLINK 0-2:PIX ...``; one word when all are alike."""
    if not _nvml():
        return None
    gpus = handles()
    pairs = [(a, b) for a in range(len(gpus)) for b in range(a + 1, len(gpus))]
    names = [_pair(gpus[a], gpus[b]) for a, b in pairs]
    if not names:
        return None
    if len(set(names)) == 1:
        return names[0]
    return " ".join(f"{a}-{b}:{name}" for (a, b), name in zip(pairs, names, strict=True))


def _pair(one: Any, other: Any) -> str:
    status = nvml_or_none(pynvml.nvmlDeviceGetP2PStatus, one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if status == pynvml.NVML_P2P_STATUS_OK:
        return "NVLINK"
    level = nvml_or_none(pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    return "unknown" if level is None else f"level{level}"


def pair_links() -> dict[tuple[int, int], int]:
    """NVLinks between each two visible GPUs, both orders. Through a switch a GPU has all of its links for each peer."""
    gpus = handles()
    ids = [_bus_id(nvml_or_none(pynvml.nvmlDeviceGetPciInfo, gpu)) for gpu in gpus]
    found: dict[tuple[int, int], int] = {}
    for one, handle in enumerate(gpus):
        for link in range(_field(handle, _FIELD_LINK_COUNT) or 0):
            kind = nvml_or_none(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
            remote = _bus_id(nvml_or_none(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link))
            for other in range(len(gpus)):
                switched = kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
                if other != one and (switched or (remote is not None and remote == ids[other])):
                    found[one, other] = found.get((one, other), 0) + 1
    return found


def _bus_id(info: Any | None) -> str | None:
    if info is None:
        return None
    name = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    return name.lower()[-12:]


def states(own_pids: set[int]) -> list[GpuState]:
    """Clocks, power, temperature, throttle reasons and processes that are not ours, of each visible GPU."""
    return [_state(handle, own_pids) for handle in handles()]


def _state(handle: Any, own_pids: set[int]) -> GpuState:
    power = nvml_or_none(pynvml.nvmlDeviceGetPowerUsage, handle)
    reasons = nvml_or_none(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    processes = nvml_or_none(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    mask = 0 if reasons is None else reasons & ~_IDLE & ~_HARMLESS
    return GpuState(
        sm_clock_mhz=nvml_or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        power_w=None if power is None else power / 1000,
        temperature_c=nvml_or_none(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        throttle=[name for bit, name in _REASONS.items() if mask & bit],
        foreign_processes=None if processes is None else sum(p.pid not in own_pids for p in processes),
    )
