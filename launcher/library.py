"""A folder of tuned configs, one JSON file for each key, and how a framework finds its own at start-up.

Light on purpose: the standard library and msgspec, no torch, no deep_ep. ``python -m launcher.publish`` fills the
folder; docs/library.schema.json describes a file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Final, Literal

import msgspec

SCHEMA: Final = "deepep-sweep/library/1"


class Key(msgspec.Struct, frozen=True):
    """What a tuned config depends on. ``gpu`` as in ``torch.cuda.get_device_name()``; ``num_tokens`` is per rank.

    ``deep_ep`` is the distribution and its version, as in ``tokenspeed-deepep 1.2.1.post20251110``.
    """

    gpu: str
    ep: int
    hidden: int
    num_experts: int
    num_topk: int
    num_tokens: int
    dtype: str
    deep_ep: str

    @property
    def file_name(self) -> str:
        """A readable name, made unique by a hash of the whole key, since a GPU may be called anything."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower())[:40].strip("-")
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]
        return (
            f"{gpu}-ep{self.ep}-{self.dtype}-hidden{self.hidden}-experts{self.num_experts}-top{self.num_topk}"
            f"-tokens{self.num_tokens}-{digest}.json"
        )

    def same_but_tokens(self, other: Key) -> bool:
        """Whether a config of one may serve the other; the version of deep_ep is left to the caller."""
        return self == msgspec.structs.replace(other, num_tokens=self.num_tokens, deep_ep=self.deep_ep)

    def __str__(self) -> str:
        return (
            f"{self.gpu}, EP={self.ep}, hidden {self.hidden}, {self.num_experts} experts, top-{self.num_topk}, "
            f"{self.num_tokens} tokens, {self.dtype}"
        )


class Tuned(msgspec.Struct, frozen=True):
    """One pair: keyword arguments of ``deep_ep.Config`` for each operation, and how long both take together."""

    dispatch: dict[str, int]
    combine: dict[str, int]
    round_trip_us: float
    ci95_us: tuple[float, float]


class Entry(msgspec.Struct, frozen=True):
    """One file of the library. ``picks`` always has ``fastest``; ``provenance`` is for people."""

    schema: Literal["deepep-sweep/library/1"]
    key: Key
    routing: str
    measured: str
    verdict: str
    picks: dict[str, Tuned]
    provenance: dict[str, str]

    @property
    def best(self) -> Tuned:
        """What two entries of one key are compared by."""
        return self.picks["fastest"]


class Loaded(msgspec.Struct, frozen=True):
    """A tuned config that was found; ``deep_ep.Config(**loaded.dispatch)``.

    ``match`` is ``exact``, or says in words what differs between ``asked`` and what was found, ``entry.key``.
    """

    dispatch: dict[str, int]
    combine: dict[str, int]
    match: str
    entry: Entry
    file: Path


class NotTuned(LookupError):
    """The library has nothing that fits; the message says what it has."""


class BadFile(ValueError):
    """A file of the library that cannot be read, or that a newer version wrote."""


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
    deep_ep: str | None = None,
    pick: str = "fastest",
) -> Loaded:
    """The tuned config of this key, or that of the nearest number of tokens; ``match`` says which.

    Everything but ``num_tokens`` and ``deep_ep`` has to be equal. An entry of the same ``deep_ep`` goes before one of
    nearer tokens; another version is taken rather than none, and said. Nearest is by ratio. NotTuned if nothing fits,
    BadFile if a file cannot be read.

        found = load_tuned_config("library", gpu=torch.cuda.get_device_name(), ep=4, hidden=7168, num_experts=256,
                                  num_topk=8, num_tokens=4096)
        print(found.match)                                # exact, or: nearest tokens: asked 3000, found 4096
        dispatch = deep_ep.Config(**found.dispatch)
    """
    asked = Key(gpu, ep, hidden, num_experts, num_topk, num_tokens, dtype, deep_ep or "")
    entries = read_all(Path(library))
    fitting = [one for one in entries.items() if one[1].key.same_but_tokens(asked) and pick in one[1].picks]
    if not fitting:
        raise NotTuned(_nothing(asked, pick, list(entries.values())))
    newest_first = sorted(fitting, key=lambda one: one[1].measured, reverse=True)
    file, entry = min(newest_first, key=lambda one: _distance(asked, one[1].key))
    tuned = entry.picks[pick]
    return Loaded(tuned.dispatch, tuned.combine, _match(asked, entry.key), entry, file)


def _distance(asked: Key, found: Key) -> tuple[bool, float]:
    other_version = asked.deep_ep not in ("", found.deep_ep)
    return other_version, abs(math.log(max(asked.num_tokens, 1) / max(found.num_tokens, 1)))


def _match(asked: Key, found: Key) -> str:
    said = []
    if asked.num_tokens != found.num_tokens:
        said.append(f"nearest tokens: asked {asked.num_tokens}, found {found.num_tokens}")
    if asked.deep_ep != found.deep_ep:
        said.append(f"deep_ep: asked {asked.deep_ep or 'for no version'}, found {found.deep_ep}")
    return "; ".join(said) or "exact"


def _nothing(asked: Key, pick: str, entries: list[Entry]) -> str:
    known = sorted({f"{entry.key} ({', '.join(entry.picks)})" for entry in entries})
    return f"no tuned config for {asked} ({pick}); the library has {'; '.join(known) or 'nothing'}"


def read_all(library: Path) -> dict[Path, Entry]:
    """Every entry by its file; none where there is no such folder. BadFile for what is no entry."""
    return {file: read(file) for file in sorted(library.glob("*.json"))}


class _Versioned(msgspec.Struct, frozen=True):
    schema: str = ""


def read(file: Path) -> Entry:
    """One entry; BadFile when it cannot be read."""
    try:
        content = file.read_bytes()
        schema = msgspec.json.decode(content, type=_Versioned).schema
        if schema != SCHEMA:
            raise BadFile(f"{file} has schema {schema!r}, this program reads {SCHEMA!r}")
        return msgspec.json.decode(content, type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFile(f"{file} cannot be read: {error}") from error
