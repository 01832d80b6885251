"""accounting.json: what a run cost."""

from __future__ import annotations

import msgspec

from launcher.store.files import read_json, write_atomic
from launcher.store.run_folder import RunFolder


class Accounting(msgspec.Struct, frozen=True):
    """GPU-hours of a run, and where the number comes from."""

    gpu_hours: float
    source: str


def read_accounting(folder: RunFolder) -> Accounting | None:
    """The cost of the run; None before the first ``write_accounting``."""
    return read_json(folder.accounting_file, Accounting) if folder.accounting_file.is_file() else None


def write_accounting(folder: RunFolder, accounting: Accounting) -> None:
    """Replaces accounting.json."""
    write_atomic(folder.accounting_file, msgspec.json.encode(accounting))
