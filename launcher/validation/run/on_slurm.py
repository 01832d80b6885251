"""A validation under Slurm: one exclusive job for each node, so many at once, until a deadline."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import msgspec
from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolverError, GroupSourceError
from ClusterShell.RangeSet import RangeSetException
from omegaconf import DictConfig
from rich.console import Console

from launcher.config import arguments
from launcher.config.job_options import SubmititConf
from launcher.errors import UserError
from launcher.jobs import sbatch, slurm, watch
from launcher.jobs.sbatch import JobRequest, code_setup
from launcher.jobs.slurm import JobState
from launcher.store.revision import snapshot_code
from launcher.validation.codes import EXIT_OK, EXIT_USAGE, Status, combined
from launcher.validation.config import Options, Spec, from_config
from launcher.validation.measure.suite import Suite
from launcher.validation.run import resolve, summary
from launcher.validation.run.folder import Order, Skip, ValidationFolder
from launcher.validation.run.lanes import Lanes

_DOWN = ("down", "drain", "fail", "unk", "powered", "powering", "noresp", "future", "inval", "reboot")
_FREE = ("idle", "reserved")
"""States of a node that nobody is on; of reserved ones it is Slurm that knows for whom."""

_ONE_OF_A_LANE = "singleton"
_GRACE_S = 60.0
_TERMINATED = 143
_LOST_AFTER = 5
"""Looks in a row at which Slurm does not know a job, before it counts as over."""
_LINE_EVERY_S = 15.0


def launch(configs: Sequence[DictConfig], settings: SubmititConf) -> int:
    """Validates the nodes of each configuration, all checked before any is submitted; the command's exit status."""
    try:
        wanted = [_prepare(config, settings) for config in configs]
    except UserError as error:
        error.show()
        return EXIT_USAGE
    return combined([summary.shown(one) for one in wanted])


def _prepare(config: DictConfig, settings: SubmititConf) -> Callable[[], Status]:
    values, options = from_config(config)
    reported = summary.wanted(options)
    if reported is not None:
        return partial(summary.write, reported, options)
    if settings.cluster == "local":
        raise UserError("hydra/launcher=submitit_local validates no nodes", hint="without it this machine is validated")
    if options.self_test:
        raise UserError("self_test=true tests the program, not nodes", hint="without hydra/launcher it runs here")
    watch.check(settings)
    slurm.require()
    if options.run is not None and (Path(options.run) / "order.json").is_file():
        summary.refuse_idle(options)
        return partial(_wait, ValidationFolder(Path(options.run)), options, settings)
    spec = resolve.for_jobs(values)
    _refuse_too_few(spec, settings)
    names, skipped = choose(options, settings)
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
    )
    return partial(_show, order) if options.dry_run else partial(_launch, order, options, settings)


def _launch(order: Order, options: Options, settings: SubmititConf) -> Status:
    folder = ValidationFolder.create(Path(options.outputs), Path(options.run) if options.run else None)
    folder.note(order)
    snapshot_code(folder.code)
    try:
        order = _submit(folder, order)
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


def _refuse_too_few(spec: Spec, settings: SubmititConf) -> None:
    """UserError for a job that would see fewer GPUs than it looks for, and call every node faulty."""
    asked = settings.gpus_per_node
    if asked is not None and asked < spec.gpus and not spec.on_cpu:
        raise UserError(
            f"hydra.launcher.gpus_per_node must be at least {spec.gpus}, the GPUs that are validated, got {asked}",
            hint=f"gpus={asked} validates so many",
        )


def choose(options: Options, settings: SubmititConf) -> tuple[list[str], list[Skip]]:
    """The nodes to validate, and those that are not tried, each with the reason. UserError when none is meant."""
    known = slurm.nodes(settings.partition)
    where = f"hydra.launcher.partition={settings.partition} has" if settings.partition else "this Slurm has"
    if not known:
        raise UserError(f"{where} no nodes", hint="name a partition that sinfo lists")
    if options.nodes is not None:
        wanted = expanded(options.nodes)
    elif options.node_state is not None:
        wanted = sorted(name for name, node in known.items() if node.state.startswith(options.node_state.lower()))
        if not wanted:
            states = ", ".join(sorted({node.state for node in known.values()}))
            raise UserError(f"no node is {options.node_state}", hint=f"states there are: {states}")
    elif settings.reservation:
        wanted = expanded(slurm.reserved_nodes(settings.reservation))
    else:
        raise UserError(
            "which nodes?", hint="nodes='gpu[001-016]', node_state=idle, or hydra.launcher.reservation=NAME"
        )
    names, skipped = [], []
    for name in sorted(wanted, key=lambda name: name in known and not known[name].state.startswith("idle")):
        node = known.get(name)
        if node is None:
            skipped.append(Skip(name, "U909", f"{where} no such node"))
        elif _is_down(node):
            skipped.append(Skip(name, "U908", _why(node)))
        else:
            names.append(name)
    if {skip.code for skip in skipped} == {"U909"} and not names:
        raise UserError(f"{where} none of these nodes: {options.nodes}", hint="sinfo -N lists the nodes")
    return names, skipped


def _is_down(node: slurm.NodeState) -> bool:
    return node.state.startswith(_DOWN)


def _why(node: slurm.NodeState) -> str:
    return f"Slurm has it {node.state}" + (f": {node.reason}" if node.reason else "")


def expanded(text: str) -> list[str]:
    """The names of a host list, ``gpu[001-016]``. UserError when it is none, or names nobody."""
    try:
        found = list(NodeSet(text))
    except (NodeSetException, RangeSetException, GroupResolverError, GroupSourceError) as error:
        raise UserError(
            f"nodes={text} is no host list: {type(error).__name__}: {error}", hint="nodes='gpu[001-016],gpu020'"
        ) from None
    if not found:
        raise UserError("nodes= names no node", hint="nodes='gpu[001-016]'")
    return [str(name) for name in found]


def _request(run: str, order: Order, node: str) -> JobRequest:
    """One lane for each of ``max_in_flight``.

    Slurm's deadline, by which a job must be over, lies one time limit behind the order's, by which it must have begun.
    """
    spec, settings = order.spec, SubmititConf(**order.settings)
    assert order.deadline is not None
    timeout_min = settings.timeout_min or spec.limits.job_min
    return JobRequest(
        name=f"epv-{run}-lane-{order.lanes[node]}",
        timeout_min=timeout_min,
        gpus_per_node=(0 if spec.on_cpu else spec.gpus) if settings.gpus_per_node is None else settings.gpus_per_node,
        cpus_per_task=settings.cpus_per_task or max(1, spec.hardware.cpus_per_gpu * spec.gpus),
        deadline=f"now+{round(order.deadline + 60 * timeout_min - time.time())}seconds",
    )


def _node_settings(order: Order, node: str) -> SubmititConf:
    """The whole node, for this one job, once."""
    own = SubmititConf(**order.settings)
    own.nodelist, own.exclusive, own.requeue = node, True, False
    own.mem = "0" if own.mem is None else own.mem
    return own


def _submit_one(folder: ValidationFolder, order: Order, node: str) -> str:
    """The job's id. UserError when Slurm refuses it."""
    return sbatch.submit(
        run_node,
        [[str(folder.path.resolve()), node]],
        _request(_name(folder), order, node),
        _node_settings(order, node),
        folder=(folder.path / "slurm").resolve(),
        setup=code_setup(folder.code),
        dependency=_ONE_OF_A_LANE,
    )


def _name(folder: ValidationFolder) -> str:
    return folder.path.name.rpartition("-")[2]


def _submit(folder: ValidationFolder, order: Order) -> Order:
    """One job for each node. A refusal is that node's alone, unless Slurm refuses all: then UserError."""
    jobs, refused = dict(order.jobs), list[UserError]()
    for node in order.nodes:
        try:
            jobs[node] = _submit_one(folder, order, node)
        except UserError as error:
            refused.append(error)
            order = msgspec.structs.replace(order, skipped=[*order.skipped, Skip(node, "U917", str(error))])
        except BaseException:
            slurm.cancel(jobs.values())
            raise
        order = msgspec.structs.replace(order, jobs=dict(jobs), until=_until(order))
        folder.note(order)
    if refused and not jobs:
        raise refused[0]
    order = msgspec.structs.replace(order, nodes=list(jobs))
    folder.note(order)
    return order


def _until(order: Order) -> float:
    """When the last job that began before the deadline must be over."""
    assert order.deadline is not None
    return order.deadline + 60 * (order.settings["timeout_min"] or order.spec.limits.job_min) + _GRACE_S


def _rotated(folder: ValidationFolder, order: Order, lanes: Lanes, states: dict[str, JobState]) -> Order:
    """The order after jobs whose nodes are busy gave way to jobs behind them whose nodes are free."""
    stuck = lanes.stuck(order.jobs, states)
    if not stuck:
        return order
    try:
        free = {name for name, one in slurm.nodes().items() if one.state.startswith(_FREE)}
        for node, behind in stuck.items():
            if node not in free and behind & free:
                order = _to_the_back(folder, order, node)
    except UserError as error:  # Slurm is silent, or takes no more jobs: the job stays where it is
        print(f"{error}; the nodes keep their turns", file=sys.stderr)
    return order


def _to_the_back(folder: ValidationFolder, order: Order, node: str) -> Order:
    """The order with a new job for the node, the last of its lane, if the old one has not begun meanwhile."""
    old = order.jobs[node]
    if order.deadline is None or time.time() > order.deadline:
        return order  # a new job could not begin in time any more
    new = _submit_one(folder, order, node)
    try:
        withdrawn = slurm.withdraw(old)
    except BaseException:
        slurm.cancel([new])
        raise
    if not withdrawn:
        slurm.cancel([new])
        return order
    print(f"{node} is busy, and lets the others go first: job {new} instead of {old}", file=sys.stderr)
    order = msgspec.structs.replace(order, jobs=order.jobs | {node: new})
    folder.note(order)
    return order


def run_node(path: str, node: str) -> None:
    """The body of a node's job."""
    folder = ValidationFolder(Path(path))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's handler would end the job ahead of its limit, as FAILED
    signal.signal(signal.SIGTERM, _terminated)  # and would go on here, and call the ranks that Slurm ends a crash
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


def _terminated(_number: int, _frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)


def _wait(folder: ValidationFolder, options: Options, settings: SubmititConf) -> Status:
    try:
        _until_over(folder, settings)
    except KeyboardInterrupt:
        if not watch.shall_cancel(settings):
            print(f"detached; the jobs go on. The same command with run={folder.path} reports", file=sys.stderr)
            print(folder.path)
            return EXIT_OK
        slurm.cancel(folder.order().jobs.values())
        print("cancelled; what was validated is kept", file=sys.stderr)
        _until_over(folder, settings)
    return summary.write(folder, options)


def _until_over(folder: ValidationFolder, settings: SubmititConf) -> None:
    """Until no job is left, or those that are left have had all their time.

    What Slurm said last of each job is noted, since a site without accounting forgets it within minutes.
    """
    order = folder.order()
    lost, said, lanes = 0, dict(order.states), Lanes(order.lanes)
    with _shown() as show:
        while True:
            states, silent = _look(order)
            said |= {job: one.state for job, one in states.items()}
            show(_line(folder, order, said) + ("; Slurm does not answer" if silent else ""))
            alive = [job for job in order.jobs.values() if job in states and not states[job].is_over]
            over = {job for job in order.jobs.values() if said.get(job) in slurm.ENDED}
            lost = lost + 1 if not silent and len(over) + len(alive) < len(order.jobs) else 0
            is_late = order.until is not None and time.time() > order.until
            if is_late or (not alive and not silent and (not lost or lost >= _LOST_AFTER)):
                break
            order = _rotated(folder, order, lanes, states)
            time.sleep(settings.poll_s)
    slurm.cancel(set(order.jobs.values()) - over)
    if is_late:
        said |= {job: "DEADLINE" for job, state in said.items() if state == "PENDING"}
    order = _without_the_lost(order, said)
    jobs = set(order.jobs.values())
    folder.note(msgspec.structs.replace(order, states={job: state for job, state in said.items() if job in jobs}))


def _without_the_lost(order: Order, said: dict[str, str]) -> Order:
    """The order with the nodes skipped, for their own reason, that went down or were drained while they waited."""
    waited = [node for node, job in order.jobs.items() if said.get(job) == "DEADLINE"]
    try:
        known = slurm.nodes() if waited else {}
    except UserError:
        return order
    lost = [Skip(node, "U908", _why(known[node])) for node in waited if node in known and _is_down(known[node])]
    names = {skip.node for skip in lost}
    return msgspec.structs.replace(
        order,
        nodes=[node for node in order.nodes if node not in names],
        skipped=[*order.skipped, *lost],
        jobs={node: job for node, job in order.jobs.items() if node not in names},
    )


def _look(order: Order) -> tuple[dict[str, slurm.JobState], bool]:
    """What Slurm knows of the jobs, and whether it did not answer."""
    try:
        return slurm.states(order.jobs.values()), False
    except slurm.SlurmSilentError:
        return {}, True


def _line(folder: ValidationFolder, order: Order, said: dict[str, str]) -> str:
    verdicts: Counter[str] = Counter()
    for node, job in order.jobs.items():
        with contextlib.suppress(UserError):
            result = folder.result(node)
            word = result.verdict.value if result is not None and result.complete else said.get(job, "UNKNOWN").lower()
            verdicts[word] += 1
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


def _show(order: Order) -> Status:
    """What would be submitted."""
    spec, names = order.spec, order.nodes
    print(f"{len(names)} nodes: {NodeSet.fromlist(names)}; {spec.gpus} GPUs each, {spec.backend}, {spec.workload.name}")
    for skip in order.skipped:
        print(f"skipped: {skip.node}: {skip.code} {skip.why}")
    if names:
        folder = ValidationFolder(Path("RUN"))
        print(
            sbatch.script(
                _request("RUN", order, names[0]),
                _node_settings(order, names[0]),
                folder=folder.path / "slurm",
                setup=code_setup(folder.code),
                tasks=1,
                dependency=_ONE_OF_A_LANE,
            )
        )
    return EXIT_OK
