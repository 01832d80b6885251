"""The appendix of a report: points, failures, checks, provenance; pure."""

from __future__ import annotations

import shlex
import time
from collections import Counter

from bench.backends import BACKENDS
from launcher.analysis.measurements import Failure
from launcher.analysis.results import Results
from launcher.analysis.scatter import scatter_of
from launcher.config.plan import FINAL, shard_name
from launcher.report.report import Report
from launcher.text import code, table, text

_MAX_FAILURES = 50


def points(report: Report) -> list[str]:
    """Planned, measured, failed and missing points, and the cells that the plan refused."""
    results, counts = report.results, report.results.counts
    lines = [
        "## Points",
        "",
        *table(
            ("planned", "measured", "failed", "missing"),
            [[str(counts.planned), str(counts.measured), str(counts.failed), str(counts.missing)]],
        ),
    ]
    if results.missing:
        labels = ", ".join(code(planned.point.label) for planned in results.missing[:10])
        more = f" and {len(results.missing) - 10} more" if len(results.missing) > 10 else ""
        lines += [f"**Missing:** {labels}{more}. `python -m launcher.resume RUN` measures them.", ""]
    if results.plan.refused:
        rules = Counter(
            f"{_owner(report, cell.backend)}{v.key} must {v.rule}"
            for cell in results.plan.refused
            for v in cell.violations
        )
        lines += [f"{len(results.plan.refused)} cells of the grid break a rule and were not planned:", ""]
        lines += [f"* {text(rule)}: {count}" for rule, count in sorted(rules.items())] + [""]
    return lines


def _owner(report: Report, backend: str) -> str:
    """The name of a library before what is about it, where there are several."""
    return f"{BACKENDS[backend].title}: " if report.libraries and backend else ""


def failures(report: Report) -> list[str]:
    """The first fifty failures; the RESULTS file has all."""
    failures = report.results.failures
    if not failures:
        return []
    kinds = Counter(failure.kind for failure in failures)
    lines = [f"## Failures: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}", ""]
    lines += table(
        ("point", "kind", "phase", "rank", "what happened"),
        [_failure_row(failure) for failure in failures[:_MAX_FAILURES]],
    )
    if len(failures) > _MAX_FAILURES:
        lines += [f"{len(failures) - _MAX_FAILURES} more are in the RESULTS file.", ""]
    return lines


def _failure_row(failure: Failure) -> list[str]:
    rank = "" if failure.rank is None else str(failure.rank)
    return [code(failure.point.label), text(failure.kind), text(failure.phase), rank, text(failure.message)]


def checks(report: Report) -> list[str]:
    """Checks of the measurement itself: timer, routings, stability, cost, odd GPUs, unreadable lines."""
    results = report.results
    lines = ["## Checks", ""]
    empty = sorted(value for check in results.self_checks for value in check.empty_op_us)
    if empty:
        lines.append(f"* An empty operation takes {empty[len(empty) // 2]:.1f} us (median of {len(empty)}).")
    if results.rank_ratio is not None:
        lines.append(f"* Slowest over fastest rank in the default dispatch: {results.rank_ratio:.3f}.")
    skew = results.start_skew
    if skew is not None:
        lines.append(
            f"* Ranks start within {skew.median_us:.1f} us of one another (median of {skew.iterations} iterations in "
            f"{skew.groups} process groups; {skew.p95_us:.1f} us in 95 %, delays of the signals included). A time is "
            "too long by at most that: a rank that starts early waits for the last one."
        )
    for check in results.self_checks:
        place = shard_name(check.shard).capitalize() + (f", {BACKENDS[check.backend].title}" if check.backend else "")
        bad = {name: verdict for name, verdict in check.edge_routings.items() if verdict != "ok"}
        good = [name for name in check.edge_routings if name not in bad]
        if good and check.shard >= FINAL:  # of repeats only what is wrong
            lines.append(f"* {place}: every token of the edge routings is correct: {', '.join(map(text, good))}.")
        lines += [f"* {place}: **{text(name)}**: {text(verdict)}" for name, verdict in bad.items()]
    lines += _noise(results)
    cost = results.cost
    if cost.wall_s:
        lines.append(
            f"* {cost.wall_s:.0f} s from the first start of ranks to the last record: "
            f"{cost.busy_s / cost.wall_s:.0%} in warm-up and timed iterations, "
            f"{cost.startup_s / cost.wall_s:.0%} waiting for ranks to start."
        )
    if cost.accounting:
        lines.append(f"* {cost.accounting.gpu_hours:.3f} GPU-hours, according to {text(cost.accounting.source)}.")
    lines += [f"* **{text(flag)}**" for flag in results.flags]
    lines += [f"* **{code(line.file)} line {line.line} cannot be read**: {text(line.why)}" for line in results.damaged]
    return [*lines, ""]


def nodes(report: Report) -> list[str]:
    """The nodes of several shards, each with the time of the default there."""
    if not report.results.levels:
        return []
    rows = [
        [
            shard_name(level.shard),
            text(", ".join(level.hosts)),
            *("n/a" if ratio is None else f"{ratio:.3f}x" for ratio in (level.dispatch, level.combine)),
        ]
        for level in report.results.levels
    ]
    return [
        "## Nodes",
        "",
        "The default on each node over the default on a typical one. Times of the sweep are divided by this before "
        "they are ranked; what a node does to other configs only stays in them. One node measures the final.",
        "",
        *table(("part", "node", "default dispatch", "default combine"), rows),
    ]


def _noise(results: Results) -> list[str]:
    """What shows whether the intervals can be trusted: the default against itself, repetitions that were off."""
    lines = [
        f"* A/A, {BACKENDS[name].title}: the default, measured once more as if it were another config, takes "
        f"{control.ratio:.4f}x as long as itself (95 % CI {control.ci95.low:.4f} to {control.ci95.high:.4f}, "
        f"{control.groups} groups)."
        for name, control in results.controls.items()
    ]
    if results.final_groups:
        off = "spread above 10 %, or more than 2 % from the config's other groups"
        lines.append(f"* Repetitions of the final that were off ({off}) and were measured again: {results.num_again}.")
    scatter = scatter_of(results.measurements)
    if scatter is not None:
        runs = (
            f", {scatter.same_gpus:.2%} between runs on the same GPUs, {scatter.other_gpus:.2%} on others (published)"
        )
        lines.append(
            f"* Scatter of a config's time (standard deviation, median over {scatter.configs} configs of the final): "
            f"{scatter.iterations:.2%} between iterations, {scatter.groups:.2%} between process groups"
            f"{'' if results.plan.is_dry else runs}."
        )
    num_unstable = sum(measurement.unstable for measurement in results.measurements)
    return [*lines, f"* Unstable points (spread still above 10 % after more samples): {num_unstable}."]


def provenance(report: Report) -> list[str]:
    """Command, revision, dates, hosts and versions."""
    results = report.results
    manifest, environment = results.manifest, results.environment
    revision = manifest.revision.commit or "unknown"
    dirty = " with local changes" if manifest.revision.dirty else ""
    lines = [
        "## Provenance",
        "",
        f"* Command: {code(shlex.join(manifest.command))}",
        f"* Program: deepep-sweep {text(manifest.program)}, revision {text(revision)}{dirty}, "
        f"code {text(manifest.revision.code)}",
        f"* Measured: {_date(results.started)} to {_date(results.ended)}",
        f"* Hosts: {', '.join(sorted({text(host.hostname) for host in results.hosts})) or 'none'}",
    ]
    if environment is not None:
        versions = ", ".join(f"{text(name)} {text(version)}" for name, version in sorted(environment.versions.items()))
        lines.append(f"* Versions: {versions}")
        if environment.driver:
            lines.append(
                f"* Driver {text(environment.driver)}; {environment.num_links or 'unknown number of'} NVLinks per GPU, "
                f"GPU pairs connected by {text(environment.topology)}"
            )
    lines.append("* Raw samples: `shards/*/records.jsonl`")
    return [*lines, ""]


def _date(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
