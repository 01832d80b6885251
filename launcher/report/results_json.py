"""From Results to the document of RESULTS_EP{n}.json (launcher.store.results_file); pure."""

from __future__ import annotations

import msgspec

from bench.backends import BACKENDS
from launcher.analysis.alignment import StartSkew
from launcher.analysis.components import Components
from launcher.analysis.control import Control
from launcher.analysis.layers import Layer
from launcher.analysis.libraries import Comparison
from launcher.analysis.measurements import Failure, Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.analysis.verdict import Verdict
from launcher.store.results_file import (
    SavedControl,
    SavedFailure,
    SavedHardware,
    SavedLibrary,
    SavedLibraryComparison,
    SavedMeasurement,
    SavedOperation,
    SavedPair,
    SavedResults,
    SavedSearch,
    SavedStartSkew,
    SavedVerdict,
    interval,
)
from launcher.store.saved_components import SavedComponent, SavedComponents
from launcher.store.saved_passes import SavedLayer, SavedOverlap
from launcher.text import utc


def document(results: Results) -> SavedResults:
    """All of a run's results, as they are saved: times to 0.01 us, shares to 0.0001."""
    plan, spec, manifest = results.plan, results.plan.spec, results.manifest
    hardware = msgspec.to_builtins(spec.hardware) | {"peak_gb_per_s": results.peak_gb_per_s}
    search = msgspec.to_builtins(spec.search) | {"final_groups_measured": results.final_groups}
    return SavedResults(
        program=manifest.program,
        command=manifest.command,
        started=utc(results.started),
        ended=utc(results.ended),
        revision=manifest.revision,
        timing=manifest.timing,
        hardware=msgspec.convert(hardware, SavedHardware),
        ep=spec.ep.size,
        shared_gpus=spec.ep.share_gpus,
        dry_run=plan.is_dry,
        workload=spec.workload,
        search=msgspec.convert(search, SavedSearch),
        environment=results.environment,
        hosts=results.hosts,
        cost=results.cost,
        traffic_tokens=results.tokens,
        points=results.counts,
        libraries=[_library(results.of(name)) for name in plan.spec.backends],
        comparisons=[_comparison(comparison) for comparison in results.comparisons],
        baselines=[_measurement(measurement) for measurement in results.baselines],
        measurements=[_measurement(measurement) for measurement in results.measurements],
        failures=[_failure(failure) for failure in results.failures],
        missing=[planned.point.label for planned in results.missing],
        refused=len(plan.refused),
        measured_again=results.num_again,
        self_checks=results.self_checks,
        rank_ratio=results.rank_ratio,
        start_skew=None if results.start_skew is None else _start_skew(results.start_skew),
        flags=results.flags,
        damaged_lines=results.damaged,
        components=None if results.components is None else _components(results.components),
    )


def _components(components: Components) -> SavedComponents:
    levels = [
        SavedComponent(
            level=level,
            op=op,
            deviation=None if each.deviation is None else round(each.deviation, 6),
            ci95=None if each.interval is None else interval(each.interval, digits=6),
            freedom=each.freedom,
        )
        for level, by_op in components.by_level.items()
        for op, each in by_op.items()
    ]
    return SavedComponents(components.runs, components.machines, components.configs, levels)


def _library(results: Results) -> SavedLibrary:
    """The answer for the library of this run."""
    choice, name = results.choice, results.plan.backend
    versions = {} if results.environment is None else results.environment.versions
    package = next(package for package in BACKENDS[name].packages if package != "torch")
    return SavedLibrary(
        name=name,
        version=versions.get(package),
        defaults={default: _pair(pair) for default, pair in choice.defaults.items()},
        optimal=_pair_or_none(choice.optimal),
        worst=_pair_or_none(choice.worst),
        tied=[_pair(pair) for pair in choice.tied],
        verdict=None if choice.verdict is None else _verdict(choice.verdict),
        speedup_over_default=results.speedup_over_default,
        pareto=[_pair(pair) for pair in choice.pareto],
        best_per_shared=[_pair(pair) for pair in choice.best_per_shared],
        picks={pick: _pair(pair) for pick, pair in choice.picks.items()},
        own_tuning=_pair_or_none(choice.own_tuning),
        overlapped=[_overlap(overlap) for overlap in choice.overlaps],
        layers=[_layer(layer) for layer in choice.layers],
        control=_control(results.controls.get(name)),
    )


def _control(control: Control | None) -> SavedControl | None:
    if control is None:
        return None
    return SavedControl(round(control.ratio, 5), interval(control.ci95, digits=5), control.groups)


def _start_skew(skew: StartSkew) -> SavedStartSkew:
    return SavedStartSkew(round(skew.median_us, 3), round(skew.p95_us, 3), skew.iterations, skew.groups)


def _comparison(comparison: Comparison) -> SavedLibraryComparison:
    return SavedLibraryComparison(
        a=comparison.first,
        b=comparison.second,
        pick=comparison.pick,
        ratio=round(comparison.ratio, 4),
        ci95=interval(comparison.ci95, digits=4),
        verdict=comparison.verdict,
        full=comparison.full,
        another_run=None if comparison.another_run is None else interval(comparison.another_run, digits=4),
    )


def _verdict(verdict: Verdict) -> SavedVerdict:
    return msgspec.convert(msgspec.to_builtins(verdict), SavedVerdict)


def _pair_or_none(pair: Pair | None) -> SavedPair | None:
    return None if pair is None else _pair(pair)


def _pair(pair: Pair) -> SavedPair:
    return SavedPair(
        shared_knobs=pair.shared,
        dispatch=_operation(pair.dispatch),
        combine=_operation(pair.combine),
        round_trip_us=round(pair.round_trip_us, 2),
        dispatch_full=None if pair.full is None else _operation(pair.full),
    )


def _operation(measurement: Measurement) -> SavedOperation:
    return SavedOperation(
        knobs=measurement.point.knobs,
        median_us=round(measurement.median_us, 2),
        ci95_us=interval(measurement.ci95_us, digits=2),
        spread=round(measurement.spread, 4),
        num_samples=len(measurement.samples),
        stage=measurement.stage,
        unstable=measurement.unstable,
        logical_gb_per_s=_round(measurement.logical_gb_per_s, 3),
        wire_gb_per_s=_round(measurement.wire_gb_per_s, 3),
        peak_fraction=_round(measurement.peak_fraction, 4),
    )


def _measurement(measurement: Measurement) -> SavedMeasurement:
    point, numbers = measurement.point, msgspec.structs.asdict(_operation(measurement))
    return SavedMeasurement(backend=point.backend, op=point.op, dtype=point.dtype, role=measurement.role, **numbers)


def _layer(layer: Layer) -> SavedLayer:
    return SavedLayer(
        dispatch=layer.dispatch,
        combine=layer.combine,
        training=layer.training,
        median_us=round(layer.median_us, 2),
        ci95_us=interval(layer.ci95_us, digits=2),
        gemms=layer.gemms,
    )


def _overlap(overlap: Overlap) -> SavedOverlap:
    ratio, ci95 = overlap.over_serial()
    return SavedOverlap(
        shared_knobs=overlap.pair.shared,
        dispatch=overlap.pair.dispatch.point.knobs,
        combine=overlap.pair.combine.point.knobs,
        makespan_us=round(overlap.makespan_us, 2),
        ci95_us=interval(overlap.ci95_us, digits=2),
        compute_us=round(overlap.compute_us, 2),
        compute_isolated_us=round(overlap.compute_isolated_us, 2),
        gemm_slowdown=round(overlap.slowdown, 4),
        gemm_slowdown_ci95=interval(overlap.slowdown_ci95, digits=4),
        serial_us=round(overlap.serial_us, 2),
        compute_to_communication=round(overlap.compute_to_communication, 3),
        over_serial=round(ratio, 4) if overlap.is_serial_measured else None,
        over_serial_ci95=interval(ci95, digits=4) if overlap.is_serial_measured else None,
        gemms=overlap.gemms,
    )


def _failure(failure: Failure) -> SavedFailure:
    return msgspec.convert(msgspec.to_builtins(failure), SavedFailure)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
