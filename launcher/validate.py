"""The command that validates nodes: python -m launcher.validate; see --help."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher import errors
from launcher.errors import Statuses, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

MANUAL = """\
deepep-validate - validate nodes for expert-parallel communication: a verdict for each, by measurement

Usage
  python -m launcher.validate [key=value ...]                             this machine
  python -m launcher.validate hydra/launcher=submitit_slurm hardware=NAME nodes=HOSTS [key=value ...]
  deepep-validate              the same, where the package is installed

Keys
  nodes, node_state   a host list, or all nodes in a state; or hydra.launcher.reservation
  gpus                GPUs of a node; null: as many as this machine has (a missing one is then not a fault), or as the
                      hardware file says
  hardware, workload, measure, backend   groups, as in launcher.sweep
  configs.dispatch=[64,8,256], configs.combine=[64,8,256]   the configs of the speed phase
  reference=FILE      judge by what good nodes reached; learn=FILE writes such a file from this run (5 nodes at least).
                      Without it the published references judge, where one fits, and only warn; reference=null: none
  earlier=RUN         an earlier validation: its nodes belong to the fleet, and a node slow in both may be drained
  report=RUN          report a run again, measure nothing; run=RUN waits for its jobs first
  max_in_flight=16, deadline_min=120 (for a job to start), limits.job_min=45
  confirm=true, strict=false, dry_run=false, self_test=false, thresholds.*   see docs/ADMIN.md and docs/CONFIGS.md
  hydra.launcher.*    partition, account, qos, setup, container_image, detach ... as in launcher.sweep

Options
  --cfg job    print the configuration and stop
  -h, --help   print this page
  --version    print the version

Description
  Each node is tested on its own (40 s on four H200s, twice as long if the suite runs again; limits.*):

  preflight     GPUs, NVLinks, P2P, counters, other processes; before any CUDA context exists
  pairs         copies between each pair of GPUs, by copy engine and by kernel, both directions; bytes are compared
  alltoall      NCCL all-to-all at three sizes; bytes are compared
  correctness   dispatch and combine, BF16 and FP8, uniform and edge routings; every token is compared
  speed         dispatch and combine of all GPUs together, and expert GEMMs of each, in 24 blocks
  counters      what has grown: NVLink errors, ECC, XIDs, throttling

  A slow, hung or crashed node is FAIL only after a second suite run in fresh processes, with its GPUs in another order.

Exit status (of a Nagios plugin, as is the line on stdout)
  0   every node may work (PASS, WARN, SKIPPED)
  1   a node has WARN, with strict=true
  2   a node has FAIL, HANG or NO_RESULT
  3   unknown: SETUP, INCONCLUSIVE, all skipped, interrupted, output that cannot be written, or our own crash
  64  usage: nothing was started

Files, in outputs/<time>-nodes-<id>/
  NODES.md, NODES.json, junit.xml, nodes.prom    the summary, worst node first
  nodes/<node>/NODE.json                         the verdict on a node (docs/node.schema.json)
  nodes/<node>/lines.jsonl, logs/                every raw sample; what the ranks printed

Examples
  python -m launcher.validate                             this machine; a dry run without GPUs
  python -m launcher.validate hydra/launcher=submitit_slurm hardware=h200 nodes='gpu[001-016]'
  python -m launcher.validate hydra/launcher=submitit_slurm hardware=h200 node_state=idle max_in_flight=4
  python -m launcher.validate hydra/launcher=submitit_slurm hardware=h200 hydra.launcher.reservation=NEW
  python -m launcher.validate hydra/launcher=submitit_slurm run=outputs/RUN   wait for its jobs and report it
  python -m launcher.validate hydra/launcher=submitit_slurm hardware=h200 nodes=gpu017 earlier=outputs/RUN
  python -m launcher.validate report=outputs/RUN          report it again, measure nothing
  python -m launcher.validate self_test=true              inject each kind of fault and check that each is found

See also
  docs/ADMIN.md: all codes and what to do about each, NHC, HealthCheckProgram, Prometheus, references
"""

_UNKNOWN, _USAGE = 3, 64
"""EXIT_UNKNOWN and EXIT_USAGE of validation.codes, which a broken installation cannot import."""

_STATUSES = Statuses(usage=_USAGE, interrupted=_UNKNOWN, unread=_UNKNOWN, unwritten=_UNKNOWN)

_REPORT_KEYS = ("report", "earlier", "strict", "learn", "outputs")
_QUICK = ("workload=small", "measure=quick", "blocks=6")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; one of the exit statuses of the manual page, whatever happens."""
    return errors.run(lambda: MANUAL, _validate, arguments, statuses=_STATUSES, crashed=_report_crash)


def _report_crash() -> int:
    """Our own crash, or that of a broken installation, must not look like a verdict."""
    with contextlib.suppress(OSError):  # a full disk, or a closed pipe
        traceback.print_exc()
        print("DEEPEP UNKNOWN - the validation itself broke | ")
    return _UNKNOWN


def _validate(given: list[str]) -> int:
    import pynvml

    from launcher.config.arguments import parse_flags
    from launcher.validation import config
    from launcher.validation.codes import EXIT_CRITICAL

    given = parse_flags("launcher.validate", given)
    config.register()
    try:
        return _report(given) if any(argument.startswith("report=") for argument in given) else _run(given)
    except pynvml.NVMLError_GpuIsLost:
        print("DEEPEP CRITICAL - E101 a GPU has fallen off the bus: NVML counts it and cannot open it | ")
        return EXIT_CRITICAL


def _run(given: list[str]) -> int:
    from launcher.config import arguments, compose

    given = arguments.complete_arguments([_quote(argument) for argument in given], toy=_QUICK)
    arguments.make_output_folder(given)
    configs: list[DictConfig] = []

    def collect(composed: compose.Composed) -> int:
        """Keeps it: all are checked before the first is measured."""
        configs.append(composed.config)
        return errors.OK

    return compose.run("validate", given, collect) or _validate_here(configs)


def _report(given: list[str]) -> int:
    """A run again, without the folder that Hydra makes: a monitor may have no working directory to write to."""
    from launcher.config.compose import compose

    known = (*(f"{key}=" for key in _REPORT_KEYS), "hydra", "-")
    extra = [argument for argument in given if not argument.startswith(known)]
    if extra:
        raise UserError(
            f"report= measures nothing: it cannot use {extra[0]}", hint=f"it takes {', '.join(_REPORT_KEYS[1:])}"
        )
    overrides = [_quote(argument) for argument in given if not argument.startswith(("-", "hydra"))]
    return _validate_here([compose("validate", overrides)])


def _quote(argument: str) -> str:
    """``nodes=gpu[1-4]`` as ``nodes='gpu[1-4]'``: a shell removes the quotes that Hydra needs; a path likewise."""
    from launcher.config.arguments import quote

    key, equals, value = argument.partition("=")
    is_bare = key in ("nodes", "report", "earlier") and equals and value[:1] not in ("'", '"')
    return f"{key}={quote(value)}" if is_bare else argument


def _validate_here(configs: Sequence[DictConfig]) -> int:
    """Validates this machine by each configuration; all are checked before the first is measured."""
    from launcher.validation.codes import combine_statuses
    from launcher.validation.config import from_config
    from launcher.validation.run import on_this_machine, summary

    validations = [on_this_machine.prepare(*from_config(config)) for config in configs]
    return combine_statuses([summary.run_validation(validation) for validation in validations])


if __name__ == "__main__":
    sys.exit(main())
