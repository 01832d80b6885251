"""Writes the files that put the tuned config of a run into force.

  python -m launcher.export RUN [--to NAME] [--pick PICK]

RUN is a run folder, or a RESULTS_EP<n>.json. The files are written into exports/ beside the RESULTS file, those of
another pick than `fastest` into exports/PICK/, so that no folder mixes two; their paths are printed. docs/APPLY.md
says for each framework what to do with them, and what it can and cannot take.

  NAME  sglang        sglang_deepep_config.json, for --deepep-config
        shim          deepep_shim.py, for whatever uses deep_ep.Buffer: import it in every rank
        megatron      megatron.args, and the shim
        vllm          vllm.env, and the shim
        verl          verl.overrides, and the shim
        primus_turbo  primus_turbo.yaml
        torchtitan    torchtitan_primus_turbo.py, for forks with PrimusTurboFlexTokenDispatcher
        paddle        paddle.yaml
        Without --to: all of them.

  PICK  fastest       where communication is waited for (the default)
        overlapped    where it runs beside computation
        default_sms   the fastest with the library's own number of SMs
        knee          the fewest SMs within 5 % of the fastest

For example:
  python -m launcher.export outputs/20261123-000120-a1b2c3
  python -m launcher.export outputs/20261123-000120-a1b2c3 --to sglang --pick overlapped
  python -m launcher.export RESULTS_EP4.json --to shim

A verdict other than `tuned`, and a run that is not whole, are said on stderr and in the files.
Exit status: 0 written; 2 refused, nothing written: a dry run, shared GPUs, no answer, an unknown name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.deploy.exporting import export
from launcher.deploy.formats import EXPORTS
from launcher.deploy.tuned import PICKS
from launcher.errors import OK, USAGE, Parser, UserError
from launcher.store import results_file


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "-h" in given or "--help" in given:
        print(__doc__)
        return OK if given else USAGE
    try:
        path, names, pick = _parsed(given)
        written = export(results_file.locate(path), names=names, pick=pick)
    except UserError as error:
        error.show()
        return USAGE
    print("\n".join(map(str, written)))
    return OK


def _parsed(given: list[str]) -> tuple[Path, list[str], str]:
    parser = Parser("launcher.export")
    parser.add_argument("run", type=Path)
    parser.add_argument("--to")
    parser.add_argument("--pick", default="fastest")
    found = parser.parse_args(given)
    if found.to is not None and found.to not in EXPORTS:
        raise UserError(
            f"--to must be one of {', '.join(EXPORTS)}, got {found.to}", hint="without --to all are written"
        )
    if found.pick not in PICKS:
        raise UserError(f"--pick must be one of {', '.join(PICKS)}, got {found.pick}")
    return found.run, list(EXPORTS) if found.to is None else [found.to], found.pick


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
