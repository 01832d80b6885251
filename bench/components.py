"""Components of the scatter of log times, between groups, runs and machines, and the mean over runs; pure.

The model of one config: log time = config + machine + run + group, all but the first random and independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from bench.stats import ALPHA, Floats, Interval, centre

Observed = Sequence[Sequence[Sequence[float]]]
"""The logs of one config by machine, run and group: [machines][runs of the machine][groups of the run], none empty."""


class Component(NamedTuple):
    """A standard deviation of log times: 0.01 is 1 %.

    ``variance``: its square as estimated, without bias: it may be below 0. ``interval``: 95 %, of the deviation.
    ``freedom``: how many independent differences it rests on; with 0 it is unknown, and ``interval`` None.
    """

    variance: float
    freedom: int
    interval: Interval | None

    @property
    def deviation(self) -> float | None:
        """The standard deviation, 0 where the parts below explain the scatter; None where it is unknown."""
        return math.sqrt(max(self.variance, 0.0)) if self.freedom > 0 else None


_KNOWN = 1e6
"""Degrees of freedom of a variance that is known."""

UNKNOWN = Component(0.0, 0, None)


class Components(NamedTuple):
    """What each group, run and machine adds. The groups' part contains what is below: repetitions and iterations."""

    group: Component
    run: Component
    machine: Component


class Estimate(NamedTuple):
    """A standard deviation with its degrees of freedom; infinite ones for a known deviation."""

    deviation: float
    freedom: float = math.inf


def component(mean_square: float, freedom: int, *, below: float, below_freedom: int, size: float = 1.0) -> Component:
    """The part of a mean square that what is below does not explain, over ``size``.

    ``below``: the mean square that the parts below would give alone. The interval is that of Tukey and Williams
    [Williams 1962, Biometrika 49:278].
    """
    if freedom < 1 or size <= 0:
        return UNKNOWN
    ends = []
    for quantile in (1 - ALPHA / 2, ALPHA / 2):
        least = below * float(scipy_stats.f.ppf(quantile, freedom, max(below_freedom, 1)))
        square = (mean_square - least) * freedom / float(scipy_stats.chi2.ppf(quantile, freedom)) / size
        ends.append(math.sqrt(max(square, 0.0)))
    return Component((mean_square - below) / size, freedom, Interval(*ends))


def components(configs: Sequence[Observed]) -> Components:
    """The components, pooled over configs, by analysis of variance of nested effects in unbalanced data.

    The sums of squares of each level over all configs equal their expectations [Henderson 1953, Biometrics 9:226,
    method 1; Searle, Casella and McCulloch 1992, Variance Components, chapter 5]. Degrees of freedom are those of one
    config, the one with most: the configs of a group, run or machine may move together.
    """
    tables = [_table(observed) for observed in configs]
    if not tables:
        return Components(UNKNOWN, UNKNOWN, UNKNOWN)
    total = _Table(*np.sum([list(table) for table in tables], axis=0).tolist())
    groups, runs, machines = (
        int(max(table[at] for table in tables)) for at in map(_Table._fields.index, ("groups", "runs", "machines"))
    )
    group = component(_mean(total.group_squares, total.groups), groups, below=0.0, below_freedom=1)
    run = component(
        _mean(total.run_squares, total.runs),
        runs if groups else 0,
        below=group.variance,
        below_freedom=groups,
        size=_mean(total.run_size, total.runs),
    )
    machine = component(
        _mean(total.machine_squares, total.machines),
        machines if runs and groups else 0,
        below=group.variance + _mean(total.run_in_machine, total.machines) * run.variance,
        below_freedom=runs,
        size=_mean(total.machine_size, total.machines),
    )
    return Components(group, run, machine)


class _Table(NamedTuple):
    """Degrees of freedom and sums of squares of each level, and how often the expectations of these contain a part."""

    groups: float
    runs: float
    machines: float
    group_squares: float
    run_squares: float
    machine_squares: float
    run_size: float
    run_in_machine: float
    machine_size: float


def _table(observed: Observed) -> _Table:
    """The analysis of variance of one config."""
    sizes = [np.array([len(run) for run in runs], dtype=float) for runs in observed]
    means = [np.array([np.mean(run) for run in runs]) for runs in observed]
    totals = np.array([size.sum() for size in sizes])
    machine_means = np.array([np.average(mean, weights=size) for mean, size in zip(means, sizes, strict=True)])
    total, num_runs = float(totals.sum()), sum(len(runs) for runs in observed)
    within = sum(float(size @ size) / each for size, each in zip(sizes, totals, strict=True))
    across = sum(float(size @ size) for size in sizes) / total
    return _Table(
        groups=total - num_runs,
        runs=num_runs - len(observed),
        machines=len(observed) - 1,
        group_squares=sum(float(np.var(run)) * len(run) for runs in observed for run in runs),
        run_squares=sum(
            float(size @ (mean - middle) ** 2) for size, mean, middle in zip(sizes, means, machine_means, strict=True)
        ),
        machine_squares=float(totals @ (machine_means - np.average(machine_means, weights=totals)) ** 2),
        run_size=total - within,
        run_in_machine=within - across,
        machine_size=total - float(totals @ totals) / total,
    )


def _mean(squares: float, freedom: float) -> float:
    return squares / freedom if freedom > 0 else 0.0


class Mean(NamedTuple):
    """A mean of logs over runs. ``interval``: of the runs on these machines; ``another``: for a run on another one."""

    log: float
    interval: Interval
    another: Interval


def mean_over_runs(observed: Observed, *, run: Estimate, machine: Estimate, groups: int) -> Mean | None:
    """The random-effects mean of one result, with two 95 % intervals; None where no run has two groups.

    Runs weigh by the inverse of their variance, run^2 + group^2 / groups, and machines likewise. The group part is the
    result's own, pooled over its runs. Of a run the robust centre of its groups counts. ``interval`` takes the machines
    as they are; ``another`` predicts a run of so many ``groups`` on another machine [Higgins, Thompson and
    Spiegelhalter 2009, J. R. Stat. Soc. A 172:137], by Student's quantiles with degrees of freedom as in
    Satterthwaite 1946.
    """
    table = _table(observed)
    if table.groups < 1:
        return None
    group = Estimate(math.sqrt(table.group_squares / table.groups), table.groups)
    middles, own = [], []
    for runs in observed:
        variances = np.array([run.deviation**2 + group.deviation**2 / len(each) for each in runs]).clip(1e-18)
        shares = 1 / variances / np.sum(1 / variances)
        middles.append(float(shares @ [math.log(centre(np.exp(each))) for each in runs]))
        sizes = np.array([len(each) for each in runs])
        own.append((float(shares @ shares), float(shares**2 @ (1 / sizes))))
    parts = np.array(own)
    variances = machine.deviation**2 + parts @ np.array([run.deviation**2, group.deviation**2])
    shares = 1 / variances.clip(1e-18) / np.sum(1 / variances.clip(1e-18))
    of_run, of_group = (shares**2 @ parts).tolist()
    log, of_machine = float(shares @ middles), float(shares @ shares)
    half = _half([(of_run, run), (of_group, group)], most=run.freedom)
    parts_elsewhere = [(1 + of_machine, machine), (1 + of_run, run), (1 / groups + of_group, group)]
    elsewhere = _half(parts_elsewhere, most=run.freedom)
    return Mean(log, Interval(log - half, log + half), Interval(log - elsewhere, log + elsewhere))


def _half(parts: Sequence[tuple[float, Estimate]], *, most: float) -> float:
    """Half of a 95 % interval whose variance is a sum of estimated ones, each with its factor.

    ``most``: its degrees of freedom at most. The parts of runs and groups come from the same differences, so together
    they are no better known than the means of the runs.
    """
    variances = [factor * each.deviation**2 for factor, each in parts]
    total = sum(variances)
    uncertain = sum(variance**2 / each.freedom for variance, (_, each) in zip(variances, parts, strict=True))
    freedom = min(total**2 / uncertain if uncertain > 0 else _KNOWN, most, _KNOWN)
    return float(scipy_stats.t.ppf(1 - ALPHA / 2, freedom)) * math.sqrt(total)


def robust_deviation(spreads: Floats) -> float:
    """The typical standard deviation of log samples, from interquartile ranges over medians."""
    return float(np.median(spreads)) / _IQR_OF_NORMAL if len(spreads) else 0.0


_IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution over its standard deviation."""
