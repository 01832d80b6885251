"""How fast the program itself is (make bench): prints figures of this machine, asserts nothing.

Times depend on the machine; ratios within one run do not, so each figure that has a target is also given as one.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.records import Environment, Host, Line, Measured, Record, Stage, Traffic
from launcher import plan as planning
from launcher.aggregate import aggregate
from launcher.plan import Plan
from launcher.store import RunFolder
from tests.builders import spec


def main() -> None:
    """Every figure, a line each."""
    for name, value in (*_command(), *_planning(), *_aggregating()):
        print(f"{name:<64} {value}", flush=True)


def _seconds(*command: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return time.monotonic() - began


def _command() -> Iterator[tuple[str, str]]:
    bare = min(_seconds("this") for _ in range(3))
    manual = min(_seconds("launcher.sweep", "--help") for _ in range(3))
    yield "--help, s (and in units of a bare interpreter)", f"{manual:.2f} ({manual / bare:.1f}x)"
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "launcher.sweep", "-m", f"outputs={folder}"],
            check=True,
            capture_output=True,
            text=True,
        )
        run = Path(done.stdout.strip()).parent
        lines = [json.loads(line) for line in (run / "shards/0000/records.jsonl").read_text().splitlines()]
        records = [line for line in lines if line["type"] == "record"]
        overhead = sorted(record["wall_s"] - record.get("busy_s", 0.0) for record in records)[len(records) // 2]
        between = sorted(
            later["started"] - one["started"] - one["wall_s"] for one, later in itertools.pairwise(records)
        )[len(records) // 2]
        yield "command to first measured point, s", f"{records[0]['started'] + records[0]['wall_s'] - began:.1f}"
        yield "a point's time outside warm-up and samples, ms", f"{1000 * (overhead + between):.1f}"
        yield "the whole dry run, s", f"{time.time() - began:.1f}"


def _plan(num_points: int) -> Plan:
    chunks = list(range(1, num_points // 4 // 60 + 1))
    return planning.make(
        spec(
            f"grid.num_sms={list(range(4, 124, 2))}",
            f"grid.nvl_chunk={chunks}",
            "grid.nvl_buffer=[1024,1100]",
            "search.own_tuning=false",
            "search.final_groups=0",
            "search.rounds=1",
        )
    )


def _planning() -> Iterator[tuple[str, str]]:
    times = {}
    for count in (10_000, 100_000):
        began = time.monotonic()
        made = _plan(count)
        times[count] = (time.monotonic() - began) / len(made.every_point)
        yield f"planning {len(made.every_point)} points, s", f"{times[count] * len(made.every_point):.2f}"
    yield "planning, time a point at 100,000 over that at 10,000", f"{times[100_000] / times[10_000]:.2f}"


def _aggregating() -> Iterator[tuple[str, str]]:
    times = {}
    for count in (2_000, 8_000, 32_000):
        with tempfile.TemporaryDirectory() as folder:
            made = _plan(count)
            run = RunFolder.create(made, outputs=Path(folder), path=None, command=["bench"])
            run.shard(0).mkdir(parents=True)
            with run.appender(0) as appender:
                for line in _lines(made):
                    appender.add(line)
            began = time.monotonic()
            aggregate(run)
            times[count] = (time.monotonic() - began) / len(made.every_point)
            yield f"aggregating {len(made.every_point)} records, s", f"{times[count] * len(made.every_point):.2f}"
    yield "aggregating, time a record at 32,000 over that at 8,000", f"{times[32_000] / times[8_000]:.2f}"


def _lines(made: Plan) -> Iterator[Line]:
    environment = Environment("NVIDIA H200", 4, 4, False, 132, None, 18, 25.0, None, None, {})
    yield environment
    yield Host("bench", 0, 0.0, 0.0, [], "3")
    yield Traffic([[3700] * 4 for _ in range(4)])
    generator = np.random.default_rng(0)
    for number, planned in enumerate(made.every_point):
        samples = (1000 * (1 + generator.random(8))).round(3).tolist()
        yield Record(
            point=planned.point,
            point_id=planned.id,
            outcome=Measured(samples, samples[:4]),
            environment=environment.id,
            started=float(number),
            wall_s=0.01,
            role=planned.role,
            stage=Stage.SWEEP,
            sequence=number,
        )


if __name__ == "__main__":
    main()
