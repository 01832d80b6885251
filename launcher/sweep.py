"""The command that finds the best config: python -m launcher.sweep; see --help."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher import errors

if TYPE_CHECKING:
    from launcher.config.compose import Composed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(_page, sweep, arguments)


def _page() -> str:
    from launcher.config import manual

    return manual.page()


def sweep(given: Sequence[str]) -> int:
    """Measures, or submits, every sweep of these arguments; the exit status. UserError when one is refused."""
    from launcher.config import arguments, compose

    given = arguments.complete_arguments(arguments.parse_flags("launcher.sweep", given))
    arguments.make_output_folder(given)
    return compose.run("sweep", given, _measure)


def _measure(composed: Composed) -> int:
    """One sweep on this machine."""
    from launcher.config import planning, schema
    from launcher.jobs import inline, prepare

    spec, options = schema.spec_from(composed.config)
    plan = planning.plan_sweep(spec, options, local=True)
    if options.dry_run:
        prepare.print_caveats(plan)
        print(prepare.describe(plan))
        return errors.OK
    folder = prepare.prepare(plan, options, command=composed.command)
    prepare.print_caveats(plan)
    print(f"run folder: {folder.path}", file=sys.stderr)
    try:
        return inline.execute(plan, folder, options)
    except KeyboardInterrupt:
        resume = f"python -m launcher.resume {shlex.quote(str(folder.path))}"
        raise KeyboardInterrupt(f"interrupted; all measurements so far are kept. Complete the run: {resume}") from None


if __name__ == "__main__":
    sys.exit(main())
