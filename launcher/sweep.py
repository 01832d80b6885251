"""The command that finds the best config: python -m launcher.sweep -m; see --help."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from launcher.config import arguments, manual
from launcher.jobs import prepare

if TYPE_CHECKING:
    from omegaconf import DictConfig


_INTERRUPTED = 130


def main() -> None:
    """Runs the command line. Exit status: see launcher.errors."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(manual.page())
        return
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from launcher.config import job_options, schema
    from launcher.config.arguments import complete_arguments, make_output_folder, one_line_message
    from launcher.errors import USAGE, UserError

    schema.register()
    job_options.register()
    try:
        sys.argv[1:] = complete_arguments(sys.argv[1:])
        make_output_folder(sys.argv[1:])
    except UserError as error:
        error.show()
        sys.exit(USAGE)
    statuses: list[int] = []

    def job(config: DictConfig) -> None:
        """One composed configuration under Hydra's basic launcher."""
        statuses.append(_in_a_row(config))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that its words can become one line
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="sweep")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        UserError(one_line_message(error), hint="--help lists groups, choices and keys").show()
        sys.exit(USAGE)
    sys.exit(max(statuses, default=0))


def _in_a_row(config: DictConfig) -> int:
    from hydra.core.hydra_config import HydraConfig

    from launcher.config import schema
    from launcher.errors import OK, USAGE, UserError
    from launcher.jobs import inline

    given = HydraConfig.get().overrides
    try:
        spec, options = schema.spec_from(config)
        command = arguments.command_line(given.task, given.hydra)
        plan, folder = prepare.prepare(spec, options, local=True, command=command)
        prepare.print_caveats(plan)
        if folder is not None:
            print(f"run folder: {folder.path}", file=sys.stderr)
            return inline.execute(plan, folder, options)
        print(prepare.describe(plan))
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept: python -m launcher.resume with the run folder", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    except UserError as error:
        error.show()
        raise SystemExit(USAGE) from None
    return OK


if __name__ == "__main__":
    main()
