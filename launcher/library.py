"""A folder of tuned configs, one JSON file for each key, and how a framework finds its own at start-up.

Light on purpose: the standard library and msgspec, no torch, no deep_ep. ``python -m launcher.publish`` fills the
folder; docs/library.schema.json describes a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import re
import warnings
from pathlib import Path
from typing import Final, Literal

import msgspec

SCHEMA: Final = "deepep-sweep/library/1"
UNIFORM: Final = "uniform"


class Key(msgspec.Struct, frozen=True):
    """What a tuned config depends on. ``gpu`` as in ``torch.cuda.get_device_name()``; ``num_tokens`` is per rank.

    ``deep_ep`` is the distribution and its version, as in ``tokenspeed-deepep 1.2.1.post20251110``. What it was routed
    by is no part of it, since no model has that as a number; there is a file for each.
    """

    gpu: str
    ep: int
    hidden: int
    num_experts: int
    num_topk: int
    num_tokens: int
    dtype: str
    deep_ep: str

    def file_name(self, routing: str = UNIFORM) -> str:
        """A readable name, made unique by a hash of key and routing, since a GPU may be called anything."""
        is_uniform = routing == UNIFORM
        hashed = msgspec.json.encode(self if is_uniform else (self, routing))
        routed = "" if is_uniform else f"-{_slug(routing, 20)}"
        return (
            f"{_slug(self.gpu, 40)}-ep{self.ep}-{self.dtype}-hidden{self.hidden}-experts{self.num_experts}"
            f"-top{self.num_topk}-tokens{self.num_tokens}{routed}-{hashlib.sha256(hashed).hexdigest()[:8]}.json"
        )

    def same_but_tokens(self, other: Key) -> bool:
        """Whether a config of one may serve the other; the version of deep_ep is left to the caller."""
        return self == msgspec.structs.replace(other, num_tokens=self.num_tokens, deep_ep=self.deep_ep)

    def __str__(self) -> str:
        return (
            f"{self.gpu}, EP={self.ep}, hidden {self.hidden}, {self.num_experts} experts, top-{self.num_topk}, "
            f"{self.num_tokens} tokens, {self.dtype}"
        )


def _slug(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")


class Tuned(msgspec.Struct, frozen=True):
    """One pair: keyword arguments of ``deep_ep.Config`` for each operation, and how long both take together.

    ``beside_gemms_us``: until both and one layer's expert GEMMs beside them are done, None where that was not measured.
    ``timing``: how, see bench.records.TIMING.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    round_trip_us: float
    ci95_us: tuple[float, float]
    beside_gemms_us: float | None = None
    beside_gemms_ci95_us: tuple[float, float] | None = None
    timing: int = 1
    provenance: dict[str, str] = {}


class Entry(msgspec.Struct, frozen=True):
    """One file of the library. ``picks`` always has ``fastest``, which ``measured`` and what follows are about.

    The picks of one file may come from several runs: each has its own ``provenance``, for people.
    """

    schema: Literal["deepep-sweep/library/1"]
    key: Key
    routing: str
    measured: str
    verdict: str
    picks: dict[str, Tuned]
    provenance: dict[str, str]


class Loaded(msgspec.Struct, frozen=True):
    """A tuned config that was found; ``deep_ep.Config(**loaded.dispatch)``.

    ``match`` is ``exact``, or says in words what differs between ``asked`` and what was found, ``entry.key``.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    match: str
    entry: Entry
    file: Path


class NotTunedError(LookupError):
    """The library has nothing that fits; the message says where it looked and what is there."""


class BadFileError(ValueError):
    """A file of the library that cannot be read, is none of its own, or that a newer version wrote."""


def installed_deep_ep() -> str | None:
    """Distribution and version of the deep_ep that an import would take here, as in a key; None without one."""
    names = sorted(set(importlib.metadata.packages_distributions().get("deep_ep", [])))
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or None


def load_tuned_config(
    library: str | os.PathLike[str],
    *,
    gpu: str,
    ep: int,
    hidden: int,
    num_experts: int,
    num_topk: int,
    num_tokens: int,
    dtype: Literal["bf16", "fp8"] = "bf16",
    routing: str = UNIFORM,
    deep_ep: str | None = None,
    pick: str = "fastest",
) -> Loaded:
    """The tuned config of this key, or that of the nearest number of tokens; ``match`` says which.

    Everything but ``num_tokens``, ``routing`` and ``deep_ep`` has to be equal. An entry of the same ``deep_ep`` goes
    before one of the same ``routing``, and this before one of nearer tokens; another is taken rather than none, and
    said. Nearest is by ratio. ``deep_ep`` is a version, with its distribution before it or not; without one any is
    right. NotTunedError if nothing fits. A file that cannot be read is warned of and left out.

        found = load_tuned_config("library", gpu=torch.cuda.get_device_name(), ep=4, hidden=7168, num_experts=256,
                                  num_topk=8, num_tokens=4096, deep_ep=installed_deep_ep())
        print(found.match)                                # exact, or: nearest tokens: asked 3000, found 4096
        dispatch = deep_ep.Config(**found.dispatch)
    """
    asked = Key(gpu, ep, hidden, num_experts, num_topk, num_tokens, dtype, deep_ep or "")
    folder = Path(library)
    if not folder.is_dir():
        raise NotTunedError(f"no tuned config for {asked} ({pick}): there is no folder {folder}")
    entries, bad = read_all(folder)
    for error in bad:
        warnings.warn(f"{error}; it is left out", RuntimeWarning, stacklevel=2)
    fitting = [one for one in entries.items() if one[1].key.same_but_tokens(asked) and pick in one[1].picks]
    if not fitting:
        raise NotTunedError(_nothing(asked, pick, folder, list(entries.values()), bad))
    newest_first = sorted(fitting, key=lambda one: one[1].measured, reverse=True)
    file, entry = min(newest_first, key=lambda one: _distance(asked, routing, one[1]))
    tuned = entry.picks[pick]
    return Loaded(tuned.dispatch, tuned.combine, _match(asked, routing, entry), entry, file)


def _distance(asked: Key, routing: str, found: Entry) -> tuple[bool, bool, float]:
    tokens = abs(math.log(max(asked.num_tokens, 1) / max(found.key.num_tokens, 1)))
    return not _is_version(asked.deep_ep, found.key.deep_ep), routing != found.routing, tokens


def _is_version(asked: str, found: str) -> bool:
    """Whether nothing was asked, or ``found`` whole, or its version alone."""
    return asked in ("", found, found.rpartition(" ")[2])


def _match(asked: Key, routing: str, found: Entry) -> str:
    said = []
    if asked.num_tokens != found.key.num_tokens:
        said.append(f"nearest tokens: asked {asked.num_tokens}, found {found.key.num_tokens}")
    if routing != found.routing:
        said.append(f"routing: asked {routing}, found {found.routing}")
    if not _is_version(asked.deep_ep, found.key.deep_ep):
        said.append(f"deep_ep: asked {asked.deep_ep}, found {found.key.deep_ep}")
    return "; ".join(said) or "exact"


def _nothing(asked: Key, pick: str, folder: Path, entries: list[Entry], bad: list[BadFileError]) -> str:
    known = sorted({f"{entry.key} ({', '.join(entry.picks)})" for entry in entries})
    left_out = f"; left out: {'; '.join(map(str, bad))}" if bad else ""
    return f"no tuned config for {asked} ({pick}); {folder} has {'; '.join(known) or 'nothing'}{left_out}"


def read_all(library: Path) -> tuple[dict[Path, Entry], list[BadFileError]]:
    """Every entry by its file, and what is wrong with the other JSON files."""
    entries, bad = {}, []
    for file in sorted(library.glob("*.json")):
        try:
            entries[file] = read(file)
        except BadFileError as error:
            bad.append(error)
    return entries, bad


class _Versioned(msgspec.Struct, frozen=True):
    schema: str = ""


def read(file: Path) -> Entry:
    """One entry; BadFileError when it cannot be read."""
    try:
        content = file.read_bytes()
        schema = msgspec.json.decode(content, type=_Versioned).schema
        if schema != SCHEMA:
            raise BadFileError(f"{file} has schema {schema!r}, this program reads {SCHEMA!r}")
        return msgspec.json.decode(content, type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFileError(f"{file} cannot be read: {error}") from error
