"""The raw records of a published run, and the times that follow from them; docs/METHODOLOGY.md has the definitions.

Nothing here imports the program, so a mistake in its analysis shows as a number that differs.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import math
from collections import defaultdict
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tests.builders import ROOT

PUBLISHED = ROOT / "outputs" / "published"

EP4 = [
    f"h200x4-ep4-{layer}"
    for layer in ("deepseek_v3-bf16", "deepseek_v3-fp8", "qwen3_30b_a3b-bf16", "qwen3_30b_a3b-fp8")
]
EP2_H200, EP2_AGAIN, EP2_EXHAUSTIVE = "h200x2-ep2-bf16", "h200x2-ep2-bf16-again", "h200x2-ep2-exhaustive"
EP2_H100 = "h100x2-ep2-bf16"
EP2 = [
    *(f"h200x2-ep2-{run}" for run in ("bf16", "bf16-again", "fp8", "fp8-again")),
    *(f"h100x2-ep2-{run}" for run in ("bf16", "bf16-again", "fp8")),
]
LIBRARIES, SMALL_TOKENS = "h100x2-ep2-deepseek_v3-bf16-libraries", "h100x2-ep2-qwen3_30b_a3b-bf16-libraries"

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

Times = dict[int, float]
"""Microseconds by process group of the final, or by overlapped pass."""

Knobs = tuple[tuple[str, int], ...]
"""The knobs of a config, in the order of its record."""

SHARED = {"deepep": ("num_sms",), "deepep_v2": ("num_sms",), "nccl_ep": ("num_sms", "tokens_per_chunk")}
"""Knobs that a dispatch and its combine have in common."""


class Record(NamedTuple):
    """One measured repetition."""

    backend: str
    op: str
    dtype: str
    knobs: Knobs
    role: str
    is_final: bool
    round: int
    samples_us: list[float]
    started: float
    wall_s: float
    busy_s: float

    @property
    def median_us(self) -> float:
        return median(self.samples_us)

    @property
    def num_sms(self) -> int:
        return dict(self.knobs)["num_sms"]


@functools.cache
def lines(run: str) -> list[dict[str, Any]]:
    """Every line of the records of a run: the sweep's, then the final's."""
    files = sorted((PUBLISHED / run / "shards").glob("*/records.jsonl.gz"))
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


@functools.cache
def records(run: str) -> list[Record]:
    """Every measured repetition of a run; none of the published ones has a failure."""
    found = []
    for line in lines(run):
        if line["type"] == "record":
            assert line["outcome"]["kind"] == "measured", line["point"]
            found.append(_record(line))
    return found


def _record(line: dict[str, Any]) -> Record:
    point, outcome = line["point"], line["outcome"]
    return Record(
        point["backend"],
        point["op"],
        point["dtype"],
        tuple(point["knobs"].items()),
        line.get("role", "grid"),
        line.get("stage") == "final",
        line.get("round", 0),
        outcome["samples_us"],
        line["started"],
        line["wall_s"],
        line["busy_s"],
    )


def json_of(run: str, name: str) -> dict[str, Any]:
    """A tracked JSON file of a run: run.json, a NODE.json, or the RESULTS of a run of which nothing else is kept."""
    loaded: dict[str, Any] = json.loads((PUBLISHED / run / name).read_bytes())
    return loaded


def us(times: Times) -> float:
    """The Hodges-Lehmann centre over the groups."""
    return math.exp(centre(np.log([*times.values()])))


def centre(values: Floats) -> float:
    """The median of the means of every two values, each with itself too."""
    return median([float(one + other) / 2 for one, other in itertools.combinations_with_replacement(values, 2)])


def geometric_mean(times: Times) -> float:
    """Over passes."""
    return math.exp(math.fsum(map(math.log, times.values())) / len(times))


def plus(first: Times, second: Times) -> Times:
    """The sum in each group that measured both."""
    return {number: first[number] + second[number] for number in first.keys() & second.keys()}


@functools.cache
def final(run: str, op: str, backend: str = "deepep") -> dict[Knobs, Times]:
    """For each config of the final the median of its samples in each process group."""
    samples: dict[Knobs, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records(run):
        if record.is_final and (record.backend, record.op) == (backend, op):
            assert record.role not in ("again", "control"), "no published run has these yet"
            samples[record.knobs][record.round] += record.samples_us
    return {
        knobs: {number: median(values) for number, values in sorted(rounds.items())}
        for knobs, rounds in samples.items()
    }


class Pair(NamedTuple):
    """A dispatch and a combine that share the library's shared knobs, by their configs."""

    run: str
    backend: str
    dispatch: Knobs
    combine: Knobs

    @property
    def num_sms(self) -> int:
        return dict(self.dispatch)["num_sms"]

    @property
    def buffer(self) -> int:
        """The larger of the two buffers, by the last knob."""
        return max(knobs[-1][1] for knobs in (self.dispatch, self.combine))

    def of(self, op: str) -> Times:
        """The times of one operation: dispatch, dispatch_full or combine."""
        return final(self.run, op, self.backend)[self.combine if op == "combine" else self.dispatch]

    @property
    def buffer_mib(self) -> float:
        """The buffer of a rank of DeepEP V1 that holds both configs, in MiB."""
        return max(buffer_mib(self.run, knobs) for knobs in (self.dispatch, self.combine))

    @property
    def dispatch_us(self) -> float:
        return us(self.of("dispatch"))

    @property
    def combine_us(self) -> float:
        return us(self.of("combine"))

    @property
    def full_dispatch_us(self) -> float:
        return us(self.of("dispatch_full"))

    @property
    def round_trip(self) -> Times:
        """Cached dispatch + combine in each group."""
        return plus(self.of("dispatch"), self.of("combine"))

    @property
    def full_round_trip(self) -> Times:
        """Full dispatch + combine in each group."""
        return plus(self.of("dispatch_full"), self.of("combine"))

    @property
    def round_trip_us(self) -> float:
        return self.dispatch_us + self.combine_us

    @property
    def full_round_trip_us(self) -> float:
        return self.full_dispatch_us + self.combine_us

    @property
    def configs(self) -> str:
        """(num_sms, nvl_chunk, nvl_buffer) of both."""
        return " / ".join(f"({', '.join(str(value) for _, value in knobs)})" for knobs in (self.dispatch, self.combine))


def shared_of(knobs: Knobs, backend: str) -> tuple[int, ...]:
    """The values of the knobs that a pair shares."""
    return tuple(dict(knobs)[name] for name in SHARED[backend])


@functools.cache
def pairs(run: str, backend: str = "deepep") -> list[Pair]:
    """The best pair for each value of the shared knobs, by the final; fewest SMs first."""
    allowed = {op: _within_memory(run, op, backend) for op in ("dispatch", "combine")}
    found = []
    for shared in sorted({shared_of(knobs, backend) for knobs in allowed["dispatch"]}):
        dispatches, combines = (_as_fast(times, backend, shared) for times in allowed.values())
        candidates = [Pair(run, backend, one, other) for one, other in itertools.product(dispatches, combines)]
        if candidates:
            found.append(min(candidates, key=lambda pair: (pair.buffer, pair.round_trip_us)))
    return found


def _within_memory(run: str, op: str, backend: str) -> dict[Knobs, Times]:
    """The configs of the final whose buffer is at most 2047 MiB."""
    return {knobs: times for knobs, times in final(run, op, backend).items() if fits(run, backend, knobs)}


def _as_fast(configs: dict[Knobs, Times], backend: str, shared: tuple[int, ...]) -> list[Knobs]:
    """The fastest config with these shared knobs, and those within 0.3 % of it."""
    times = {knobs: us(t) for knobs, t in configs.items() if shared_of(knobs, backend) == shared}
    return [knobs for knobs, time_us in times.items() if time_us <= 1.003 * min(times.values())]


def slower_p(times: Times, reference: Times) -> float:
    """The one-sided p-value of Student's paired test; the null hypothesis is that ``times`` are not slower."""
    logs = np.log([times[number] / reference[number] for number in times.keys() & reference.keys()])
    return float(stats.t.sf(logs.mean() * math.sqrt(len(logs)) / logs.std(ddof=1), len(logs) - 1))


def holm(p_values: list[float]) -> list[bool]:
    """Which hypotheses Holm's procedure rejects at 5 %."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > 0.05 / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def pair_of(run: str, num_sms: int, backend: str = "deepep") -> Pair:
    """The best pair with exactly this many SMs."""
    return min((pair for pair in pairs(run, backend) if pair.num_sms == num_sms), key=lambda pair: us(pair.round_trip))


def at_most(run: str, limit: int, backend: str = "deepep") -> Pair:
    """The best pair with at most this many SMs."""
    return min((pair for pair in pairs(run, backend) if pair.num_sms <= limit), key=lambda pair: pair.round_trip_us)


@functools.cache
def optimal(run: str, backend: str = "deepep") -> Pair:
    """Of the pairs within 0.3 % of the fastest and tied with it: the one with the fewest SMs, the smallest buffer."""
    best, *others = sorted(pairs(run, backend), key=lambda pair: pair.round_trip_us)
    near = [pair for pair in others if pair.round_trip_us <= 1.005 * best.round_trip_us]
    slower = holm([slower_p(pair.round_trip, best.round_trip) for pair in near])
    tied = [best, *(pair for pair, is_slower in zip(near, slower, strict=True) if not is_slower)]
    return min(
        (pair for pair in tied if pair.round_trip_us <= 1.003 * best.round_trip_us),
        key=lambda pair: (shared_of(pair.dispatch, backend), pair.buffer),
    )


def default(run: str, backend: str = "deepep") -> Pair:
    """The library's own default: the anchors."""
    knobs = {
        record.op: record.knobs for record in records(run) if record.role == "anchor" and record.backend == backend
    }
    return Pair(run, backend, knobs["dispatch"], knobs["combine"])


def config(run: str, *values: int) -> Pair:
    """A config (num_sms, nvl_chunk, nvl_buffer) for both operations."""
    knobs = tuple(zip(("num_sms", "nvl_chunk", "nvl_buffer"), values, strict=True))
    return Pair(run, "deepep", knobs, knobs)


def plain(run: str, backend: str) -> Pair:
    """A plain collective that the final measured."""
    (dispatch,), (combine,) = (final(run, op, backend) for op in ("dispatch", "combine"))
    return Pair(run, backend, dispatch, combine)


def own_tuning(run: str) -> Pair:
    """The best pair of DeepEP V1's own tuning grid: 24 SMs, a buffer of 256."""
    best = {}
    for op in ("dispatch", "combine"):
        times = {knobs: us(t) for knobs, t in final(run, op).items() if (knobs[0][1], knobs[2][1]) == (24, 256)}
        best[op] = min(times, key=lambda knobs: times[knobs])
    return Pair(run, "deepep", best["dispatch"], best["combine"])


def knee(run: str) -> Pair:
    """The pair with the fewest SMs within 5 % of the fastest."""
    limit_us = 1.05 * min(pair.round_trip_us for pair in pairs(run))
    return min((pair for pair in pairs(run) if pair.round_trip_us <= limit_us), key=lambda pair: pair.num_sms)


def fits(run: str, backend: str, knobs: Knobs) -> bool:
    """Whether the buffer is small enough for a pick; only that of DeepEP V1 depends on the config."""
    return backend != "deepep" or buffer_mib(run, knobs) <= 2047


def buffer_mib(run: str, knobs: Knobs) -> float:
    """The buffer of a rank of DeepEP V1 in MiB, by its ``Config.get_nvl_buffer_size_hint``."""
    num_ranks = 4 if "ep4" in run else 2
    slot_bytes = 2 * hidden_of(run) + 8 + 128 * 8 + 2 * 128 * 4
    return dict(knobs)["num_sms"] // 2 * num_ranks * (20 + dict(knobs)["nvl_buffer"] * slot_bytes) / 2**20


def hidden_of(run: str) -> int:
    return 2048 if "qwen3" in run else 7168


def node(validation: str) -> dict[str, Any]:
    """NODE.json of a published validation."""
    return json_of(validation, "nodes/vm/NODE.json")


def wire_gb_per_s(run: str, op: str) -> float:
    """GB/s of the optimal dispatch or combine."""
    return wire_of(run, op, us(optimal(run).of(op)))


def wire_of(run: str, op: str, time_us: float) -> float:
    """GB/s: what the busiest rank sends to or receives from others over the time."""
    tokens = np.array(next(line["tokens"] for line in lines(run) if line["type"] == "traffic"))
    crossing = tokens - np.diag(np.diag(tokens))
    (dtype,) = {record.dtype for record in records(run) if record.op == op}
    hidden = hidden_of(run)
    token_bytes = 2 * hidden if dtype == "bf16" else hidden + 4 * hidden // 128
    busiest = max(crossing.sum(axis=0).max(), crossing.sum(axis=1).max())
    return float(busiest * token_bytes / time_us / 1000)


def rate(validation: str, test: str, per: str) -> float:
    """A rate in NODE.json: the median over the blocks of all GPUs or pairs."""
    rates = node(validation)["attempts"][0]["rates"]
    return float(
        np.median([block for one in rates if (one["test"], one["per"]) == (test, per) for block in one["blocks"]])
    )


def counted(validation: str, test: str) -> list[float]:
    """What NVML's link counters counted over our bytes, on every GPU and in both directions."""
    counters = node(validation)["attempts"][0]["link_bytes"]
    return [one["nvml_bytes"] / one["wire_bytes"] for one in counters if one["test"] == test]


def gemms_over_others(validation: str, gpu: str) -> float:
    """The rate of a GPU's GEMMs over the median of the others."""
    rates = node(validation)["attempts"][0]["rates"]
    medians = {one["where"]: median(one["blocks"]) for one in rates if one["test"] == "compute"}
    return float(medians[gpu] / median([rate for other, rate in medians.items() if other != gpu]))
