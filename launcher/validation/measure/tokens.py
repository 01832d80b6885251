"""Phase 3, the correctness of dispatch and combine; and the records of tasks that move tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from bench.records import Dtype, Environment, Failed, FailureKind, Line, Op, Record, Role, SelfCheck, digest
from bench.supervisor import Effort, Supervisor, Task
from launcher.validation.measure.clock import Clock
from launcher.validation.measure.context import SuiteContext
from launcher.validation.node import Trouble

BLOCK_ITERATIONS = 10
"""Samples of one repetition; their median is one block. The published nodes were measured with the same number."""

_CHECK_ITERATIONS = 3


def check_correctness(context: SuiteContext, clock: Clock) -> str | None:
    """Compares every token of dispatch and combine, in BF16 and FP8, with the oracle."""
    context.end_group()
    for dtype in (Dtype.BF16, Dtype.FP8):
        if context.spec.workload.hidden % 128 and dtype is Dtype.FP8:
            continue  # FP8 has a scale per 128 columns; the layer reports that FP8 is not tested
        tasks = [make_task(context, op, dtype, iterations=_CHECK_ITERATIONS) for op in (Op.DISPATCH, Op.COMBINE)]
        for record in measure_tasks(context, clock, "correctness", dtype, tasks):
            context.note_checks({f"correctness: {record.point.op} {dtype}": "ok"})
    return None


def make_task(context: SuiteContext, op: Op, dtype: Dtype, *, block: int = 0, iterations: int | None = None) -> Task:
    """One repetition of the operation."""
    point = context.point(op, dtype)
    return Task(point, digest(point, context.spec.workload), Role.ANCHOR, round=block, iterations=iterations)


def measure_tasks(
    context: SuiteContext, clock: Clock, phase: str, dtype: Dtype, tasks: Iterable[Task]
) -> Iterator[Record]:
    """The record of each task, up to the first that fails; a task may depend on the records before it.

    Notes the results of the self-test, and the failure. OutOfTimeError if the limit ended the tasks.
    """
    measure = context.spec.measure
    supervisor = Supervisor(
        context.group_spec(dtype),
        Effort(measure.warmup, BLOCK_ITERATIONS, measure.deadline_s, measure.startup_s),
        anchors=[make_task(context, Op.DISPATCH, dtype)],
        sink=lambda line: _note_line(context, line, phase, dtype),
        log_folder=context.log_folder,
        budget_s=clock.left_s(),
    )
    with contextlib.closing(iter(supervisor.run(tasks))) as records:  # type: ignore[type-var]
        for record in records:
            if isinstance(record.outcome, Failed):
                context.note_failure(phase, record.outcome)
                if record.outcome.failure is FailureKind.INCORRECT:
                    label = f"{phase}: {record.point.op} {record.point.dtype}"
                    context.note_checks({label: _name_gpu(context, record.outcome)})
                return
            yield record
    clock.left_s()  # raises if the limit ended the tasks


def _name_gpu(context: SuiteContext, failed: Failed) -> str:
    """The message with the GPU in place of the rank."""
    if failed.rank is None:
        return failed.message
    return failed.message.replace(f"rank {failed.rank}:", f"gpu{context.order[failed.rank]}:", 1)


def _note_line(context: SuiteContext, line: Line, phase: str, dtype: Dtype) -> None:
    context.sink(line)
    if isinstance(line, Environment) and context.suite_run.environment is None:
        context.note(environment=line)
    if isinstance(line, SelfCheck):
        routings = dict(line.edge_routings)
        failed = routings.pop("self_test", None)
        if failed is not None:  # it failed before any routing was tried
            kind, _, message = failed.partition(": ")
            context.note_trouble(Trouble(phase, kind, "", f"self test: {message}"))
        context.note_checks({f"{phase}: {dtype} {name}": result for name, result in routings.items()})
