"""Files the tuned config of a run in a library, each pick by what it is for."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher import library
from launcher.deploy import tuned
from launcher.deploy.tuned import TunedResults
from launcher.errors import UserError
from launcher.library import Entry, Key, Tuned
from launcher.store.files import write_atomic


def publish(found: TunedResults, folder: Path) -> tuple[Path, dict[str, str]]:
    """Files a whole result; the key's file, and by pick what was done. UserError when it may not be filed."""
    if found.missing_parts:
        raise UserError(
            f"only whole runs are published: {found.missing_parts[0]}",
            hint="python -m launcher.resume RUN completes it; a final needs search.final_groups",
        )
    if not found.search.is_round_trip:
        raise UserError(
            f"only runs that minimise the round trip are published, this one's search.objective is "
            f"{found.search.objective}",
            hint="RUN's exports can be used all the same: python -m launcher.export RUN",
        )
    new = entry(found)
    file = folder / new.key.file_name(new.routing)
    try:
        with _alone(folder):
            old = library.read(file) if file.exists() else None
            merged, done = (new, dict.fromkeys(new.picks, "filed")) if old is None else _merged(old, new)
            if merged != old:
                write_atomic(file, msgspec.json.format(msgspec.json.encode(merged), indent=2) + b"\n")
    except library.BadFileError as error:
        raise UserError(str(error), hint="move it away, or use the version of the program that wrote it") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", hint="--library DIR") from None
    return file, done


def entry(found: TunedResults) -> Entry:
    """The entry of an answer."""
    workload = found.workload
    return Entry(
        schema=library.SCHEMA,
        key=Key(
            gpu=found.environment.device,
            ep=found.ep,
            hidden=workload.hidden,
            num_experts=workload.num_experts,
            num_topk=workload.num_topk,
            num_tokens=workload.num_tokens,
            dtype=str(workload.dtype),
            deep_ep=found.deep_ep,
        ),
        routing=workload.routing,
        measured=found.ended or "unknown",
        verdict=found.verdict.kind,
        picks={name: _tuned(found, name) for name in found.picks},
        provenance=tuned.provenance(found, "fastest"),
    )


def _tuned(found: TunedResults, pick: str) -> Tuned:
    pair = found.pair(pick)
    beside = found.beside(pair)
    return Tuned(
        **pair.configs,
        round_trip_us=pair.round_trip_us,
        ci95_us=pair.round_trip_ci95_us,
        beside_gemms_us=None if beside is None else beside.makespan_us,
        beside_gemms_ci95_us=None if beside is None else beside.ci95_us,
        timing=found.timing,
        provenance=tuned.provenance(found, pick),
    )


def _merged(old: Entry, new: Entry) -> tuple[Entry, dict[str, str]]:
    """The better of each pick, and by pick what was done."""
    faster, done = {}, {}
    for name in dict.fromkeys([*old.picks, *new.picks]):
        faster[name], done[name] = _judged(name, old.picks.get(name), new.picks.get(name))
    if faster["fastest"] and "knee" in new.picks:
        faster["knee"], done["knee"] = True, "filed with fastest"
    head = new if faster["fastest"] else old
    picks = {name: (new if is_faster else old).picks[name] for name, is_faster in faster.items()}
    return msgspec.structs.replace(head, picks=picks), done


def _judged(name: str, old: Tuned | None, new: Tuned | None) -> tuple[bool, str]:
    """Whether the new one of a pick is taken, and why."""
    if new is None or old is None:
        return old is None, "filed: there was none" if old is None else "kept: this run has none"
    if name == "knee":
        return False, "kept with fastest"
    if name == "overlapped" and new.timing != old.timing:  # two things that share a name
        is_newer = new.timing > old.timing
        return is_newer, "filed: it is timed in a newer way" if is_newer else "kept: this run is timed in an older way"
    return _faster(_time(name, old), _time(name, new))


def _faster(known: _Time | None, found: _Time | None) -> tuple[bool, str]:
    """Whether the new time is surely the better one, and what is said of both."""
    if known is None or found is None:
        is_better = found is not None
        return is_better, "filed: it is timed beside GEMMs" if is_better else "kept: this run has no time beside GEMMs"
    if found.ends[1] < known.ends[0]:
        return True, f"filed: {found} is faster than the {known} on file"
    if known.ends[1] < found.ends[0]:
        return False, f"kept the {known} on file: this run's {found} is slower"
    return False, f"kept the {known} on file: this run's {found} cannot be told from it"


class _Time(NamedTuple):
    median_us: float
    ends: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.median_us:.1f} us ({self.ends[0]:.1f} to {self.ends[1]:.1f})"


def _time(name: str, one: Tuned) -> _Time | None:
    """What a pick is judged by; None where it was not measured."""
    if name != "overlapped":
        return _Time(one.round_trip_us, one.ci95_us)
    if one.beside_gemms_us is None or one.beside_gemms_ci95_us is None:
        return None
    return _Time(one.beside_gemms_us, one.beside_gemms_ci95_us)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Between reading and replacing nobody else may publish; readers need no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
