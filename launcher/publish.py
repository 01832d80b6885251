"""Files the tuned config of a run in a library, where frameworks find it at start-up.

  python -m launcher.publish RUN [--library DIR]

RUN is a run folder, or a RESULTS_EP<n>.json. DIR is a folder of JSON files, one for each key: GPU, EP, hidden, experts,
top-k, tokens, dtype, version of deep_ep. It is made when there is none; without --library it is outputs/library.

Where the key is on file already, the faster result stays if the two can be told apart: if the 95 % intervals of the
fastest pair's round trip (final stage, sums of the ends of its two operations) do not overlap. If they do, what is on
file stays. Several commands may publish into one folder at once. The path of the key's file is printed, what was done
goes to stderr.

For example:
  python -m launcher.publish outputs/20261123-000120-a1b2c3
  python -m launcher.publish RESULTS_EP4.json --library /shared/deepep-library

  from launcher.library import load_tuned_config       # in the framework, see docs/APPLY.md

Exit status: 0 filed, or what is on file stays; 2 refused: a dry run, shared GPUs, a run that is not whole, a key
that is on file for another routing.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from launcher import answer, library
from launcher.answer import Answer
from launcher.errors import OK, USAGE, Parser, UserError
from launcher.library import Entry, Key, Tuned
from launcher.store import write_atomic

DEFAULT_LIBRARY = Path("outputs/library")


def publish(found: Answer, folder: Path) -> tuple[Path, str]:
    """Files a whole result; the key's file, and what was done, as a sentence. UserError when it may not be filed."""
    if found.lacks:
        raise UserError(
            f"only whole runs are published: {found.lacks[0]}",
            hint="python -m launcher.resume RUN completes it; a final needs search.final_groups",
        )
    new = entry(found)
    file = folder / new.key.file_name
    try:
        with _alone(folder):
            old = library.read(file) if file.exists() else None
            stays = None if old is None else _stays(old, new)
            if stays is None:
                write_atomic(file, msgspec.json.format(msgspec.json.encode(new), indent=2) + b"\n")
    except library.BadFile as error:
        raise UserError(str(error), hint="move it away, or use the version of the program that wrote it") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", hint="--library DIR") from None
    return file, stays or ("filed" if old is None else f"filed: faster than the {_time(old)} that were on file")


def entry(found: Answer) -> Entry:
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
        picks={
            name: Tuned(**pair.configs, round_trip_us=pair.round_trip_us, ci95_us=pair.round_trip_ci95_us)
            for name, pair in found.picks.items()
        },
        provenance=answer.provenance(found, "fastest"),
    )


def _stays(old: Entry, new: Entry) -> str | None:
    """Why the old one stays; None when the new one is significantly faster. UserError when they are not comparable."""
    if old.routing != new.routing:
        raise UserError(
            f"this key is on file for routing {old.routing}, this run has {new.routing}", hint="use another --library"
        )
    if new.best.ci95_us[1] < old.best.ci95_us[0]:
        return None
    if old.best.ci95_us[1] < new.best.ci95_us[0]:
        return f"kept what is on file: {_time(old)}, this run is slower: {_time(new)}"
    return f"kept what is on file: {_time(old)}, and this run's {_time(new)} cannot be told from it"


def _time(one: Entry) -> str:
    return f"{one.best.round_trip_us:.1f} us ({one.best.ci95_us[0]:.1f} to {one.best.ci95_us[1]:.1f})"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Between reading and replacing nobody else may publish; readers need no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "-h" in given or "--help" in given:
        print(__doc__)
        return OK if given else USAGE
    parser = Parser("launcher.publish")
    parser.add_argument("run", type=Path)
    parser.add_argument("--library", type=Path, default=DEFAULT_LIBRARY)
    try:
        found = parser.parse_args(given)
        file, done = publish(answer.read(answer.locate(found.run)), found.library)
    except UserError as error:
        error.show()
        return USAGE
    print(done, file=sys.stderr)
    print(file)
    return OK


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
