"""The published references, made of the published nodes (make references)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.validation import node as nodes
from launcher.validation import reference
from tests.builders import ROOT

FOLDER = Path(reference.__file__).parent / "references"
SOURCES = {"h100x2": ["h100x2-node"], "h200x4": ["h200x4-ep4-node"]}
"""By reference the published validations that it is made of: healthy nodes, without injected faults."""

OLD_TIMING = {"h100x2": ("all_to_all", "compute")}
"""Left out: operations of several kernels, measured before the host had 1.2 ms to queue them (bench.records.TIMING).

Only times of one way to take them compare.
"""


def make(name: str) -> reference.File:
    """The reference of the published nodes of one kind; its day is that of the last of them."""
    files = [file for one in SOURCES[name] for file in (ROOT / "outputs" / "published" / one).glob("nodes/*/NODE.json")]
    measured = [nodes.read(file) for file in sorted(files)]
    day = max(node.started for node in measured)[:10]
    file = reference.publish(measured, day=day, program=measured[-1].program)
    entries = [entry for entry in file.entries if not entry.test.startswith(OLD_TIMING.get(name, ()))]
    return msgspec.structs.replace(file, entries=entries)


def encode(file: reference.File) -> bytes:
    """The file as it ships."""
    return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"


def main() -> None:
    """Writes every published reference."""
    FOLDER.mkdir(exist_ok=True)
    for name in SOURCES:
        (FOLDER / f"{name}.json").write_bytes(encode(make(name)))


if __name__ == "__main__":
    main()
