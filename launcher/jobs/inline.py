"""A sweep in this process: one shard after the other, the final, the report."""

from __future__ import annotations

import sys

from bench.supervisor import StartError
from launcher.config.plan import FINAL, Plan, shard_name
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.prepare import extend_budget
from launcher.report.writer import aggregate, report
from launcher.store.attempts import begin_attempt
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard


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
    extend_budget(plan, folder, quiet=quiet)
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    failures = [failure for index in indices if (failure := _attempt(folder, index, quiet=quiet))]
    if options.shard_index is None and plan.has_final and not failures:
        final_failure = _attempt(folder, FINAL, quiet=quiet)
        failures += [final_failure] if final_failure else []
    return failures


def _attempt(folder: RunFolder, index: int, *, quiet: bool) -> str | None:
    """One attempt at a shard, or at the final; the reason if its ranks cannot be started, also on stderr."""
    try:
        with begin_attempt(folder, index) as attempt:
            is_complete = final.run(folder, quiet=quiet) if index == FINAL else shard.run(folder, index, quiet=quiet)
            attempt.outcome = "complete" if is_complete else "spent"
    except StartError as error:
        failure = f"{shard_name(index)}: {error}"
        if not quiet:
            print(f"error: {failure}", file=sys.stderr)
        return failure
    return None
