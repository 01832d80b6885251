"""The run folder of a plan, and the plan in words."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.backends import BACKENDS
from bench.records import Op
from launcher.config.hardware import facts_of
from launcher.config.plan import FINALISTS_PER_GROUP, NOT_A_MEASUREMENT, REPEAT_GROUPS, SHARED_GPUS, Plan
from launcher.config.schema import Options
from launcher.errors import UserError
from launcher.store.records_file import refuse_packed
from launcher.store.revision import can_repeat, can_run_jobs, code_digest
from launcher.store.run_folder import RunFolder
from launcher.text import knobs_text
from launcher.tuner import repeats

_MAX_LINES = 20
"""Shards, and refused cells, that ``describe`` lists one by one."""


def prepare(
    plan: Plan, options: Options, *, command: Sequence[str], in_jobs: bool = False, quiet: bool = False
) -> RunFolder:
    """Makes the run folder of a plan, or opens the one to complete. UserError if that cannot be.

    ``in_jobs``: other processes measure, with the run's own copy of the code. ``quiet``: prints no note, such as which
    libraries are left out.
    """
    for line in () if quiet else _left_out(plan):
        print(line, file=sys.stderr)
    path = Path(options.run) if options.run else None
    if path is not None and (path / "run.json").exists():
        return _reopen(path, plan, options, in_jobs=in_jobs, quiet=quiet)
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"run={path} exists and is not a run folder", hint="name a run folder, or a path that is free")
    return RunFolder.create(plan, outputs=Path(options.outputs), path=path, command=list(command))


def _reopen(path: Path, plan: Plan, options: Options, *, in_jobs: bool, quiet: bool) -> RunFolder:
    """The folder of an earlier command. UserError if other code or another configuration began the run."""
    folder = RunFolder.open(path)
    refuse_packed(folder)
    has_copy = in_jobs and folder.code.is_dir()  # jobs run the code that the run began with
    if has_copy:
        _check_copy(folder, options)
    else:
        _check_code(folder, options, quiet=quiet)
    num_finalists = folder.earlier_options().finalists_per_group
    if num_finalists != FINALISTS_PER_GROUP:
        raise UserError(
            f"{path} was planned with search.finalists_per_group={num_finalists}, which this version fixes at "
            f"{FINALISTS_PER_GROUP}",
            hint="resume it with the version that began it, which run.json names",
        )
    if folder.plan().id != plan.id:  # an id of its plan.json by this version: options come and go
        raise UserError(
            f"{path} was planned with another configuration",
            hint=f"python -m launcher.resume {shlex.quote(str(path))} completes it, without keys that change the plan",
        )
    return folder


def _check_copy(folder: RunFolder, options: Options) -> None:
    """UserError if the run's copy of the code is of a version whose jobs this one cannot start."""
    if not can_run_jobs(folder.code) and not options.allow_other_code:
        run = shlex.quote(str(folder.path.resolve()))
        raise UserError(
            f"{folder.path} was begun by an earlier version, whose jobs this one cannot start",
            hint=f"resume it with its own code: cd {run}/code && python -m launcher.resume {run}; "
            "allow_other_code=true completes it with this version",
        )
    if options.repeat and not can_repeat(folder.code) and not options.allow_other_code:
        raise UserError(
            f"{folder.path} was begun by an earlier version, whose jobs measure no repeats",
            hint="allow_other_code=true measures them with this version",
        )


def _check_code(folder: RunFolder, options: Options, *, quiet: bool) -> None:
    """UserError if other code of this program began the run."""
    begun, code = folder.manifest().revision, code_digest()
    if begun.code != code and not _allows_other_code(options, quiet=quiet):
        raise UserError(
            f"{folder.path} was begun by other code of this program ({begun.commit or begun.code}) than this, {code}",
            hint="resume it with that version; allow_other_code=true where the change touches no measurement",
        )


def _allows_other_code(options: Options, *, quiet: bool) -> bool:
    """Whether the options let this code complete the run; ``allow_mixed`` did so in earlier versions."""
    if options.allow_mixed and not options.allow_other_code and not quiet:
        print(
            "note: allow_mixed=true also resumes with other code; allow_other_code=true is the option for that",
            file=sys.stderr,
        )
    return options.allow_other_code or options.allow_mixed


def extend(plan: Plan, folder: RunFolder, *, quiet: bool = False) -> Plan:
    """Writes this command's budget and repeats into the folder, if they differ from the run's; prints the change.

    ``plan.repeats`` are to be measured by this command, planned ones without records among them. The plan of the run
    from now on.
    """
    old = folder.plan()
    new = msgspec.structs.replace(plan, repeats=_planned_repeats(folder, old, wanted=plan.repeats))
    before, now = old.spec.search.budget_s, new.spec.search.budget_s
    if (now, new.repeats) != (before, old.repeats):
        folder.write_plan(new)
    if now != before and not quiet:
        texts = ["none" if budget_s is None else f"{budget_s:g} s" for budget_s in (before, now)]
        print(f"search.budget_s: {texts[0]} before, {texts[1]} from now on", file=sys.stderr)
    if new.repeats != old.repeats and not quiet:
        print(f"repeats of the final: {old.repeats} before, {new.repeats} from now on", file=sys.stderr)
    return new


def _planned_repeats(folder: RunFolder, plan: Plan, *, wanted: int) -> int:
    if not wanted or not plan.repeats:
        return wanted or plan.repeats
    num_missing = len(repeats.missing(folder, repeats.contestants(folder)))
    return max(plan.repeats, plan.repeats - num_missing + wanted)


def print_caveats(plan: Plan) -> None:
    """Prints why the times of a run mean nothing, if they do not."""
    if plan.is_dry:
        print(NOT_A_MEASUREMENT, file=sys.stderr)
    if plan.spec.ep.share_gpus:
        print(SHARED_GPUS, file=sys.stderr)


def describe(plan: Plan) -> str:
    """The plan in words: libraries, points, shards and expected time; defaults and refused cells of each library."""
    spec, workload = plan.spec, plan.spec.workload
    titles = [BACKENDS[name].title for name in spec.backends]
    lines = [
        f"{', '.join(titles)} on {spec.hardware.name}, EP={spec.ep.size}, {workload.name} "
        f"({workload.num_tokens} x {workload.hidden}, {workload.num_experts} experts, "
        f"top-{workload.num_topk}, {workload.dtype}, {workload.routing})",
        f"points: {len(plan.every_point)} ({len(plan.cells)} cells, {len(plan.anchors)} of the default, "
        f"{len(plan.baselines)} of the baseline), {len(plan.refused)} cells refused",
    ]
    lines += [
        f"shard {index}: {len(plan.shard(index))} cells, about {plan.expected_s(index):.0f} s"
        for index in range(min(spec.num_shards, _MAX_LINES))
    ]
    if spec.num_shards > _MAX_LINES:
        lines.append(f"... {spec.num_shards} shards in all")
    if plan.repeats:
        lines.append(f"repeats: {plan.repeats} short finals of {REPEAT_GROUPS} process groups after the final")
    lines += [line for name in spec.backends for line in _describe_library(plan.of(name))]
    return "\n".join([*lines, *_left_out(plan), *_describe_baselines(plan)])


def _left_out(plan: Plan) -> list[str]:
    """Which libraries backend=all does not take, and why."""
    return [f"{BACKENDS[name].title} is left out: {why}" for name, why in plan.left_out.items()]


def _describe_library(plan: Plan) -> list[str]:
    """The part of the plan that is about one library."""
    backend, spec = BACKENDS[plan.backend], plan.spec
    facts = facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)
    dispatch, combine = (backend.defaults(op, facts) for op in (Op.DISPATCH, Op.COMBINE))
    lines = [f"{backend.title}: {len(plan.cells)} cells, {len(plan.refused)} refused"]
    for name, config in dispatch.items():
        shown = knobs_text(config) or "no knobs"
        if combine[name] != config:
            shown = f"dispatch {shown}; combine {knobs_text(combine[name])}"
        lines.append(f"  default {name}: {shown}")
    for cell in plan.refused[:_MAX_LINES]:
        why = "; ".join(str(violation) for violation in cell.violations)
        lines.append(f"  refused: {cell.op} {knobs_text(cell.knobs)}: {why}")
    if len(plan.refused) > _MAX_LINES:
        rules = Counter(str(violation.rule) for cell in plan.refused for violation in cell.violations)
        lines += [f"  refused in all: {count} because a value must {rule}" for rule, count in rules.most_common()]
    return lines


def _describe_baselines(plan: Plan) -> list[str]:
    """The plain collectives, each with its operations."""
    ops: dict[str, list[str]] = {}
    for baseline in plan.baselines:
        ops.setdefault(BACKENDS[baseline.point.backend].title, []).append(baseline.point.op)
    named = [f"{title} ({', '.join(each)})" for title, each in ops.items()]
    return [f"baselines: {', '.join(named)}"] if named else []
