"""The command that writes a tuned config for frameworks: python -m launcher.export RUN; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors
from launcher.errors import UserError

MANUAL = """\
deepep-export - write the files with which frameworks use the tuned config of a run

Usage
  python -m launcher.export RUN [--to NAME] [--pick PICK]
  deepep-export                the same, where the package is installed

Arguments
  RUN          a run folder, or a RESULTS_EP<n>.json

Options
  --to NAME    one format of these; without it, all
      sglang        sglang_deepep_config.json, for --deepep-config
      shim          deepep_shim.py, for any program that uses deep_ep.Buffer: import it in every rank
      megatron      megatron.args, and the shim
      vllm          vllm.env, and the shim
      verl          verl.overrides, and the shim
      primus_turbo  primus_turbo.yaml
      torchtitan    torchtitan_primus_turbo.py, for forks with PrimusTurboFlexTokenDispatcher
      paddle        paddle.yaml
  --pick PICK  the pair to export
      fastest       for communication that is waited for (the default)
      overlapped    for communication overlapped with computation
      default_sms   the fastest with the library's default number of SMs
      knee          the fewest SMs within 5 % of the fastest
  -h, --help   print this page
  --version    print the version

Description
  Prints the paths of the files. docs/APPLY.md shows what to do with them in each framework, and what each framework can
  and cannot take. A verdict other than `tuned` and an incomplete run are noted on stderr and in the files. Exports are
  of DeepEP V1 (backend=deepep) only; other libraries of the run are named on stderr.

Exit status
  0    the files were written
  1    the output cannot be written, or any other failure
  2    refused, nothing was written: a dry run, shared GPUs, too little measured, an unknown name
  130  interrupted

Files
  RUN/exports/         files of the pick `fastest`, next to the RESULTS file
  RUN/exports/PICK/    those of any other pick: no folder mixes two

Examples
  python -m launcher.export outputs/20261123-000120-a1b2c3
  python -m launcher.export outputs/20261123-000120-a1b2c3 --to sglang --pick overlapped
  python -m launcher.export RESULTS_EP4.json --to shim

See also
  python -m launcher.publish RUN files the config in a library; docs/APPLY.md
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _export, arguments, needs_arguments=True)


def _export(given: list[str]) -> int:
    parser = errors.Parser("launcher.export")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--to")
    parser.add_argument("--pick", default="fastest")
    options = parser.parse_args(given)

    from launcher.deploy.exporting import export
    from launcher.deploy.formats import EXPORTS
    from launcher.deploy.tuned import PICKS

    if options.to is not None and options.to not in EXPORTS:
        hint = "without --to all are written"
        raise UserError(f"--to must be one of {', '.join(EXPORTS)}, got {options.to}", hint=hint)
    if options.pick not in PICKS:
        raise UserError(f"--pick must be one of {', '.join(PICKS)}, got {options.pick}")
    names = list(EXPORTS) if options.to is None else [options.to]
    files = export(options.run, names=names, pick=options.pick)
    print("\n".join(map(str, files)))
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())
