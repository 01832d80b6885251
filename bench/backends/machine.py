"""What this machine offers a library, found without importing it: packages, compilers, NICs, a folder for kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

import msgspec

_INFINIBAND = Path("/sys/class/infiniband")
_NCCL = re.compile(r"^nvidia-nccl(-cu\d+)?$")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CUDA_HOMES = ("CUDA_HOME", "CUDA_PATH")
_CUDA = Path("/usr/local/cuda")

INSTALL = "pip install '.[deepep]', or take a pair of README's table; or leave it out of backend"


class Problem(msgspec.Struct, frozen=True):
    """What keeps a library from running on this machine, as a clause, and its cure.

    ``absent``: the library itself is not installed.
    """

    what: str
    cure: str
    absent: bool = False


def is_importable(name: str) -> bool:
    """Whether ranks can import a package. They do not look in the working directory, which ``python -m`` does."""
    folders = package_folders(name)
    search_path = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    here = Path.cwd()
    return bool(folders) and (
        here in search_path or not all(folder.parent in (here, here / name) for folder in folders)
    )


def package_folders(name: str) -> list[Path]:
    """Where the package of this import name lies; empty if nothing of the kind is installed."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return []
    if spec is None:
        return []
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return [Path(place).resolve() for place in places]


def has_elastic_buffer() -> bool:
    """Whether the installed deep_ep is DeepEP 2."""
    return any((folder / "buffers" / "elastic.py").is_file() for folder in package_folders("deep_ep"))


def has_rdma() -> bool:
    """Whether the node has an RDMA device."""
    return _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir())


def gin_problems() -> list[Problem]:
    """Whether GIN, NCCL's RDMA from kernels, is demanded on a node without RDMA; ranks switch it off by themselves."""
    if has_rdma() or os.environ.get("EP_DISABLE_GIN", "1") != "0":
        return []
    return [Problem("EP_DISABLE_GIN=0 is set, and this node has no RDMA device", "unset EP_DISABLE_GIN")]


def cumem_problems() -> list[Problem]:
    """Whether NCCL is kept from the memory that peers can map."""
    if os.environ.get("NCCL_CUMEM_ENABLE", "1") != "0":
        return []
    return [Problem("NCCL_CUMEM_ENABLE=0 is set, and it needs memory that peers can map", "unset NCCL_CUMEM_ENABLE")]


def installed_nccl() -> dict[str, tuple[int, ...]]:
    """The version of every NCCL package that is installed, by its name."""
    import importlib.metadata  # slow, and --help reads the declarations

    found: dict[str, tuple[int, ...]] = {}
    for each in importlib.metadata.distributions():  # in the order of the search path: the first one is imported
        name = (each.metadata["Name"] or "").lower()
        if _NCCL.match(name):
            found.setdefault(name, version_of(each.version))
    return found


def nccl_problems(*, least: tuple[int, ...]) -> list[Problem]:
    """What is wrong with the installed NCCL for a library that needs this version or a newer one."""
    found = installed_nccl()
    if len(found) > 1:
        names = " and ".join(sorted(found))
        return [Problem(f"two NCCL packages are installed ({names})", "pip uninstall the one that torch does not need")]
    if found and next(iter(found.values())) < least:
        name, version = next(iter(found.items()))
        wanted = ".".join(map(str, least))
        return [
            Problem(f"NCCL is {'.'.join(map(str, version))}, not {wanted} or newer", f"pip install '{name}>={wanted}'")
        ]
    return []


def installed_versions(packages: Collection[str]) -> dict[str, str]:
    """The version of every distribution that provides one of these import names; for "nccl" also that of NCCL."""
    import importlib.metadata  # slow, and --help reads the declarations

    distributions = importlib.metadata.packages_distributions()
    names = {name for package in packages for name in distributions.get(_top(package), [])}
    nccl = installed_nccl() if "nccl" in packages else []
    return {name: importlib.metadata.version(name) for name in sorted({*names, *nccl})}


@cache
def providers(packages: frozenset[str]) -> dict[str, str]:
    """For each of these import names the distributions that provide it, with their versions; empty where none does.

    Read once in a process: it takes up to a second, for the files of all distributions are read.
    """
    import importlib.metadata

    distributions = importlib.metadata.packages_distributions()
    return {
        package: ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in sorted(set(distributions.get(_top(package), [])))
        )
        for package in sorted(packages)
    }


def _top(package: str) -> str:
    return package.partition(".")[0]


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.30.7 as (2, 30, 7)."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()


def cuda_home() -> Path | None:
    """The CUDA toolkit that libraries take: that of CUDA_HOME, of CUDA_PATH, of the nvcc on PATH, or /usr/local/cuda.

    A variable that is set decides, whatever it names, as in deep_ep.
    """
    named = next((os.environ[name] for name in _CUDA_HOMES if os.environ.get(name)), None)
    if named is not None:
        return Path(named)
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path).parent.parent
    return _CUDA if _CUDA.exists() else None


def cuda_home_problems() -> list[Problem]:
    """Whether no CUDA toolkit is found, which deep_ep 2 refuses at its import."""
    if cuda_home() is not None:
        return []
    return [Problem("no CUDA toolkit is found, and deep_ep 2 asks for one at its import", "set CUDA_HOME")]


def find_nvcc() -> Path | None:
    """The CUDA compiler of ``cuda_home``."""
    home = cuda_home()
    nvcc = None if home is None else home / "bin" / "nvcc"
    return nvcc if nvcc is not None and nvcc.is_file() else None


@cache
def nvcc_version(nvcc: Path) -> tuple[int, ...]:
    """The release of a compiler; empty if it does not say one."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    release = re.search(r"release (\d+(?:\.\d+)*)", text)
    return version_of(release[1]) if release else ()


def nvcc_problems(*, least: tuple[int, ...]) -> list[Problem]:
    """What is wrong with the CUDA compiler for a library that compiles its kernels at first use."""
    nvcc, home, wanted = find_nvcc(), cuda_home(), ".".join(map(str, least))
    cure = f"install CUDA {wanted} or newer and set CUDA_HOME to it"
    if nvcc is None:
        where = "" if home is None else f" in {home}"
        return [Problem(f"no nvcc is found{where}, and its kernels are compiled at first use", cure)]
    if nvcc_version(nvcc) < least:
        return [Problem(f"{nvcc} is not {wanted} or newer", cure)]
    return []


def kernel_folder(name: str) -> Path:
    """Where a library keeps the kernels that it compiles: local to the node, since a shared folder makes ranks crash.

    Made here. Ranks run what lies in it, so nobody else may write there.
    """
    folder = _private_folder(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def _private_folder(parent: str) -> Path:
    """This user's folder in ``parent``; one with another name, for this process, where somebody has taken that."""
    folder = Path(parent) / f"deepep-sweep-kernels-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & _OTHERS_WRITE
    return folder if is_ours else Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=parent))
