"""A sweep in this process: one shard after the other, the final, its repeats, the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from bench.supervisor import StartError
from launcher.config.plan import FINAL, Plan, repeat_index, shard_name
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.prepare import extend
from launcher.report.writer import aggregate, report
from launcher.store.attempts import begin_attempt
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, repeats, shard


def execute(plan: Plan, folder: RunFolder, options: Options) -> int:
    """Measures the points that lack records, reports, and prints the path of the report; the exit status."""
    failures = measure(plan, folder, options)
    status = report(folder, options)
    print(folder.report_file)
    return status if not failures or status != OK else FAILURE


def measure_and_report(plan: Plan, folder: RunFolder, options: Options) -> list[str]:
    """As ``execute``, printing nothing; for each shard whose ranks cannot be started, the reason."""
    failures = measure(plan, folder, options, quiet=True)
    aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed, quiet=True)
    return failures


def measure(plan: Plan, folder: RunFolder, options: Options, *, quiet: bool = False) -> list[str]:
    """Measures the points that lack records; for each shard whose ranks cannot be started, the reason.

    Progress and reasons go to stderr, unless ``quiet``.
    """
    extend(plan, folder, quiet=quiet)
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    failures = [
        failure
        for index in indices
        if (failure := _attempt(folder, index, partial(shard.run, folder, index, quiet=quiet), quiet=quiet))
    ]
    if options.shard_index is None and plan.has_final and not failures:
        failures += _measure_finals(folder, quiet=quiet)
    return failures


def _measure_finals(folder: RunFolder, *, quiet: bool) -> list[str]:
    """The final, then its repeats if it is complete; the reason if the ranks of one cannot be started."""
    failure = _attempt(folder, FINAL, partial(final.run, folder, quiet=quiet), quiet=quiet)
    if failure or not folder.plan().repeats or not final.is_complete(folder):
        return [failure] if failure else []
    contestants = repeats.contestants(folder)
    for number in repeats.missing(folder, contestants):
        body = partial(repeats.run, folder, number, contestants, quiet=quiet)
        failure = _attempt(folder, repeat_index(number), body, quiet=quiet)
        if failure:
            return [failure]
    return []


def _attempt(folder: RunFolder, index: int, body: Callable[[], bool], *, quiet: bool) -> str | None:
    """One attempt at a shard, the final or a repeat; the reason if its ranks cannot be started, also on stderr.

    ``body`` measures, and returns whether nothing is missing now.
    """
    try:
        with begin_attempt(folder, index) as attempt:
            attempt.outcome = "complete" if body() else "spent"
    except StartError as error:
        failure = f"{shard_name(index)}: {error}"
        if not quiet:
            print(f"error: {failure}", file=sys.stderr)
        return failure
    return None
