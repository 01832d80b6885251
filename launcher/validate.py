"""Validates nodes for expert-parallel communication: a verdict for each, by measurement.

Usage
  python -m launcher.validate [key=value ...]                             this machine
  python -m launcher.validate -m hydra/launcher=submitit_slurm hardware=NAME nodes=HOSTS [key=value ...]

Examples
--------
  python -m launcher.validate                                             this machine; a dry run without GPUs
  python -m launcher.validate -m hydra/launcher=submitit_slurm hardware=h200 nodes='gpu[001-016]'
  python -m launcher.validate -m hydra/launcher=submitit_slurm hardware=h200 node_state=idle max_in_flight=4
  python -m launcher.validate -m hydra/launcher=submitit_slurm hardware=h200 hydra.launcher.reservation=NEW
  python -m launcher.validate -m hydra/launcher=submitit_slurm run=outputs/RUN   wait for it, and report it
  python -m launcher.validate report=outputs/RUN                          report it again, measure nothing
  python -m launcher.validate self_test=true                              inject each kind of fault, see it found

What is done, on a node of its own (40 s on four H200s, twice that where a second attempt is needed; limits.*)
  preflight     GPUs, NVLinks, P2P, counters, other processes: no CUDA context yet
  pairs         each pair of GPUs, by copy engine and by kernel, both directions; bytes compared
  alltoall      NCCL all-to-all at three sizes; bytes compared
  correctness   dispatch and combine, BF16 and FP8, uniform and edge routings; every token compared
  speed         dispatch and combine of all GPUs together, and expert GEMMs of each, in 24 blocks
  counters      what grew: NVLink errors, ECC, XIDs, throttling
  A slow, hung or crashed node is measured again in fresh processes, its GPUs in another order, before it is FAIL.

Keys
  nodes, node_state   a host list, or the nodes in a state; or hydra.launcher.reservation
  gpus                GPUs of a node; null: those seen on this machine (a missing one is then no fault), or of the
                      hardware file
  hardware, workload, measure, backend   groups, as in launcher.sweep
  configs.dispatch=[64,8,256], configs.combine=[64,8,256]   of the speed phase
  reference=FILE      judge by what good nodes did; learn=FILE writes that from this run (5 nodes at least)
  max_in_flight=16, deadline_min=120 (to begin), limits.job_min=45
  confirm=true, strict=false, dry_run=false, thresholds.*   see docs/ADMIN.md and docs/CONFIGS.md
  hydra.launcher.*    partition, account, qos, setup, container_image, detach ... as in launcher.sweep

Exit status (that of a Nagios plugin; the line on stdout is its line)
  0  every node may work (PASS, WARN, SKIPPED)      2  a node has FAIL, HANG or NO_RESULT
  1  a node has WARN, with strict=true              3  unknown: SETUP, INCONCLUSIVE, skipped, a crash of ours
  64 usage: nothing was started

Files, in outputs/<time>-nodes-<id>/
  NODES.md, NODES.json, junit.xml, nodes.prom      the summary, worst node first
  nodes/<node>/NODE.json (docs/node.schema.json), lines.jsonl (every raw sample), logs/

docs/ADMIN.md: codes and what to do about each, NHC, HealthCheckProgram, Prometheus, references.

"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

_UNKNOWN = 3
"""verdict.EXIT_UNKNOWN, which a broken installation cannot import."""

_OF_REPORTS = ("report", "strict", "learn", "outputs")
_QUICK = ("workload=small", "measure=quick", "blocks=6")


def main() -> None:
    """Runs the command line. Ends with the exit status that the manual page lists, whatever happens."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    try:
        status = _status()
    except BaseException:  # noqa: BLE001  (a crash of ours, a broken installation too, must not look like a verdict)
        with contextlib.suppress(OSError):
            traceback.print_exc()
            print("DEEPEP UNKNOWN - the validation itself broke | ")
        status = _UNKNOWN
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, a reader that is gone: whoever asked has no line, and Python would end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _UNKNOWN
    sys.exit(status)


def _status() -> int:
    import pynvml

    from launcher.validation.codes import EXIT_CRITICAL

    try:
        return _run()
    except SystemExit as end:
        return _translated(end.code)
    except KeyboardInterrupt:
        return _UNKNOWN
    except pynvml.NVMLError_GpuIsLost:
        print("DEEPEP CRITICAL - E101 a GPU has fallen off the bus: NVML counts it and cannot open it | ")
        return EXIT_CRITICAL


def _translated(code: object) -> int:
    """The plugin's launcher ends the process with a status of ours; argparse with 2, which would mean a faulty node."""
    from launcher.validation.codes import EXIT_OK, EXIT_USAGE, Status

    if isinstance(code, Status):
        return int(code)
    return EXIT_OK if not code else EXIT_USAGE


def _run() -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from launcher.config import arguments, job_options, schema
    from launcher.errors import UserError
    from launcher.validation import config as own
    from launcher.validation.codes import EXIT_USAGE

    own.register()
    schema.register()
    job_options.register()
    if any(argument.startswith("report=") for argument in sys.argv[1:]):
        return _report(sys.argv[1:])
    try:
        sys.argv[1:] = _completed(sys.argv[1:])
        arguments.make_output_folder(sys.argv[1:])
    except UserError as error:
        error.show()
        return EXIT_USAGE
    configs: list[DictConfig] = []

    def job(config: DictConfig) -> None:
        """Hydra's basic launcher calls it for each configuration, and that of Slurm never."""
        configs.append(config)

    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="validate")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        UserError(arguments.one_line_message(error), hint="--help lists the keys").show()
        return EXIT_USAGE
    return _here(configs)


def _report(given: list[str]) -> int:
    """A run again, as it stands, without Hydra's own folder: the working directory of a monitor takes none."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from launcher.config.arguments import one_line_message
    from launcher.errors import UserError
    from launcher.validation.codes import EXIT_USAGE

    known = (*(f"{key}=" for key in _OF_REPORTS), "hydra", "-")
    extra = [argument for argument in given if not argument.startswith(known)]
    if extra:
        why = f"report= measures nothing, so that {extra[0]} means nothing"
        UserError(why, hint=f"it takes {', '.join(_OF_REPORTS[1:])}").show()
        return EXIT_USAGE
    wanted = [_quoted(argument) for argument in given if not argument.startswith(("-", "hydra"))]
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return _here([compose("validate", overrides=wanted)])
    except (HydraException, OmegaConfBaseException) as error:
        UserError(one_line_message(error), hint="--help lists the keys").show()
        return EXIT_USAGE


def _completed(given: list[str]) -> list[str]:
    """The arguments with host lists quoted, and on a machine without GPUs a toy workload where none is chosen."""
    from bench.nvml import gpus
    from launcher.config.arguments import check_keys

    check_keys(given)
    given = [_quoted(argument) for argument in given]
    keys = {argument.partition("=")[0].lstrip("+~") for argument in given}
    if keys & {"hardware", "backend", "hydra/launcher"} or gpus.inventory():
        return given
    return given + [override for override in _QUICK if override.partition("=")[0] not in keys]


def _quoted(argument: str) -> str:
    """``nodes=gpu[1-4]`` as ``nodes='gpu[1-4]'``, which a shell takes off and Hydra wants; a path likewise."""
    key, equals, value = argument.partition("=")
    return f"{key}='{value}'" if key in ("nodes", "report") and equals and value[:1] not in ("'", '"') else argument


def _here(configs: list[DictConfig]) -> int:
    """This machine, by each configuration; all are checked before the first is measured."""
    from launcher.errors import UserError
    from launcher.validation.codes import EXIT_USAGE, combined
    from launcher.validation.config import from_config
    from launcher.validation.run import on_this_machine, summary

    try:
        wanted = [on_this_machine.prepare(*from_config(config)) for config in configs]
    except UserError as error:
        error.show()
        return EXIT_USAGE
    return combined([summary.shown(one) for one in wanted])


if __name__ == "__main__":
    main()
