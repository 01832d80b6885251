"""A sweep from its configuration to its report, on this machine: plan, shards in a row, aggregate."""

from __future__ import annotations

import sys

from bench.supervisor import StartError
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.prepare import grant
from launcher.report.writer import report
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard


def execute(made: Plan, folder: RunFolder, options: Options) -> int:
    """Measures what is missing, then aggregates and prints the path of the report; the exit status."""
    failures = measure(made, folder, options)
    status = report(folder, options)
    print(folder.report_file)
    return FAILURE if failures and status == OK else status


def measure(made: Plan, folder: RunFolder, options: Options, *, quiet: bool = False) -> list[str]:
    """Measures what is missing, one shard after the other; for each shard whose ranks did not start, the reason.

    Failures and progress are printed, unless ``quiet``.
    """
    grant(made, folder, quiet=quiet)
    failures: list[str] = []

    def fail(reason: str) -> None:
        failures.append(reason)
        if not quiet:
            print(f"error: {reason}", file=sys.stderr)

    indices = range(made.spec.num_shards) if options.shard_index is None else [options.shard_index]
    for index in indices:
        try:
            with folder.stamped(index) as stamp:
                stamp.outcome = "complete" if shard.run(folder, index, quiet=quiet) else "spent"
        except StartError as error:
            fail(f"shard {index}: {error}")
    if options.shard_index is None and not failures and made.has_final:
        try:
            with folder.stamped(FINAL) as stamp:
                stamp.outcome = "complete" if final.run(folder, quiet=quiet) else "spent"
        except StartError as error:
            fail(f"final: {error}")
    return failures
