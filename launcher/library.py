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

    ``deep_ep`` is the distribution and its version, as in ``tokenspeed-deepep 1.2.1.post20251110``. The routing is not
    part of the key, since a model does not have it as a number; each routing has a file of its own.
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

    ``overlapped_us`` (``beside_gemms_us`` in the file): until both are done, and with them the expert GEMMs of one
    layer that they overlap; None where that was not measured. ``timing``: how it was timed, see bench.records.TIMING.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    round_trip_us: float
    ci95_us: tuple[float, float]
    overlapped_us: float | None = msgspec.field(default=None, name="beside_gemms_us")
    overlapped_ci95_us: tuple[float, float] | None = msgspec.field(default=None, name="beside_gemms_ci95_us")
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
    """A tuned config from the library; ``deep_ep.Config(**loaded.dispatch)``.

    ``match`` is ``exact``, or names each difference between the requested key and ``entry.key``.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    match: str
    entry: Entry
    file: Path


class NotTunedError(LookupError):
    """The library has nothing that fits; the message names the key, the folder and what the folder has."""


class BadFileError(ValueError):
    """A file in the library that cannot be read, is not an entry, or was written by a newer version."""


NotTuned, BadFile = NotTunedError, BadFileError
"""Names before November 2026, for code that catches them."""


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
    """The tuned config for a key, or for the nearest number of tokens; ``match`` says which.

    GPU, EP, hidden, experts, top-k and dtype must be equal. Among the entries that are left, the same ``deep_ep`` comes
    before the same ``routing``, and that before the nearest ``num_tokens`` (by ratio); ``match`` names every
    difference. ``deep_ep`` is a version, with or without its distribution before it; None accepts any. NotTunedError if
    nothing fits. A file that cannot be read causes a RuntimeWarning and is left out.

        loaded = load_tuned_config("library", gpu=torch.cuda.get_device_name(), ep=4, hidden=7168, num_experts=256,
                                   num_topk=8, num_tokens=4096, deep_ep=installed_deep_ep())
        print(loaded.match)                               # exact, or: nearest tokens: requested 3000, entry has 4096
        dispatch = deep_ep.Config(**loaded.dispatch)
    """
    key = Key(gpu, ep, hidden, num_experts, num_topk, num_tokens, dtype, deep_ep or "")
    folder = Path(library)
    if not folder.is_dir():
        raise NotTunedError(f"no tuned config for {key} ({pick}): there is no folder {folder}")
    entries, unreadable = read_all(folder)
    for error in unreadable:
        warnings.warn(f"{error}; it is left out", RuntimeWarning, stacklevel=2)
    nearest = _find_nearest(entries, key, routing, pick)
    if nearest is None:
        raise NotTunedError(_explain_miss(key, pick, folder, list(entries.values()), unreadable))
    file, entry = nearest
    tuned = entry.picks[pick]
    return Loaded(tuned.dispatch, tuned.combine, _match(key, routing, entry), entry, file)


def _find_nearest(entries: dict[Path, Entry], key: Key, routing: str, pick: str) -> tuple[Path, Entry] | None:
    """The file and entry that fit the key best, the newest of equals; None if none fits."""
    fitting = [
        (file, entry) for file, entry in entries.items() if entry.key.same_but_tokens(key) and pick in entry.picks
    ]
    newest_first = sorted(fitting, key=lambda item: item[1].measured, reverse=True)
    return min(newest_first, key=lambda item: _distance(key, routing, item[1]), default=None)


def _distance(key: Key, routing: str, entry: Entry) -> tuple[bool, bool, float]:
    tokens = abs(math.log(max(key.num_tokens, 1) / max(entry.key.num_tokens, 1)))
    return not _is_version(key.deep_ep, entry.key.deep_ep), routing != entry.routing, tokens


def _is_version(requested: str, known: str) -> bool:
    """Whether ``requested`` is empty, equal to ``known``, or the version in it."""
    return requested in ("", known, known.rpartition(" ")[2])


def _match(key: Key, routing: str, entry: Entry) -> str:
    differences = []
    if key.num_tokens != entry.key.num_tokens:
        differences.append(f"nearest tokens: requested {key.num_tokens}, entry has {entry.key.num_tokens}")
    if routing != entry.routing:
        differences.append(f"routing: requested {routing}, entry has {entry.routing}")
    if not _is_version(key.deep_ep, entry.key.deep_ep):
        differences.append(f"deep_ep: requested {key.deep_ep}, entry has {entry.key.deep_ep}")
    return "; ".join(differences) or "exact"


def _explain_miss(key: Key, pick: str, folder: Path, entries: list[Entry], unreadable: list[BadFileError]) -> str:
    known = sorted({f"{entry.key} ({', '.join(entry.picks)})" for entry in entries})
    left_out = f"; left out: {'; '.join(map(str, unreadable))}" if unreadable else ""
    return f"no tuned config for {key} ({pick}); {folder} has {'; '.join(known) or 'nothing'}{left_out}"


def read_all(library: Path) -> tuple[dict[Path, Entry], list[BadFileError]]:
    """Every entry by its file, and an error for each other JSON file."""
    entries, unreadable = {}, []
    for file in sorted(library.glob("*.json")):
        try:
            entries[file] = read(file)
        except BadFileError as error:
            unreadable.append(error)
    return entries, unreadable


class _Versioned(msgspec.Struct, frozen=True):  # as in launcher.store.versions, which this module must not import
    schema: str = ""


def read(file: Path) -> Entry:
    """The entry in a file; members that this version does not know are ignored. BadFileError when it cannot be read."""
    try:
        content = file.read_bytes()
        written = msgspec.json.decode(content, type=_Versioned).schema
        if written != SCHEMA:
            raise BadFileError(f"{file} has schema {written!r}, this program reads {SCHEMA!r}")
        return msgspec.json.decode(content, type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFileError(f"{file} cannot be read: {error}") from error


def schema() -> bytes:
    """The JSON Schema of an entry, docs/library.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA}
    title = {"title": "One file of a library of tuned configs"}
    description = head | title | msgspec.json.schema(Entry)
    return msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n"
