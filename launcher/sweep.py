"""The command that finds the best config: python -m launcher.sweep -m; see --help."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from launcher import schema
from launcher.command_line import completed

schema.register()
_statuses: list[int] = []


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="sweep")
def _job(config: DictConfig) -> None:
    """One composed configuration under Hydra's basic launcher."""
    from launcher import pipeline
    from launcher.errors import USAGE, UserError

    try:
        spec, options = schema.spec_from(config)
        plan, folder = pipeline.prepare(spec, options, local=True, command=["deepep-sweep", *sys.argv[1:]])
        pipeline.announce(plan)
        if folder is None:
            print(pipeline.show(plan))
        else:
            _statuses.append(pipeline.execute(plan, folder, options))
    except UserError as error:
        error.show()
        raise SystemExit(USAGE) from None


def main() -> None:
    """Runs the command line. Exit status: see launcher.errors."""
    sys.argv[1:] = completed(sys.argv[1:])
    _job()
    sys.exit(max(_statuses, default=0))


if __name__ == "__main__":
    main()
