"""Arguments of small sweeps, and the records in their run folders."""

from __future__ import annotations

from pathlib import Path

from bench.records import Record
from launcher.store.records_file import read_lines
from launcher.store.run_folder import RunFolder

SMALL = (
    "-m",
    "ep=2",
    "workload=small",
    "measure=quick",
    "grid=smoke",
    "hardware=cpu",
    "workload.num_tokens=32",
    "search.rounds=1",
    "search.final_groups=0",
)


def records_of(folder: Path) -> list[Record]:
    lines, damaged = read_lines(RunFolder.open(folder))
    assert damaged == []
    return [line for line in lines if isinstance(line, Record)]


FAULT = "faults=['wrong_token@1:dispatch/bf16/num_slices=4,num_in_flight=2']"
