"""A sweep from its configuration to its report, on this machine: plan, shards in a row, aggregate."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.supervisor import StartFailure
from launcher import final, machine, plan, report, shard
from launcher.aggregate import aggregate
from launcher.errors import FAILURE, OK, UserError
from launcher.plan import Plan
from launcher.schema import Options, Spec
from launcher.store import RunFolder

_MAX_REFUSED_SHOWN = 20


def command_line() -> list[str]:
    """The command as it was given, with what this machine filled in."""
    return ["deepep-sweep", *sys.argv[1:]]


def prepare(spec: Spec, options: Options, *, local: bool, command: Sequence[str]) -> tuple[Plan, RunFolder | None]:
    """The checked plan, and its run folder: a new one, or the one to complete; None for a dry run."""
    made = plan.make(machine.resolve(spec, local=local, dry_run=options.dry_run))
    index = options.shard_index
    if index is not None and not 0 <= index < made.spec.num_shards:
        raise UserError(f"shard.index must lie in 0..{made.spec.num_shards - 1} (shard.count), got {index}")
    if options.dry_run:
        return made, None
    path = Path(options.run) if options.run else None
    if path is not None and (path / "run.json").exists():
        return made, _reopened(path, made)
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"run={path} exists and is no run folder", hint="name a run folder, or a path that is free")
    return made, RunFolder.create(made, outputs=Path(options.outputs), path=path, command=list(command))


def _reopened(path: Path, made: Plan) -> RunFolder:
    folder = RunFolder.open(path)
    if folder.manifest().plan_id != made.id:
        raise UserError(
            f"{path} was planned with another configuration",
            hint=f"repeat its own command, which run.json names, with run={path}",
        )
    return folder


def execute(made: Plan, folder: RunFolder, options: Options) -> int:
    """Measures what is missing, one shard after the other, then aggregates; the exit status."""
    failed = False
    indices = range(made.spec.num_shards) if options.shard_index is None else [options.shard_index]
    for index in indices:
        try:
            shard.run(folder, index)
        except StartFailure as error:
            failed = True
            print(f"error: shard {index}: {error}", file=sys.stderr)
    if options.shard_index is None and not failed:
        try:
            final.run(folder)
        except StartFailure as error:
            failed = True
            print(f"error: final: {error}", file=sys.stderr)
    status = aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed)
    print(folder.report_file)
    return FAILURE if failed and status == OK else status


def announce(made: Plan) -> None:
    """What kind of run this is, first of all."""
    if made.is_dry:
        print(report.NOT_A_MEASUREMENT, file=sys.stderr)
    if made.spec.ep.share_gpus:
        print(report.SHARED_GPUS, file=sys.stderr)


def show(made: Plan) -> str:
    """The plan in words: points, shards, expected time, and the refused cells with their rules."""
    spec = made.spec
    lines = [
        f"{spec.backend} on {spec.hardware.name}, EP={spec.ep.size}, {spec.workload.name} "
        f"({spec.workload.num_tokens} x {spec.workload.hidden}, {spec.workload.num_experts} experts, "
        f"top-{spec.workload.num_topk}, {spec.workload.dtype}, {spec.workload.routing})",
        f"points: {len(made.every_point)} ({len(made.cells)} cells of the grid, {len(made.anchors)} of the default, "
        f"{len(made.baselines)} of the baseline), {len(made.refused)} cells refused",
    ]
    lines += [
        f"shard {index}: {len(made.shard(index))} cells, about {made.expected_s(index):.0f} s"
        for index in range(min(spec.num_shards, _MAX_REFUSED_SHOWN))
    ]
    if spec.num_shards > _MAX_REFUSED_SHOWN:
        lines.append(f"... {spec.num_shards} shards in all")
    rules = Counter(str(violation.rule) for cell in made.refused for violation in cell.violations)
    for cell in made.refused[:_MAX_REFUSED_SHOWN]:
        why = "; ".join(str(violation) for violation in cell.violations)
        lines.append(f"refused: {cell.op} {report.knobs_text(cell.knobs)}: {why}")
    if len(made.refused) > _MAX_REFUSED_SHOWN:
        lines += [f"refused in all: {count} because a value must {rule}" for rule, count in rules.most_common()]
    return "\n".join(lines)
