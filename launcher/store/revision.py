"""The code that runs: its commit, its digest, and the copy that jobs run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from bench import records
from launcher.errors import ROOT

_PROJECT = "pyproject.toml"
_PACKAGES = ("bench", "launcher", "conf")
_JOB_MODULES = ("launcher/jobs/job.py", "launcher/validation/run/node_jobs.py")


class Revision(msgspec.Struct, frozen=True):
    """The code that ran: its commit, and whether files differed from it. Both are None outside a git checkout.

    ``code`` is a hash of the program's own files (``code_digest``); every installation has one.
    """

    commit: str | None
    dirty: bool | None
    code: str


def read_revision() -> Revision:
    """The revision of the program that runs."""
    code = code_digest()
    if not (ROOT / ".git").exists():
        return Revision(None, None, code)
    try:
        commit = _git(ROOT, "rev-parse", "HEAD")
        dirty = bool(_git(ROOT, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return Revision(None, None, code)
    return Revision(commit, dirty, code)


def code_digest(root: Path = ROOT) -> str:
    """A hash over names and contents of the Python and YAML files of bench, launcher and conf below ``root``."""
    files = sorted(
        file for package in _PACKAGES for file in (root / package).rglob("*") if file.suffix in (".py", ".yaml")
    )
    return records.digest([[str(file.relative_to(root)), file.read_text()] for file in files])


def can_run_jobs(code: Path) -> bool:
    """Whether a copy of the code has the modules whose functions this version submits as jobs."""
    return all((code / module).is_file() for module in _JOB_MODULES)


def can_repeat(code: Path) -> bool:
    """Whether a copy of the code can measure repeats of a final."""
    return (code / "launcher" / "tuner" / "repeats.py").is_file()


def snapshot_code(to: Path, *, renew: bool = False) -> None:
    """Copies the packages that a job needs: a node runs the code of the submission, whatever changes here later.

    An existing copy is kept: a resumed run must not mix two versions of the program. With ``renew`` a copy of other
    code gets a number behind its name, and makes way.
    """
    if to.is_dir():
        if not renew or code_digest(to) == code_digest():
            return
        number = 1 + len(list(to.parent.glob(f"{to.name}.*")))
        to.rename(to.with_name(f"{to.name}.{number}"))
    ignore = shutil.ignore_patterns("__pycache__")
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    for package in (*_PACKAGES, "hydra_plugins"):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, partial / package, ignore=ignore, dirs_exist_ok=True)
    if (ROOT / _PROJECT).is_file():  # the copy reads its version there
        shutil.copy(ROOT / _PROJECT, partial)
    partial.rename(to)


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True).stdout.strip()
