"""The validation of this machine."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.nvml import gpus
from launcher.config import arguments
from launcher.errors import UserError
from launcher.validation.codes import EXIT_OK, EXIT_UNKNOWN, Status
from launcher.validation.config import Options, Spec
from launcher.validation.measure import selftest
from launcher.validation.measure.suite import Suite
from launcher.validation.run import resolve, summary
from launcher.validation.run.folder import Order, ValidationFolder

_DRY_RUN = "This is a dry run on CPUs: it tests correctness through gloo and measures the speed of no GPU."


def prepare(values: dict[str, Any], options: Options) -> Callable[[], Status]:
    """The validation or report, to be called for its exit status. UserError, before anything runs, if it cannot."""
    reported = summary.open_report(options)
    if reported is None and options.run is not None and (Path(options.run) / "order.json").is_file():
        summary.refuse_idle(options)
        reported = ValidationFolder(Path(options.run))
    if reported is not None:
        return partial(summary.write, reported, options)
    if options.nodes is not None or options.node_state is not None:
        raise UserError(
            "nodes and node_state choose nodes of Slurm, but this command validates this machine",
            hint="hydra/launcher=submitit_slurm validates other nodes",
        )
    if values["hardware"]["name"] == "auto" and has_silent_gpus():
        return _report_unknown
    return partial(_validate, resolve.for_here(values), options)


def _report_unknown() -> Status:
    print("DEEPEP UNKNOWN - this machine has NVIDIA GPUs, but NVML shows none; hardware=cpu tests without them | ")
    return EXIT_UNKNOWN


def _validate(spec: Spec, options: Options) -> Status:
    if spec.on_cpu:
        _say(_DRY_RUN)
    if options.self_test:
        return selftest.run(spec, lambda line: print(line, flush=True))
    if options.dry_run:
        print(f"this machine: {spec.gpus} ranks, {spec.backend}, {spec.workload.name}, configs {spec.configs}")
        return EXIT_OK
    folder = ValidationFolder.create(Path(options.outputs), Path(options.run) if options.run else None)
    node = socket.gethostname().partition(".")[0]
    command = ["deepep-validate", *arguments.command_line()[1:]]
    folder.note(Order(1, time.time(), command, spec, [node], earlier=options.earlier))
    Suite(spec, folder.node_folder(node), node=node, say=_say).run()
    return summary.write(folder, options)


def has_silent_gpus(devices: Path = gpus.PCI_DEVICES) -> bool:
    """Whether there are GPUs that NVML does not show, for example without a driver: a dry run would hide that."""
    if gpus.are_chosen() or gpus.inventory():
        return False
    return gpus.pci_gpus(devices) > 0 or any(Path("/dev").glob("nvidia[0-9]*"))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
