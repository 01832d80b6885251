"""A validation under Slurm: one exclusive job for each node, a limited number at once, until a deadline."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ClusterShell.NodeSet import NodeSet
from omegaconf import DictConfig

from launcher.config import arguments
from launcher.config.job_options import SubmititConf
from launcher.errors import UserError
from launcher.jobs import slurm, waiting
from launcher.store.revision import snapshot_code
from launcher.validation.codes import EXIT_OK, EXIT_USAGE, Status, combine_statuses
from launcher.validation.config import Options, Spec, from_config
from launcher.validation.run import node_jobs, node_watch, resolve, summary
from launcher.validation.run.folder import Order, ValidationFolder
from launcher.validation.run.selection import select


def launch(configs: Sequence[DictConfig], settings: SubmititConf) -> int:
    """Validates the nodes of each configuration; the exit status. All are checked before any job is submitted."""
    try:
        runs = [_prepare(config, settings) for config in configs]
    except UserError as error:
        error.show()
        return EXIT_USAGE
    return combine_statuses([summary.run_validation(run) for run in runs])


def _prepare(config: DictConfig, settings: SubmititConf) -> Callable[[], Status]:
    """Checks one configuration; the call that carries it out and gives the exit status."""
    values, options = from_config(config)
    reported = summary.open_report(options)
    if reported is not None:
        return partial(summary.write, reported, options)
    if settings.cluster == "local":
        raise UserError(
            "hydra/launcher=submitit_local validates no nodes", hint="leave it out to validate this machine"
        )
    if options.self_test:
        raise UserError("self_test=true tests the program, not nodes", hint="leave hydra/launcher out to run it here")
    waiting.check_on_interrupt(settings)
    slurm.require()
    if options.run is not None and (Path(options.run) / "order.json").is_file():
        summary.refuse_idle(options)
        return partial(_wait, ValidationFolder(Path(options.run)), options, settings)
    spec = resolve.for_jobs(values)
    _refuse_too_few_gpus(spec, settings)
    names, skipped = select(options, settings)
    now = time.time()
    order = Order(
        format=1,
        created=now,
        command=["deepep-validate", *arguments.command_line()[1:]],
        spec=spec,
        nodes=names,
        skipped=skipped,
        lanes={node: position % options.max_in_flight for position, node in enumerate(names)},
        settings={name: getattr(settings, name) for name in SubmititConf.__dataclass_fields__},
        deadline=now + 60 * options.deadline_min,
        earlier=options.earlier,
    )
    return partial(_describe, order) if options.dry_run else partial(_launch, order, options, settings)


def _refuse_too_few_gpus(spec: Spec, settings: SubmititConf) -> None:
    """UserError if a job would see fewer GPUs than it looks for: every node would count as faulty."""
    num_gpus = settings.gpus_per_node
    if num_gpus is not None and num_gpus < spec.gpus and not spec.on_cpu:
        raise UserError(
            f"hydra.launcher.gpus_per_node must be at least {spec.gpus}, the GPUs to validate, got {num_gpus}",
            hint=f"gpus={num_gpus} validates as many",
        )


def _launch(order: Order, options: Options, settings: SubmititConf) -> Status:
    folder = ValidationFolder.create(Path(options.outputs), Path(options.run) if options.run else None)
    folder.note(order)
    snapshot_code(folder.code)
    try:
        order = node_jobs.submit(folder, order)
    except UserError:
        folder.remove()
        raise
    if settings.detach:
        run = shlex.quote(str(folder.path))
        print(f"report:  python -m launcher.validate -m hydra/launcher=submitit_slurm run={run}", file=sys.stderr)
        print(f"cancel:  scancel {' '.join(order.jobs.values())}", file=sys.stderr)
        print(folder.path)
        return EXIT_OK
    return _wait(folder, options, settings)


def _wait(folder: ValidationFolder, options: Options, settings: SubmititConf) -> Status:
    """Waits for the jobs and reports. Ctrl-C detaches from them or cancels them."""
    try:
        node_watch.wait(folder)
    except KeyboardInterrupt:
        if not waiting.should_cancel(settings):
            print(f"detached; the jobs go on. The same command with run={folder.path} reports", file=sys.stderr)
            print(folder.path)
            return EXIT_OK
        slurm.cancel(folder.order().jobs.values())
        print("cancelled; all results so far are kept", file=sys.stderr)
        node_watch.wait(folder)
    return summary.write(folder, options)


def _describe(order: Order) -> Status:
    """Prints the jobs that would be submitted."""
    spec, names = order.spec, order.nodes
    print(f"{len(names)} nodes: {NodeSet.fromlist(names)}; {spec.gpus} GPUs each, {spec.backend}, {spec.workload.name}")
    for skip in order.skipped:
        print(f"skipped: {skip.node}: {skip.code} {skip.why}")
    if names:
        print(node_jobs.script(order, names[0]))
    return EXIT_OK
