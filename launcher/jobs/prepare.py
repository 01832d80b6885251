"""From a Spec to a checked plan and its run folder, and the plan in words."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launcher.config import hardware, plan
from launcher.config.plan import NOT_A_MEASUREMENT, SHARED_GPUS, Plan
from launcher.config.schema import Options, Spec
from launcher.errors import UserError
from launcher.store import revision
from launcher.store.run_folder import RunFolder
from launcher.text import knobs_text

_MAX_REFUSED_SHOWN = 20


def prepare(spec: Spec, options: Options, *, local: bool, command: Sequence[str]) -> tuple[Plan, RunFolder | None]:
    """The checked plan, and its run folder: a new one, or the one to complete; None for a dry run."""
    made = plan.make(hardware.resolve(spec, local=local, dry_run=options.dry_run))
    index = options.shard_index
    if index is not None and not 0 <= index < made.spec.num_shards:
        raise UserError(f"shard.index must lie in 0..{made.spec.num_shards - 1} (shard.count), got {index}")
    if options.dry_run:
        return made, None
    path = Path(options.run) if options.run else None
    if path is not None and (path / "run.json").exists():
        return made, _reopened(path, made, options, local=local)
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"run={path} exists and is no run folder", hint="name a run folder, or a path that is free")
    return made, RunFolder.create(made, outputs=Path(options.outputs), path=path, command=list(command))


def _reopened(path: Path, made: Plan, options: Options, *, local: bool) -> RunFolder:
    folder = RunFolder.open(path)
    folder.refuse_packed()
    runs_copy = not local and folder.code.is_dir()  # jobs run the code that the run began with
    begun_with, own = folder.manifest().revision, revision.code_digest()
    if not runs_copy and begun_with.code != own and not options.allow_mixed:
        raise UserError(
            f"{path} was begun by other code of this program ({begun_with.commit or begun_with.code}) than this, {own}",
            hint="resume it with that version; allow_mixed=true where the change touches no measurement",
        )
    if folder.manifest().plan_id != made.id:
        raise UserError(
            f"{path} was planned with another configuration",
            hint=f"repeat its own command, which run.json names, with run={path}",
        )
    return folder


def grant(made: Plan, folder: RunFolder, *, quiet: bool = False) -> None:
    """Gives a resumed run the budget of this command; prints a change of it unless ``quiet``."""
    before, granted = (one.spec.search.budget_s for one in (folder.plan(), made))
    if granted != before:
        folder.write_plan(made)
        if quiet:
            return
        shown = ["none" if one is None else f"{one:g} s" for one in (before, granted)]
        print(f"search.budget_s: {shown[0]} before, {shown[1]} from now on", file=sys.stderr)


def announce(made: Plan) -> None:
    """What kind of run this is, first of all."""
    if made.is_dry:
        print(NOT_A_MEASUREMENT, file=sys.stderr)
    if made.spec.ep.share_gpus:
        print(SHARED_GPUS, file=sys.stderr)


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
        lines.append(f"refused: {cell.op} {knobs_text(cell.knobs)}: {why}")
    if len(made.refused) > _MAX_REFUSED_SHOWN:
        lines += [f"refused in all: {count} because a value must {rule}" for rule, count in rules.most_common()]
    return "\n".join(lines)
