"""How much a run with repeats scatters, by where it comes from, as a table; pure."""

from __future__ import annotations

import math

from bench.components import Component
from bench.records import Op
from launcher.analysis.components import ENOUGH, ISOLATED, LEVELS, Components
from launcher.analysis.results import Results
from launcher.report.columns import Column, headings
from launcher.report.report import Report
from launcher.store.saved_components import Level
from launcher.text import table

TITLE = "How much times scatter, by where it comes from"

COLUMNS = (
    Column("what differs"),
    *(Column(op.value.replace("dispatch_full", "full dispatch")) for op in ISOLATED),
    Column("all three"),
    Column("95 % CI", "of the standard deviation of all three together."),
    Column("degrees of freedom", "how many independent differences the number rests on."),
)

_MEANINGS: dict[Level, str] = {
    "iteration": "iterations of a repetition",
    "repetition": "repetitions in a process group (of the default)",
    "group": "process groups of a run",
    "run": "runs on one machine",
    "machine": "machines (sets of GPUs)",
}


def rows(results: Results) -> list[list[str]]:
    """A row for each level; empty without repeats."""
    components = results.components
    return [] if components is None else [_row(components, level) for level in LEVELS]


def _row(components: Components, level: Level) -> list[str]:
    by_op = components.by_level[level]
    both = by_op[None]
    ends = "" if both.interval is None else f"{both.interval.low:.2%} to {both.interval.high:.2%}"
    return [_MEANINGS[level], *(_deviation(by_op, op) for op in (*ISOLATED, None)), ends, str(both.freedom)]


def _deviation(by_op: dict[Op | None, Component], op: Op | None) -> str:
    deviation = by_op[op].deviation
    return "unknown" if deviation is None else f"{deviation:.2%}"


def explanation(results: Results) -> str:
    """What the numbers are, and which of them the intervals for another run use; empty without repeats."""
    components = results.components
    if components is None:
        return ""
    machines = "1 machine" if components.machines == 1 else f"{components.machines} machines"
    return (
        f"Standard deviations of log times of {components.configs} operations in {components.runs} runs (the final and "
        f"its repeats) on {machines}, each without what the levels above it in the table explain. "
        f"{_used(results, components)}"
    )


def _used(results: Results, components: Components) -> str:
    if results.plan.is_dry:
        return "They are of CPUs and say nothing about GPUs."
    has_runs, has_machines = components.run.freedom < math.inf, components.machine.freedom < math.inf
    if has_runs and has_machines:
        return "Intervals for another run are made of them."
    if has_runs:
        return "Intervals for another run are made of what runs add here, and of what machines add in published runs."
    return f"Below {ENOUGH} degrees of freedom intervals for another run use what published runs show instead."


def section(report: Report) -> list[str]:
    """The table in Markdown; nothing without repeats."""
    found = rows(report.results)
    if not found:
        return []
    return [f"## {TITLE}", "", explanation(report.results), "", *table(headings(COLUMNS), found)]
