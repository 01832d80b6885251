"""Files the tuned config of a run in a library, each pick by what it is for."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher import library
from launcher.deploy.tuned import TunedResults, configs, provenance
from launcher.errors import UserError
from launcher.library import Entry, Key, Tuned
from launcher.store.files import write_atomic


def publish(tuned: TunedResults, folder: Path) -> tuple[Path, dict[str, str]]:
    """Files a complete run. Returns the key's file, and by pick what was done. UserError when it may not be filed."""
    if tuned.missing_parts:
        raise UserError(
            f"only complete runs are published: {tuned.missing_parts[0]}",
            hint="python -m launcher.resume RUN completes it; a final needs search.final_groups",
        )
    search = tuned.results.search
    if not search.is_round_trip:
        raise UserError(
            f"only runs that minimise the round trip are published; this one's search.objective is {search.objective}",
            hint="RUN's exports can be used anyway: python -m launcher.export RUN",
        )
    new = entry(tuned)
    file = folder / new.key.file_name(new.routing)
    try:
        with _hold_lock(folder):
            old = library.read(file) if file.exists() else None
            merged, done = (new, dict.fromkeys(new.picks, "filed")) if old is None else _merge(old, new)
            if merged != old:
                write_atomic(file, msgspec.json.format(msgspec.json.encode(merged), indent=2) + b"\n")
    except library.BadFileError as error:
        raise UserError(str(error), hint="move it away, or use the version of the program that wrote it") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", hint="--library DIR") from None
    return file, done


def entry(tuned: TunedResults) -> Entry:
    """The library's entry for tuned results."""
    workload = tuned.workload
    return Entry(
        schema=library.SCHEMA,
        key=Key(
            gpu=tuned.device,
            ep=tuned.ep,
            hidden=workload.hidden,
            num_experts=workload.num_experts,
            num_topk=workload.num_topk,
            num_tokens=workload.num_tokens,
            dtype=str(workload.dtype),
            deep_ep=tuned.deep_ep,
        ),
        routing=workload.routing,
        measured=tuned.results.ended or "unknown",
        verdict=tuned.verdict.kind,
        picks={name: _make_pick(tuned, name) for name in tuned.picks},
        provenance=provenance(tuned, "fastest"),
    )


def _make_pick(tuned: TunedResults, pick: str) -> Tuned:
    pair = tuned.pair(pick)
    overlap = tuned.overlap_of(pair)
    return Tuned(
        **configs(pair),
        round_trip_us=pair.round_trip_us,
        ci95_us=pair.round_trip_ci95_us,
        overlapped_us=None if overlap is None else overlap.makespan_us,
        overlapped_ci95_us=None if overlap is None else overlap.ci95_us,
        timing=tuned.results.timing,
        provenance=provenance(tuned, pick),
    )


def _merge(old: Entry, new: Entry) -> tuple[Entry, dict[str, str]]:
    """The better of each pick, and by pick what was done."""
    is_new, done = {}, {}
    for name in dict.fromkeys([*old.picks, *new.picks]):
        is_new[name], done[name] = _decide(name, old.picks.get(name), new.picks.get(name))
    if is_new["fastest"] and "knee" in new.picks:
        is_new["knee"], done["knee"] = True, "filed with fastest"
    head = new if is_new["fastest"] else old
    picks = {name: (new if taken else old).picks[name] for name, taken in is_new.items()}
    return msgspec.structs.replace(head, picks=picks), done


def _decide(name: str, old: Tuned | None, new: Tuned | None) -> tuple[bool, str]:
    """Whether the new one of a pick is taken, and why."""
    if new is None or old is None:
        return old is None, "filed: there was none" if old is None else "kept: this run has none"
    if name == "knee":
        return False, "kept with fastest"
    if name == "overlapped" and new.timing != old.timing:  # two quantities of one name
        is_newer = new.timing > old.timing
        return is_newer, "filed: it is timed in a newer way" if is_newer else "kept: this run is timed in an older way"
    return _compare(_time(name, old), _time(name, new))


def _compare(old: _Time | None, new: _Time | None) -> tuple[bool, str]:
    """Whether the new time is faster with disjoint intervals, and a sentence on both."""
    if old is None or new is None:
        is_better = new is not None
        return is_better, "filed: it has an overlapped time" if is_better else "kept: this run has no overlapped time"
    if new.ends[1] < old.ends[0]:
        return True, f"filed: {new} is faster than the {old} on file"
    if old.ends[1] < new.ends[0]:
        return False, f"kept the {old} on file: this run's {new} is slower"
    return False, f"kept the {old} on file: this run's {new} is indistinguishable from it"


class _Time(NamedTuple):
    median_us: float
    ends: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.median_us:.1f} us ({self.ends[0]:.1f} to {self.ends[1]:.1f})"


def _time(name: str, pick: Tuned) -> _Time | None:
    """The time by which picks of this name are compared; None where it was not measured."""
    if name != "overlapped":
        return _Time(pick.round_trip_us, pick.ci95_us)
    if pick.overlapped_us is None or pick.overlapped_ci95_us is None:
        return None
    return _Time(pick.overlapped_us, pick.overlapped_ci95_us)


@contextlib.contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    """Only one process at a time reads and replaces entries; readers need no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
