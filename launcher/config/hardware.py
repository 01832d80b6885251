"""What this machine is, and what ``auto`` means on it: NVML and the import system are asked, torch is not."""

from __future__ import annotations

import importlib.util
import re

import msgspec
import yaml

from bench.nvml import gpus as telemetry
from launcher import ROOT
from launcher.config.schema import Hardware, Spec
from launcher.errors import UserError

_GROUP = ROOT / "conf" / "hardware"

GET_DEEP_EP = (
    "pip install --no-deps tokenspeed-deepep==1.2.1.post20251110 beside torch 2.11.0 (CUDA 13), "
    "or another pair of README's table; or backend=alltoall"
)


def known_hardware() -> list[Hardware]:
    """The files of the hardware group that name a GPU."""
    found = [msgspec.convert(yaml.safe_load(path.read_text()), Hardware) for path in sorted(_GROUP.glob("*.yaml"))]
    return [hardware for hardware in found if hardware.gpu_pattern or hardware.name == "cpu"]


def resolve(spec: Spec, *, local: bool, dry_run: bool = False) -> Spec:
    """Replaces ``auto`` by what is there. ``local``: the measurement runs on this machine, not in a job elsewhere.

    UserError when that cannot be decided, or when the named hardware is not what this machine has.
    """
    spec = msgspec.structs.replace(spec, hardware=hardware(spec.hardware, local=local))
    if local and not dry_run and spec.hardware.name != "cpu":
        _refuse_missing_gpus(spec)
    return msgspec.structs.replace(spec, backend=backend(spec.backend, spec.hardware, local=local, dry_run=dry_run))


def num_gpus() -> int:
    """Visible GPUs of this machine."""
    return len(telemetry.inventory())


def hardware(wanted: Hardware, *, local: bool) -> Hardware:
    """What ``auto`` is, or what was named. UserError as in resolve."""
    names = ", ".join(one.name for one in known_hardware())
    gpus = telemetry.inventory()
    if wanted.name != "auto":
        return wanted
    if not local and not gpus:
        raise UserError(
            "hardware=auto reads the GPUs of this machine, and it has none",
            hint=f"name what the job will run on, hardware=NAME with NAME one of {names}",
        )
    if not gpus:
        return next(one for one in known_hardware() if one.name == "cpu")
    for one in known_hardware():
        if one.gpu_pattern and re.search(one.gpu_pattern, gpus[0].name):
            return msgspec.structs.replace(
                one,
                num_sms=gpus[0].num_sms or one.num_sms,
                memory_gb=round(gpus[0].memory_bytes / 1e9, 1),
                num_links=gpus[0].num_links or one.num_links,
            )
    raise UserError(
        f"no hardware file matches the GPU {gpus[0].name!r}",
        hint=f"take the nearest of {names} (hardware=NAME), or add conf/hardware/<name>.yaml",
    )


def _refuse_missing_gpus(spec: Spec) -> None:
    """UserError where the ranks would not find what was named."""
    count = len(telemetry.inventory())
    if not count:
        raise UserError(
            f"hardware={spec.hardware.name} needs GPUs, this machine has none",
            hint="hardware=cpu backend=alltoall runs here, hydra/launcher=submitit_slurm runs elsewhere",
        )
    if count < spec.ep.size and not spec.ep.share_gpus:
        raise UserError(
            f"ep.size must be at most {count}, the GPUs of this machine, got {spec.ep.size}",
            hint="take a smaller ep; ep.share_gpus=true tests the path without measuring",
        )


def backend(wanted: str, on: Hardware, *, local: bool, dry_run: bool = False) -> str:
    """What ``auto`` is, or what was named. UserError as in resolve."""
    on_gpu = on.name != "cpu"
    importable = dry_run or importlib.util.find_spec("deep_ep") is not None
    if wanted == "deepep" and not on_gpu:
        raise UserError("backend=deepep needs GPUs, this machine has none", hint="backend=alltoall runs on CPUs")
    if wanted == "deepep" and local and not importable:
        raise UserError("backend=deepep cannot import deep_ep", hint=GET_DEEP_EP)
    if wanted != "auto":
        return wanted
    if on_gpu and (importable or not local):
        return "deepep"
    if on_gpu:
        raise UserError("backend=auto found GPUs, but deep_ep is not installed", hint=GET_DEEP_EP)
    if not local:
        raise UserError("backend=auto found no GPU", hint="backend=alltoall tests the path on CPUs")
    return "alltoall"
