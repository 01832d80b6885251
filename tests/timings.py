"""The speed of the program itself (make bench): prints figures of this machine and asserts nothing.

Times depend on the machine; ratios within one run do not, so each figure with a target is also given as a ratio.
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

from bench.records import Environment, Host, Line, Measured, Record, Stage, Traffic, encode
from launcher.config import planning
from launcher.config.plan import Plan, Planned
from launcher.store.run_folder import RunFolder
from tests.builders import spec


def main() -> None:
    """Prints every figure on a line."""
    for name, value in (*_command(), *_planning(), *_aggregating(), *_submitting()):
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
            later["started"] - earlier["started"] - earlier["wall_s"] for earlier, later in itertools.pairwise(records)
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
        plan = _plan(count)
        times[count] = (time.monotonic() - began) / len(plan.every_point)
        yield f"planning {len(plan.every_point)} points, s", f"{times[count] * len(plan.every_point):.2f}"
    yield "planning, time a point at 100,000 over that at 10,000", f"{times[100_000] / times[10_000]:.2f}"


def _aggregating() -> Iterator[tuple[str, str]]:
    """Times for ten repetitions of each point, in three sizes of up to a million records."""
    times = {}
    for points in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            run, count = _written(_plan(points), Path(folder))
            seconds, megabytes = _aggregated(run)
            times[points] = seconds / count
            yield f"aggregating {count} records of {points // 100} shards, s", f"{seconds:.1f}"
            yield "its memory with its readers at most, MB", f"{megabytes:.0f}"
    yield "aggregating, time a record at 1,000,000 over that at 100,000", f"{times[100_000] / times[10_000]:.2f}"


def _submitting() -> Iterator[tuple[str, str]]:
    """Times on a real Slurm on this machine, if its packages are installed."""
    from tests.slurm import slurmlab, sweeps

    if slurmlab.missing():
        yield "submitting", f"not installed: {', '.join(slurmlab.missing())}"
        return
    with slurmlab.SlurmLab(accounting=False, auth="none") as lab, tempfile.TemporaryDirectory() as folder:
        lab.command("scontrol", "update", "partitionname=low", "state=down")
        cells = f"grid.num_slices={list(range(1, 61))}".replace(" ", "")
        began = time.monotonic()
        run = sweeps.begin_detached(
            lab, Path(folder) / "many", "shard.count=100", cells, "hydra.launcher.partition=low"
        )
        yield "submitting 100 shards and what follows them, s", f"{time.monotonic() - began:.1f}"
        lab.command("scancel", *(one["array_id"] for one in sweeps.submissions(run)))
        lab.reset()
        began = time.monotonic()
        done = sweeps.sweep(lab, Path(folder) / "four", "shard.count=4")
        wall_s = time.monotonic() - began
        own_s = sum(line["wall_s"] for line in sweeps.lines(done.folder))
        yield "four tiny shards from command to report, s (their points alone)", f"{wall_s:.1f} ({own_s:.1f})"


def _written(plan: Plan, outputs: Path) -> tuple[RunFolder, int]:
    """A run folder with ten records of each point, and their number."""
    run = RunFolder.create(plan, outputs=outputs, path=None, command=["bench"])
    num_shards = len(plan.every_point) // 100
    for shard in range(num_shards):
        run.shard(shard).mkdir(parents=True)
        lines = _lines(plan.every_point[shard::num_shards], shard)
        run.records_file(shard).write_bytes(b"\n".join(encode(line) for line in lines) + b"\n")
    return run, 10 * len(plan.every_point)


def _aggregated(run: RunFolder) -> tuple[float, float]:
    """Wall time of the command in s, and the peak memory of all its processes together in MB."""
    began = time.monotonic()
    peak = 0.0
    with subprocess.Popen(
        [sys.executable, "-m", "launcher.aggregate", str(run.path)], stdout=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            peak = max(peak, _memory_mb(process.pid))
            time.sleep(0.1)
    return time.monotonic() - began, peak


def _memory_mb(pid: int) -> float:
    """The memory of a process and its children in MB; shared pages count once (proportional set size)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    own_kb = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own_kb / 1000 + sum(_memory_mb(int(child)) for child in children)


def _lines(points: list[Planned], shard: int) -> Iterator[Line]:
    environment = Environment("NVIDIA H200", 4, 4, False, 132, None, 18, 25.0, None, None, {})
    yield environment
    yield Host("bench", 0, 0.0, 0.0, [], "3", shard=shard)
    yield Traffic([[3700] * 4 for _ in range(4)])
    generator = np.random.default_rng(shard)
    for number, (turn, planned) in enumerate(itertools.product(range(10), points)):
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
            round=turn,
            shard=shard,
            sequence=number,
        )


if __name__ == "__main__":
    main()
