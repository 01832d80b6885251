"""Decides what runs where, keeps the run folder, judges and reports; never imports torch or deep_ep."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
"""Where bench, launcher, conf and hydra_plugins lie: a checkout, a job's copy of the code, or site-packages."""
