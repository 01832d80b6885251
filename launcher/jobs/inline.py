"""A sweep from its configuration to its report, on this machine: plan, shards in a row, aggregate."""

from __future__ import annotations

import sys

from bench.supervisor import StartError
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.prepare import grant
from launcher.report.writer import report
from launcher.store.attempts import begin_attempt
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard


def execute(made: Plan, folder: RunFolder, options: Options) -> int:
    """Measures what is missing, one shard after the other, then aggregates; the exit status."""
    grant(made, folder)
    failed = False
    indices = range(made.spec.num_shards) if options.shard_index is None else [options.shard_index]
    for index in indices:
        try:
            with begin_attempt(folder, index) as attempt:
                attempt.outcome = "complete" if shard.run(folder, index) else "spent"
        except StartError as error:
            failed = True
            print(f"error: shard {index}: {error}", file=sys.stderr)
    if options.shard_index is None and not failed and made.has_final:
        try:
            with begin_attempt(folder, FINAL) as attempt:
                attempt.outcome = "complete" if final.run(folder) else "spent"
        except StartError as error:
            failed = True
            print(f"error: final: {error}", file=sys.stderr)
    status = report(folder, options)
    print(folder.report_file)
    return FAILURE if failed and status == OK else status
