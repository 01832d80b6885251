"""A validation under Slurm: one exclusive job for each node, so many at once, until a deadline."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from ClusterShell.NodeSet import NodeSet, NodeSetParseError
from omegaconf import DictConfig
from rich.console import Console

from launcher import pipeline, slurm
from launcher.errors import UserError
from launcher.settings import SubmititConf
from launcher.slurm import Request
from launcher.submission import code_setup
from launcher.validation import resolve, summary
from launcher.validation.folder import Order, Skip, ValidationFolder
from launcher.validation.settings import Options, Spec, from_config
from launcher.validation.suite import Suite
from launcher.validation.verdict import EXIT_OK, EXIT_USAGE

_DOWN = ("down", "drain", "fail", "unk", "powered", "powering", "noresp", "future", "inval", "reboot")
_GRACE_S = 60.0
_LINE_EVERY_S = 15.0


def launch(configs: Sequence[DictConfig], settings: SubmititConf) -> int:
    """Validates the nodes of each configuration; the exit status of the command."""
    try:
        return max(_launch(config, settings) for config in configs)
    except UserError as error:
        error.show()
        return EXIT_USAGE


def _launch(config: DictConfig, settings: SubmititConf) -> int:
    values, options = from_config(config)
    if settings.cluster == "local":
        raise UserError("hydra/launcher=submitit_local validates no nodes", hint="without it this machine is validated")
    if options.self_test:
        raise UserError("self_test=true tests the program, not nodes", hint="without hydra/launcher it runs here")
    slurm.require()
    if options.run is not None and (Path(options.run) / "order.json").is_file():
        folder = ValidationFolder(Path(options.run))
        return _wait(folder, options, settings)
    spec = resolve.for_jobs(values)
    names, skipped = choose(options, settings)
    if options.dry_run:
        _show(spec, names, skipped, settings, options)
        return EXIT_OK
    folder = ValidationFolder.create(Path(options.outputs), Path(options.run) if options.run else None)
    order = Order(1, time.time(), ["deepep-validate", *pipeline.command_line()[1:]], spec, names, skipped)
    folder.note(order)
    folder.code.snapshot_code()
    order = _submit(folder, order, settings, options)
    if settings.detach:
        run = shlex.quote(str(folder.path))
        print(f"report:  python -m launcher.validate -m hydra/launcher=submitit_slurm run={run}", file=sys.stderr)
        print(f"cancel:  scancel {' '.join(order.jobs.values())}", file=sys.stderr)
        print(folder.path)
        return EXIT_OK
    return _wait(folder, options, settings)


def choose(options: Options, settings: SubmititConf) -> tuple[list[str], list[Skip]]:
    """The nodes to validate, and those that are not tried, each with the reason. UserError when none is meant."""
    known = slurm.nodes(settings.partition)
    if options.nodes is not None:
        wanted = _expanded(options.nodes)
    elif options.node_state is not None:
        wanted = sorted(name for name, node in known.items() if node.state.startswith(options.node_state.lower()))
        if not wanted:
            states = ", ".join(sorted({node.state for node in known.values()}))
            raise UserError(f"no node is {options.node_state}", hint=f"states there are: {states}")
    elif settings.reservation:
        wanted = _expanded(slurm.reserved_nodes(settings.reservation))
    else:
        raise UserError(
            "which nodes?", hint="nodes='gpu[001-016]', node_state=idle, or hydra.launcher.reservation=NAME"
        )
    names, skipped = [], []
    for name in wanted:
        node = known.get(name)
        if node is None:
            skipped.append(Skip(name, "U909", "Slurm knows no such node"))
        elif node.state.startswith(_DOWN):
            why = f": {node.reason}" if node.reason else ""
            skipped.append(Skip(name, "U908", f"Slurm has it {node.state}{why}"))
        else:
            names.append(name)
    return names, skipped


def _expanded(text: str) -> list[str]:
    try:
        found = list(NodeSet(text))
    except NodeSetParseError as error:
        raise UserError(f"nodes={text} is no host list: {error}", hint="nodes='gpu[001-016],gpu020'") from None
    if not found:
        raise UserError("nodes= names no node", hint="nodes='gpu[001-016]'")
    return [str(name) for name in found]


def _request(spec: Spec, run: str, position: int, options: Options) -> Request:
    """Nodes take turns in ``max_in_flight`` lanes: of jobs with one name Slurm runs one at a time (singleton)."""
    return Request(
        name=f"epv-{run}-lane-{position % options.max_in_flight}",
        timeout_min=spec.limits.job_min,
        gpus_per_node=0 if spec.on_cpu else spec.gpus,
        cpus_per_task=max(1, spec.hardware.cpus_per_gpu * spec.gpus),
        deadline=f"now+{options.deadline_min}minutes",
    )


def _node_settings(settings: SubmititConf, node: str) -> SubmititConf:
    """The whole node, for this one job, once."""
    own = SubmititConf(**{name: getattr(settings, name) for name in SubmititConf.__dataclass_fields__})
    own.nodelist, own.exclusive, own.requeue = node, True, False
    own.mem = "0" if settings.mem is None else settings.mem
    return own


def _submit(folder: ValidationFolder, order: Order, settings: SubmititConf, options: Options) -> Order:
    """One job for each node. UserError when Slurm refuses the first; a later refusal is that node's alone."""
    run = folder.path.name.rpartition("-")[2]
    jobs, skipped = dict(order.jobs), list(order.skipped)
    for position, node in enumerate(order.nodes):
        request = _request(order.spec, run, position, options)
        if settings.gpus_per_node is not None:
            request = msgspec.structs.replace(request, gpus_per_node=settings.gpus_per_node)
        if settings.cpus_per_task is not None:
            request = msgspec.structs.replace(request, cpus_per_task=settings.cpus_per_task)
        try:
            jobs[node] = slurm.submit(
                run_node,
                [[str(folder.path.resolve()), node]],
                request,
                _node_settings(settings, node),
                folder=(folder.path / "slurm").resolve(),
                setup=code_setup(folder.code),
                dependency="singleton",
            )
        except UserError as error:
            if not jobs:
                raise
            skipped.append(Skip(node, "U908", str(error)))
        except BaseException:
            slurm.cancel(jobs.values())
            raise
        until = order.created + 60 * options.deadline_min + 60 * order.spec.limits.job_min + _GRACE_S
        order = msgspec.structs.replace(order, jobs=jobs, skipped=skipped, until=until)
        folder.note(order)
    names = [name for name in order.nodes if name in jobs]
    order = msgspec.structs.replace(order, nodes=names)
    folder.note(order)
    return order


def run_node(path: str, node: str) -> None:
    """The body of a node's job."""
    folder = ValidationFolder(Path(path))
    job = os.environ.get("SLURM_JOB_ID")
    suite = Suite(
        folder.order().spec,
        folder.of(node),
        node=node,
        job_id=job,
        say=lambda line: print(f"{node}: {line}", flush=True),
    )
    made = suite.run()
    print(f"{node}: {made.verdict} {made.reason_short}: {made.reason}", flush=True)


def _wait(folder: ValidationFolder, options: Options, settings: SubmititConf) -> int:
    order = folder.order()
    try:
        with _shown() as show:
            while True:
                states = slurm.states(order.jobs.values())
                alive = [job for job in order.jobs.values() if job in states and not _is_over(states[job].state)]
                show(_line(folder, order, states))
                if not alive:
                    break
                if order.until is not None and time.time() > order.until:
                    slurm.cancel(alive)
                    break
                time.sleep(settings.poll_s)
    except KeyboardInterrupt:
        print(f"detached; the jobs go on. The same command with run={folder.path} reports", file=sys.stderr)
        print(folder.path)
        return EXIT_OK
    return summary.write(folder, options)


def _is_over(state: str) -> bool:
    return state in slurm.ENDED


def _line(folder: ValidationFolder, order: Order, states: dict[str, slurm.JobState]) -> str:
    verdicts: Counter[str] = Counter()
    for node, job in order.jobs.items():
        with contextlib.suppress(UserError):
            result = folder.result(node)
            state = states[job].state if job in states else "UNKNOWN"
            verdicts[result.verdict.value if result is not None and result.complete else state.lower()] += 1
    counts = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items()))
    return f"{len(order.jobs)} nodes: {counts}"


class _Lines:
    """Prints the line when it changed, and now and then."""

    def __init__(self) -> None:
        self._text, self._said = "", 0.0

    def __call__(self, text: str) -> None:
        if text != self._text or time.monotonic() - self._said > _LINE_EVERY_S:
            self._text, self._said = text, time.monotonic()
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("submitted") as status:
            yield status.update
        return
    yield _Lines()


def _show(spec: Spec, names: list[str], skipped: list[Skip], settings: SubmititConf, options: Options) -> None:
    """What would be submitted."""
    print(f"{len(names)} nodes: {NodeSet.fromlist(names)}; {spec.gpus} GPUs each, {spec.backend}, {spec.workload.name}")
    for skip in skipped:
        print(f"skipped: {skip.node}: {skip.code} {skip.why}")
    if names:
        folder = ValidationFolder(Path("RUN"))
        request = _request(spec, "RUN", 0, options)
        print(
            slurm.script(
                request,
                _node_settings(settings, names[0]),
                folder=folder.path / "slurm",
                setup=code_setup(folder.code),
                tasks=1,
            )
        )
