"""Every failure of a rank becomes a record, and the other points are measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import pytest

from bench import supervisor
from bench.backends import sessions
from bench.faults import Fault
from bench.protocol import GroupSpec
from bench.records import (
    Dtype,
    Environment,
    Failed,
    FailureKind,
    Host,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    Traffic,
)
from bench.supervisor import Effort, StartError, Supervisor, Task
from bench.workload import token_matrix
from launcher import aggregate, sweep
from launcher.jobs import inline
from tests.builders import ROOT, calling, small_workload

EFFORT = Effort(warmup=1, iterations=5, deadline_s=2.0, startup_s=120.0)


pytestmark = pytest.mark.usefixtures("on_cpus")


def point(op: Op, num_slices: int, dtype: Dtype = Dtype.BF16) -> Point:
    dtype = Dtype.BF16 if op is Op.COMBINE else dtype
    return Point("alltoall", op, dtype, {"num_slices": num_slices, "num_in_flight": 1})


def task(what: Point, role: Role = Role.GRID) -> Task:
    return Task(what, what.label, role)


def group_spec(*faults: str, device: str = "cpu", dtype: Dtype = Dtype.BF16) -> GroupSpec:
    points = [point(op, slices, dtype) for op in (Op.DISPATCH, Op.COMBINE) for slices in range(1, 9)]
    workload = small_workload(dtype=dtype)
    return GroupSpec(
        2, device, shared_gpus=False, workload=workload, points=points, faults=list(map(Fault.parse, faults))
    )


def children(parent: int) -> set[int]:
    """The ranks that run for this process: children of its forkserver."""
    states = {int(folder.name): state_of(folder) for folder in Path("/proc").iterdir() if folder.name.isdigit()}
    forkservers = {pid for pid, state in states.items() if state.parent == parent}
    return {pid for pid, state in states.items() if state.is_rank and state.parent in forkservers}


class State(NamedTuple):
    """The state of a process in /proc."""

    is_rank: bool
    parent: int


def state_of(folder: Path) -> State:
    """The state of a process; neither a zombie nor a finished process counts as a rank."""
    try:
        name, _, rest = (folder / "stat").read_text().partition(") ")
    except OSError:
        return State(is_rank=False, parent=0)
    state, parent = rest.split()[:2]
    return State(is_rank="(rank " in name and state != "Z", parent=int(parent))


class Outcome(NamedTuple):
    """The lines and records from a supervisor."""

    lines: list[Line]
    yielded: list[Record]

    @property
    def records(self) -> list[Record]:
        return [line for line in self.lines if isinstance(line, Record)]

    def of(self, op: Op, num_slices: int) -> Measured | Failed:
        records = [
            record
            for record in self.records
            if record.role is Role.GRID and record.point.op is op and record.point.knobs["num_slices"] == num_slices
        ]
        assert len(records) == 1
        return records[0].outcome

    def failed(self, op: Op, num_slices: int) -> Failed:
        outcome = self.of(op, num_slices)
        assert isinstance(outcome, Failed)
        return outcome


def supervised(
    folder: Path,
    spec: GroupSpec,
    tasks: list[Task],
    *,
    effort: Effort = EFFORT,
    lines: list[Line] | None = None,
    **settings: Any,
) -> Outcome:
    """The outcome of the anchor and the tasks, with the anchors of both operations as references."""
    lines = [] if lines is None else lines
    anchors = (task(spec.points[0], Role.ANCHOR), task(point(Op.COMBINE, 1), Role.ANCHOR))
    supervisor = Supervisor(spec, effort, anchors=anchors[:1], sink=lines.append, log_folder=folder, **settings)
    measured = [anchors[0], *(msgspec.structs.replace(one, references=anchors) for one in tasks)]
    return Outcome(lines, list(supervisor.run(measured)))


@pytest.fixture(scope="module", params=list(Dtype))
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A shard in which four of nine points go wrong, each in its own way."""
    spec = group_spec(
        f"hang@1:dispatch/{request.param}/num_slices=2,",
        "segfault@1:num_slices=3,",
        "exception@1:num_slices=4,",
        f"wrong_token@1:dispatch/{request.param}/num_slices=5,",
        "wrong_token@0:combine/bf16/num_slices=5,",
        "slow@1:num_slices=7,",
        dtype=request.param,
    )
    dispatches = [task(point(Op.DISPATCH, slices, request.param)) for slices in range(2, 9)]
    combines = [task(point(Op.COMBINE, slices)) for slices in (5, 8)]
    return supervised(tmp_path_factory.mktemp("logs"), spec, [*dispatches, *combines])


def test_every_task_has_one_record_that_is_yielded_and_kept(outcome: Outcome) -> None:
    assert [(one.point.op, one.point.knobs["num_slices"]) for one in outcome.yielded] == [
        (Op.DISPATCH, 1),
        *((Op.DISPATCH, slices) for slices in range(2, 9)),
        (Op.COMBINE, 5),
        (Op.COMBINE, 8),
    ]
    assert [one for one in outcome.records if one in outcome.yielded] == outcome.yielded
    assert [one.sequence for one in outcome.records] == list(range(len(outcome.records)))


def test_the_other_points_are_measured_despite_the_faulty_ones(outcome: Outcome) -> None:
    for op, slices in ((Op.DISPATCH, 6), (Op.DISPATCH, 7), (Op.DISPATCH, 8), (Op.COMBINE, 8)):
        measured = outcome.of(op, slices)
        assert isinstance(measured, Measured)
        assert len(measured.samples_us) == (10 if measured.extended else 5)
        assert len(measured.rank_median_us) == 2
        assert min(measured.samples_us) > 0


def test_a_silent_rank_is_a_hang_with_the_stacks_of_the_silent(outcome: Outcome) -> None:
    failed = outcome.failed(Op.DISPATCH, 2)
    assert (failed.failure, failed.phase) == (FailureKind.HANG, "check")
    assert re.fullmatch(r"no response within \d+ s from rank 0, 1", failed.message)
    stacks = dict(re.findall(r"^rank (\d): (.*)$", failed.last_words, re.MULTILINE))
    assert "in inject" in stacks["1"]
    assert "in inject" not in stacks["0"]
    assert str(Path(sessions.__file__).with_name("alltoall.py")) in stacks["0"]


def test_a_rank_that_dies_is_a_crash_with_its_last_words(outcome: Outcome) -> None:
    failed = outcome.failed(Op.DISPATCH, 3)
    assert (failed.failure, failed.phase, failed.rank) == (FailureKind.CRASH, "check", 1)
    assert failed.message == "rank 1 was killed by SIGSEGV"
    assert "Fatal Python error: Segmentation fault" in failed.last_words
    assert "in inject" in failed.last_words


def test_an_exception_in_a_rank_is_an_error_with_its_traceback(outcome: Outcome) -> None:
    failed = outcome.failed(Op.DISPATCH, 4)
    assert (failed.failure, failed.phase, failed.rank) == (FailureKind.ERROR, "check", 1)
    assert failed.message == "RuntimeError: injected exception"
    assert failed.last_words.endswith("RuntimeError: injected exception\n")
    assert "in inject" in failed.last_words


@pytest.mark.parametrize(("op", "rank"), [(Op.DISPATCH, 1), (Op.COMBINE, 0)])
def test_a_swapped_token_is_incorrect(outcome: Outcome, op: Op, rank: int) -> None:
    failed = outcome.failed(op, 5)
    assert (failed.failure, failed.phase, failed.rank) == (FailureKind.INCORRECT, "check", rank)
    assert re.fullmatch(
        rf"rank {rank}: 2 of \d+ (received|combined) tokens are wrong, first token \d+.*", failed.message
    )


def test_a_sample_is_the_time_of_the_slowest_rank(outcome: Outcome) -> None:
    measured = outcome.of(Op.DISPATCH, 7)
    assert isinstance(measured, Measured)
    assert min(measured.samples_us) >= 5000
    assert measured.rank_median_us[1] >= 5000


def test_ranks_are_replaced_after_a_failure_and_measure_the_references_of_the_next_task_first(outcome: Outcome) -> None:
    replacing = (FailureKind.HANG, FailureKind.CRASH, FailureKind.ERROR)
    number = 0
    for at, record in enumerate(outcome.records):
        assert record.group == number
        if isinstance(record.outcome, Failed) and record.outcome.failure in replacing:
            number += 1
            references = outcome.records[at + 1 : at + 3]
            assert [(it.role, it.point.op, it.group) for it in references] == [
                (Role.ANCHOR, Op.DISPATCH, number),
                (Role.ANCHOR, Op.COMBINE, number),
            ]
            assert all(isinstance(it.outcome, Measured) for it in references)
    assert number == 3
    assert sum(one.role is Role.ANCHOR for one in outcome.records) == 1 + 2 * number
    assert [line.group for line in outcome.lines if isinstance(line, Host)] == [0, 1, 2, 3]


def test_every_group_has_an_environment_and_the_shard_one_self_check_and_layout(outcome: Outcome) -> None:
    environments = [line for line in outcome.lines if isinstance(line, Environment)]
    assert len(environments) == 4
    assert len({one.id for one in environments}) == 1
    assert {one.environment for one in outcome.records} == {environments[0].id}
    checks = [line for line in outcome.lines if isinstance(line, SelfCheck)]
    assert [set(check.edge_routings.values()) for check in checks] == [{"ok"}]
    assert len(checks[0].empty_op_us) > 0
    layouts = [line for line in outcome.lines if isinstance(line, Traffic)]
    assert [line.tokens for line in layouts] == [token_matrix(small_workload(), num_ranks=2)]


def test_no_rank_outlives_its_supervisor(outcome: Outcome) -> None:
    assert outcome.records
    assert children(os.getpid()) == set()


def test_ranks_that_raise_when_they_start_are_a_start_failure(tmp_path: Path) -> None:
    lines: list[Line] = []
    with pytest.raises(StartError, match=r"^the ranks did not start: \S"):
        supervised(tmp_path, group_spec(device="cuda"), [], lines=lines)
    assert lines == []
    assert children(os.getpid()) == set()


def test_ranks_that_do_not_start_in_time_are_a_start_failure(tmp_path: Path) -> None:
    hasty = msgspec.structs.replace(EFFORT, startup_s=0.0005)
    with pytest.raises(
        StartError, match=r"^the ranks did not start: (no response within|the import of torch took longer than) 0 s"
    ):
        supervised(tmp_path, group_spec(), [], effort=hasty)
    deadline = time.monotonic() + 5  # the kernel ends a newly forked rank only after its fork server
    while children(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children(os.getpid()) == set()


def test_the_process_that_forks_the_ranks_is_replaced_when_it_dies(tmp_path: Path) -> None:
    lines: list[Line] = []
    supervisor = Supervisor(
        group_spec(), EFFORT, anchors=[task(point(Op.DISPATCH, 1), Role.ANCHOR)], sink=lines.append, log_folder=tmp_path
    )
    outcomes = []
    for record in supervisor.run([task(point(Op.DISPATCH, slices)) for slices in (2, 3, 4)]):
        outcomes.append(record.outcome)
        if len(outcomes) == 1:
            ranks = [Path(f"/proc/{rank}") for rank in children(os.getpid())]
            os.kill(state_of(ranks[0]).parent, signal.SIGKILL)
            while any(state_of(rank).is_rank for rank in ranks):  # the kernel ends them after it
                time.sleep(0.01)
    assert [type(outcome) for outcome in outcomes] == [Measured, Failed, Measured]
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].failure is FailureKind.CRASH


def test_ranks_that_fail_right_after_each_of_five_starts_end_the_shard(tmp_path: Path) -> None:
    lines: list[Line] = []
    faults = (f"exception@0:num_slices={slices}," for slices in (1, 2))
    with pytest.raises(StartError, match="failed right after 5 starts in a row"):
        supervised(tmp_path, group_spec(*faults), [task(point(Op.DISPATCH, 2))] * 9, lines=lines)
    kept = [line for line in lines if isinstance(line, Record)]
    assert [one.outcome.failure for one in kept if isinstance(one.outcome, Failed)] == [FailureKind.ERROR] * 5
    assert len(kept) == 5
    assert children(os.getpid()) == set()


def test_a_default_that_always_fails_does_not_keep_the_others_from_being_measured(tmp_path: Path) -> None:
    spec = group_spec("exception@0:dispatch/bf16/num_slices=1,", "exception@1:num_slices=3,")
    outcome = supervised(tmp_path, spec, [task(point(Op.DISPATCH, slices)) for slices in (2, 3, 4)])
    assert [type(outcome.of(Op.DISPATCH, slices)) for slices in (2, 3, 4)] == [Measured, Failed, Measured]
    failures = [one.point for one in outcome.records if isinstance(one.outcome, Failed)]
    assert failures == [point(Op.DISPATCH, slices) for slices in (1, 3, 1)]


def test_a_hang_is_waited_for_no_longer_than_the_budget_and_then_does_not_count_as_a_failure(tmp_path: Path) -> None:
    effort = msgspec.structs.replace(EFFORT, deadline_s=60.0)
    tasks = [task(point(Op.DISPATCH, slices)) for slices in (2, 3)]
    outcome = supervised(tmp_path, group_spec("hang@1:num_slices=2,"), tasks, effort=effort, budget_s=6.0)
    assert not [one for one in outcome.records if isinstance(one.outcome, Failed)]
    assert len(outcome.yielded) < 1 + len(tasks)
    assert children(os.getpid()) == set()


@pytest.mark.parametrize("budget_s", [-1.0, 0.0005])
def test_a_budget_that_ends_before_the_ranks_have_started_does_not_count_as_a_start_failure(
    tmp_path: Path, budget_s: float
) -> None:
    outcome = supervised(tmp_path, group_spec(), [task(point(Op.DISPATCH, 2))], budget_s=budget_s)
    assert outcome == Outcome([], [])
    assert children(os.getpid()) == set()


def test_groups_and_records_are_numbered_on_from_those_of_earlier_attempts(tmp_path: Path) -> None:
    tasks = [task(point(Op.DISPATCH, slices)) for slices in (2, 3)]
    outcome = supervised(tmp_path, group_spec("exception@0:num_slices=2,"), tasks, first_group=4, first_sequence=30)
    assert [(one.group, one.sequence) for one in outcome.records] == [(4, 30), (4, 31), (5, 32), (5, 33), (5, 34)]
    assert [line.group for line in outcome.lines if isinstance(line, Host)] == [4, 5]
    assert [line.group for line in outcome.lines if isinstance(line, SelfCheck)] == [4]


def test_work_that_is_given_up_half_way_leaves_no_rank(tmp_path: Path) -> None:
    spec = group_spec()
    anchor = task(spec.points[0], Role.ANCHOR)
    supervisor = Supervisor(spec, EFFORT, anchors=[anchor], sink=lambda _: None, log_folder=tmp_path)
    records = iter(supervisor.run([anchor, anchor]))
    next(records)
    assert len(children(os.getpid())) == 2
    records.close()  # type: ignore[attr-defined]
    assert children(os.getpid()) == set()


def supervise(text: str, log_folder: str) -> None:
    """Measures the first two points of a spec and prints a line after each."""
    spec = msgspec.json.decode(text, type=GroupSpec)

    def sink(line: Line) -> None:
        if isinstance(line, Record):
            print("measured", flush=True)

    anchor, hung = (task(point, Role.ANCHOR) for point in spec.points[:2])
    supervisor = Supervisor(spec, Effort(1, 3, 300.0, 300.0), anchors=[anchor], sink=sink, log_folder=Path(log_folder))
    for _ in supervisor.run([anchor, hung]):
        pass


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["while the ranks start", "while a rank hangs"])
def test_killing_the_supervisor_leaves_no_rank_alive(tmp_path: Path, moment: str) -> None:
    spec = msgspec.json.encode(group_spec("hang@1:dispatch/bf16/num_slices=2,")).decode()
    with subprocess.Popen(calling(supervise, spec, tmp_path), stdout=subprocess.PIPE, cwd=ROOT) as process:
        wait_until(lambda: len(children(process.pid)) == 2)
        ranks = children(process.pid)
        if moment == "while a rank hangs":
            assert process.stdout is not None
            assert process.stdout.readline() == b"measured\n"
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(state_of(Path(f"/proc/{pid}")).is_rank for pid in ranks))


@pytest.mark.parametrize("search_path", [str(ROOT), os.pathsep.join([str(ROOT), ""])])
def test_ranks_measure_in_a_folder_with_packages_of_our_names(tmp_path: Path, search_path: str) -> None:
    """The supervisor imports the program without the working directory, and its ranks must do the same."""
    for name in ("bench", "launcher", "conf", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a package of somebody else')\n")
    python, *arguments = calling(supervise, msgspec.json.encode(group_spec()).decode(), tmp_path / "logs")
    process = subprocess.run(
        [python, "-P", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "measured\nmeasured\n"), process.stderr


@pytest.mark.parametrize("module", [supervisor, sweep, inline, aggregate], ids=lambda module: module.__name__)
def test_the_supervising_process_never_imports_torch(module: ModuleType) -> None:
    code = f"import sys, {module.__name__}; print(sorted({{'torch', 'deep_ep'}} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
