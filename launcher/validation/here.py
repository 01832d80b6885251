"""Validates the machine that this runs on."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

from launcher import pipeline
from launcher.validation import resolve, selftest, summary
from launcher.validation.folder import Order, ValidationFolder
from launcher.validation.settings import Options
from launcher.validation.suite import Suite
from launcher.validation.verdict import EXIT_OK

_DRY = "This is a dry run on CPUs: correctness is tested through gloo, the speed of no GPU is measured."


def validate(values: dict[str, Any], options: Options, outputs: Path) -> int:
    """The exit status. UserError before anything runs when it cannot."""
    if options.run is not None and (Path(options.run) / "order.json").is_file():
        return summary.write(ValidationFolder(Path(options.run)), options)
    spec = resolve.for_here(values)
    if spec.on_cpu:
        _say(_DRY)
    if options.self_test:
        return selftest.run(spec, lambda line: print(line, flush=True))
    if options.dry_run:
        print(f"this machine: {spec.gpus} ranks, {spec.backend}, {spec.workload.name}, configs {spec.configs}")
        return EXIT_OK
    folder = ValidationFolder.create(outputs, Path(options.run) if options.run else None)
    node = socket.gethostname()
    folder.note(Order(1, time.time(), ["deepep-validate", *pipeline.command_line()[1:]], spec, [node]))
    Suite(spec, folder.of(node), node=node, say=_say).run()
    return summary.write(folder, options)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
