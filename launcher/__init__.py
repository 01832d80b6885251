"""Decides what runs where, keeps the run folder, judges and reports; never imports torch or deep_ep."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
"""The folder of bench, launcher, conf and hydra_plugins: a checkout, a job's copy of the code, or site-packages."""

_NAME = "deepep-sweep"


def read_version() -> str:
    """The version of the program: from the checkout that runs, else from the installation; "unknown" without either."""
    import importlib.metadata
    import tomllib

    checkout = ROOT / "pyproject.toml"
    project = tomllib.loads(checkout.read_text()).get("project", {}) if checkout.is_file() else {}
    if project.get("name") == _NAME:
        return str(project["version"])
    try:
        return importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
