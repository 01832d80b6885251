"""A sweep in this process: one shard after the other, the final, the report."""

from __future__ import annotations

import sys

from bench.supervisor import StartError
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.prepare import extend_budget
from launcher.report.writer import report
from launcher.store.attempts import begin_attempt
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard


def execute(plan: Plan, folder: RunFolder, options: Options) -> int:
    """Measures the points that lack records, reports, and prints the path of the report; the exit status."""
    extend_budget(plan, folder)
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    started = [_attempt(folder, index) for index in indices]
    if options.shard_index is None and plan.has_final and all(started):
        started.append(_attempt(folder, FINAL))
    status = report(folder, options)
    print(folder.report_file)
    return status if all(started) or status != OK else FAILURE


def _attempt(folder: RunFolder, index: int) -> bool:
    """One attempt at a shard, or at the final; False, with the reason on stderr, if its ranks cannot be started."""
    try:
        with begin_attempt(folder, index) as attempt:
            is_complete = final.run(folder) if index == FINAL else shard.run(folder, index)
            attempt.outcome = "complete" if is_complete else "spent"
    except StartError as error:
        print(f"error: {'final' if index == FINAL else f'shard {index}'}: {error}", file=sys.stderr)
        return False
    return True
