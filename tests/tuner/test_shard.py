"""A shard of a sweep: its budget and its resumption."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from bench.records import (
    Failed,
    Line,
    Measured,
    Op,
    Role,
)
from bench.supervisor import StartError
from launcher.config import planning
from launcher.config.plan import FINAL
from launcher.store.records_file import open_appender, read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard
from tests.builders import ENVIRONMENT, HOST, SELF_CHECK, complete, record, spec
from tests.tuner.machine import Machine, make_plan

STARTS_RANKS = pytest.mark.usefixtures("on_cpus")


def test_the_budget_is_spent_by_earlier_attempts_too_but_not_by_the_time_between_them() -> None:
    plan = make_plan(sms=[16], chunks=[8], budget_s=100.0)
    cell = plan.cells[0]

    def attempt(began: float) -> list[Line]:
        """20 s: 9 s of start-up, 6 s of self test, two repetitions of 2 s with 1 s between them."""
        repetitions = [record(cell, [1.0], started=began + after, wall_s=2.0) for after in (15.0, 18.0)]
        return [ENVIRONMENT, msgspec.structs.replace(HOST, started=began, startup_s=9.0), SELF_CHECK, *repetitions]

    once, twice = attempt(1000.0), [*attempt(1000.0), *attempt(90_000.0)]
    compiled = [msgspec.structs.replace(line, compile_s=5.0) if line is once[1] else line for line in once]
    assert shard.left_s(plan, compiled, share=0.6) == 35
    never_measured = [*once, msgspec.structs.replace(HOST, started=90_000.0, startup_s=9.0)]
    assert [shard.left_s(plan, lines, share=0.6) for lines in ([], once, twice, never_measured)] == [60, 40, 20, 31]
    unlimited = make_plan(sms=[16], chunks=[8])
    assert shard.left_s(unlimited, twice, share=0.6) == math.inf


@pytest.mark.parametrize("index", [0, FINAL])
def test_a_shard_with_a_spent_budget_measures_nothing_when_it_is_repeated(tmp_path: Path, index: int) -> None:
    plan = make_plan(sms=[16], chunks=[8, 12], budget_s=10.0)
    folder = RunFolder.create(plan, outputs=tmp_path, path=None, command=[])
    with open_appender(folder, 0) as appender:
        for line in [msgspec.structs.replace(HOST, startup_s=9.0), *Machine(plan).sweep()[:9]]:
            appender.add(line)
    with open_appender(folder, FINAL) as appender:
        appender.add(msgspec.structs.replace(HOST, startup_s=9.0, shard=FINAL))
    before = folder.records_file(index).read_bytes()
    assert not (final.run(folder) if index == FINAL else shard.run(folder, 0))
    assert folder.records_file(index).read_bytes() == before


SWEEP = [
    *("hardware=cpu", "backend=alltoall", "ep=2", "workload=small", "workload.num_tokens=64", "measure=quick"),
    *("grid.num_slices=[1,2]", "grid.num_in_flight=[1]", "search.rounds=2"),
]


class StopAfter:
    """Becomes true after this many calls; it is called before each task and before each round."""

    def __init__(self, times: int) -> None:
        self._left = times

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


@STARTS_RANKS
@pytest.mark.parametrize("index", [0, FINAL])
def test_a_shard_that_is_resumed_numbers_its_records_and_processes_on(tmp_path: Path, index: int) -> None:
    folder = RunFolder.create(
        planning.make(spec(*SWEEP, "search.final_groups=2")), outputs=tmp_path, path=None, command=[]
    )
    run: Callable[..., bool] = final.run if index == FINAL else partial(shard.run, index=0)
    if index == FINAL:
        assert shard.run(folder, 0)
    assert not run(folder, stop=StopAfter(4))
    before = read_shard_records(folder, index)
    assert run(folder)
    records = read_shard_records(folder, index)
    assert [one.sequence for one in records] == list(range(len(records)))
    assert {one.group for one in before} < {one.group for one in records}
    assert min(one.group for one in records[len(before) :]) > max(one.group for one in before)
    assert run(folder)
    assert read_shard_records(folder, index) == records


@STARTS_RANKS
def test_a_point_that_fails_in_the_final_is_neither_repeated_nor_waited_for(tmp_path: Path) -> None:
    settings = ("search.final_groups=2", "faults=['exception@0:dispatch_full/bf16/num_slices=2']")
    folder = RunFolder.create(planning.make(spec(*SWEEP, *settings)), outputs=tmp_path, path=None, command=[])
    assert shard.run(folder, 0)
    assert final.run(folder)
    grid = [one for one in read_shard_records(folder, FINAL) if one.role is Role.GRID]  # what was off is there again
    records = [one for one in grid if one.point.op is Op.DISPATCH_FULL]
    outcomes = {
        slices: [type(one.outcome) for one in records if one.point.knobs["num_slices"] == slices] for slices in (1, 2)
    }
    assert outcomes == {1: [Measured, Measured], 2: [Failed]}


@STARTS_RANKS
def test_a_shard_that_hangs_ends_with_its_budget(tmp_path: Path) -> None:
    patient = ("measure.deadline_s=30", "measure.startup_s=30")
    settings = ("search.final_groups=0", "search.budget_s=8", *patient, "faults=['hang@0:num_slices=']")
    folder = RunFolder.create(planning.make(spec(*SWEEP, *settings)), outputs=tmp_path, path=None, command=[])
    assert not shard.run(folder, 0)
    assert not [one for one in read_shard_records(folder, 0) if isinstance(one.outcome, Failed)]


@pytest.mark.parametrize("index", [0, FINAL])
def test_a_node_that_lacks_what_a_library_needs_fails_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    monkeypatch.setenv("NCCL_CUMEM_ENABLE", "0")  # where nothing else is missing
    grid = {"num_sms": [16], "tokens_per_chunk": [64], "num_stages": [8], "num_pipelines": [2]}
    plan = planning.make(msgspec.structs.replace(spec("search=racing"), backend="nccl_ep", grid=grid))
    folder = RunFolder.create(plan, outputs=tmp_path, path=None, command=[])
    if index == FINAL:
        with open_appender(folder, 0) as appender:
            for line in complete(plan):
                appender.add(line)
    with pytest.raises(StartError, match=r"^nccl_ep cannot run on \S+: [^;]+; .+$"):
        final.run(folder) if index == FINAL else shard.run(folder, 0)
    assert not read_shard_records(folder, index)
