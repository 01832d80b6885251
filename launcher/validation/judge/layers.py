"""From what was measured of one node to findings and a verdict, layer by layer; pure.

An absent layer is said, never silently passed. Every layer is one-sided: fast is never bad.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict

from launcher.validation import reference
from launcher.validation.codes import Finding, NodeVerdict, worst
from launcher.validation.config import ALLTOALL_FLOOR_MIB, COPY_FLOOR_MIB, Band, Spec
from launcher.validation.judge import counter_growth
from launcher.validation.node import Node, Preflight, Rate, SuiteRun

_TROUBLE = {
    "hang": (NodeVerdict.HANG, "E601"),
    "crash": (NodeVerdict.FAIL, "E602"),
    "cuda": (NodeVerdict.FAIL, "E602"),
    "error": (NodeVerdict.SETUP, "U901"),
    "start": (NodeVerdict.SETUP, "U903"),
    "timeout": (NodeVerdict.INCONCLUSIVE, "U915"),
    "driver": (NodeVerdict.HANG, "E605"),
}
_SITE = {
    r"ModuleNotFoundError|ImportError|undefined symbol": (NodeVerdict.SETUP, "U903"),
    r"(?i)no kernel image is available|driver version is insufficient|invalid device function": (
        NodeVerdict.SETUP,
        "U903",
    ),
    r"(?i)out of memory": (NodeVerdict.SETUP, "U904"),
}
"""What a rank's last words say of its environment, whatever became of it."""

_WRONG = {"pairs": "E302", "alltoall": "E303"}
_SLOW = {"pair_copy": "E201", "pair_sm": "E201", "all_to_all": "E204", "dispatch": "E206", "combine": "E207"}
_THERMAL = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake")
_SPEED_LAYERS = ("physics", "reference", "inside", "stability", "context", "fleet", "confirmation")
LAYERS = ("inventory", "correctness", "physics", "reference", "inside", "fleet", "stability", "context", "confirmation")


def judge_suite_run(attempt: SuiteRun, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    """Every finding of one attempt, and what each layer had to say; fleet and confirmation come later."""
    inventory = _inventory(attempt, spec)
    findings = [*inventory, *_correctness(attempt), *counter_growth.findings(attempt)]
    slow, layers = _speed(attempt, spec)
    if any(one.code == "U914" for one in inventory):  # judged by the links and floors of another GPU
        slow, layers = [], dict.fromkeys(layers, "absent: the GPUs are not those that were named (U914)")
    findings += _with_context(slow, attempt)
    checked = f"judged: {len(attempt.checks)} checks against the oracle" if attempt.checks else "absent: nothing ran"
    if spec.workload.hidden % 128:
        checked += "; FP8 not tested: hidden is no multiple of 128"
    layers |= {"inventory": _inventory_layer(attempt, spec), "correctness": checked, "context": _context_layer(attempt)}
    if attempt.link_bytes:
        layers["physics"] += f"; {_two_counts(attempt)}"
    return findings, layers


def certain_faults(attempt: SuiteRun, spec: Spec) -> list[Finding]:
    """The faults of an attempt, over or not, that stand whatever comes after: wrong tokens, missing GPUs, counters."""
    found = [*_inventory(attempt, spec), *_correctness(attempt), *counter_growth.findings(attempt)]
    return certain_faults_of(found)


def drain_reason(node: Node) -> str:
    """The short reason to drain a node: a fault that needs no second look, or that had one. Empty where there is none.

    Empty too for what was injected on purpose, and for ranks without GPUs.
    """
    if node.faults or node.dry_run:
        return ""
    twice = node.complete and len(node.attempts) > 1
    seen = [
        one
        for one in node.findings
        if one.verdict in (NodeVerdict.FAIL, NodeVerdict.HANG)
        and one.code != "E208"
        and (twice or not one.needs_confirmation)
    ]
    return headline(seen)[2] if seen else ""


def certain_faults_of(findings: list[Finding]) -> list[Finding]:
    """Those that need no second look."""
    return [one for one in _sure(findings) if one.verdict is NodeVerdict.FAIL]


def conclude(attempts: list[SuiteRun], *, confirm: bool) -> tuple[list[Finding], str]:
    """What counts of the attempts, and what the confirmation layer says.

    What needs a second look counts if the second attempt saw the same (code and place); else it is INCONCLUSIVE.
    """
    first = attempts[0].findings
    doubtful = [one for one in first if one.needs_confirmation]
    if not doubtful:
        return first, "not needed"
    if len(attempts) == 1:
        said = "the second attempt is missing" if confirm else "switched off (confirm=false)"
        return (
            first if not confirm else [*_sure(first), *(_unconfirmed(one, said) for one in doubtful)]
        ), f"absent: {said}"
    second = attempts[1].findings
    left_over = [one for one in second if one.code == "U902" and one.code not in {other.code for other in first}]
    hung = [one for one in doubtful if one.verdict is NodeVerdict.HANG]
    if left_over and hung:  # what hung cannot even be killed: no second attempt is needed to believe it
        second = [*hung, *(one for one in second if one not in left_over)]
    kept = [one for one in doubtful if any(_same(one, other) for other in second)]
    gone = [one for one in doubtful if one not in kept]
    new = [one for one in second if one.needs_confirmation and not any(_same(one, other) for other in doubtful)]
    sure = {(one.code, one.where): one for one in [*_sure(first), *_sure(second)]}
    unsure = [_unconfirmed(one, "the other attempt did not see it") for one in [*gone, *new]]
    if kept:  # the fault is certain, whatever else only one attempt saw
        unsure = []
    said = f"judged: the second attempt, GPUs in order {attempts[1].order}, saw {len(kept)} of {len(doubtful)} again"
    return [*sure.values(), *kept, *unsure], said


def _sure(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if not one.needs_confirmation]


def _same(one: Finding, other: Finding) -> bool:
    """Whether a second attempt saw it again: in the same place, and by the same name or by that of its cause."""
    if one.where != other.where or not other.needs_confirmation:
        return False
    return one.code == other.code or "E501" in (one.code, other.code)


def _unconfirmed(one: Finding, why: str) -> Finding:
    return Finding(NodeVerdict.INCONCLUSIVE, "U911", one.where, f"{one.code}, but {why}: {one.message}", "confirmation")


def headline(findings: list[Finding]) -> tuple[NodeVerdict, str, str, str]:
    """NodeVerdict, code, the short reason that Slurm's 20 columns show best, and the whole reason.

    Of several findings with the worst verdict a wrong one goes before a slow one, and a slow GPU before a slow pair or
    a slow node, which may only follow from it.
    """
    verdict = worst([one.verdict for one in findings])
    if verdict is NodeVerdict.PASS:
        return verdict, "", "ok", "every check passed"
    first = min((one for one in findings if one.verdict is verdict), key=_consequence)
    ratio = re.search(r"\b0\.\d\dx\b", first.message)
    short = ":".join(filter(None, [first.code, first.where]))
    return verdict, first.code, f"{short} {ratio[0]}" if ratio else short, first.message


def _consequence(one: Finding) -> tuple[bool, int]:
    """How likely a finding only follows from another."""
    return one.layer in _SPEED_LAYERS, len(one.where.split(">")) if one.where else 3


# ---- layer 0: what is there


def _inventory(attempt: SuiteRun, spec: Spec) -> list[Finding]:
    there = attempt.preflight
    if there is None or (spec.on_cpu and not there.made_up):
        return []
    if not there.gpus:
        return [_noted(NodeVerdict.SETUP, "U913", f"none of {spec.gpus} GPUs is there for NVML")]
    misnamed = _misnamed(there, spec)
    unlike = [_noted(NodeVerdict.SETUP, "U914", misnamed)] if misnamed else _unlike(there, spec)
    return [*_missing(there, spec), *unlike, *_foreign(there)]


def _noted(verdict: NodeVerdict, code: str, message: str, where: str = "") -> Finding:
    return Finding(verdict, code, where, message, "inventory")


def _missing(there: Preflight, spec: Spec) -> list[Finding]:
    """Where nobody said how many belong here a container may show fewer than PCI on purpose."""
    seen = len(there.gpus)
    if seen < spec.gpus:
        return [_noted(NodeVerdict.FAIL, "E101", f"{seen} of {spec.gpus} GPUs are there")]
    if not spec.gpus_named and (there.pci_gpus or 0) > seen:
        message = f"PCI shows {there.pci_gpus} NVIDIA GPUs, NVML {seen}; gpus=N says how many are meant"
        return [_noted(NodeVerdict.WARN, "E101", message)]
    return []


def _others(there: Preflight, spec: Spec) -> list[int]:
    """GPUs of another kind than the hardware file's."""
    pattern = "" if there.made_up else spec.hardware.gpu_pattern or ""
    return [number for number, gpu in enumerate(there.gpus) if not re.search(pattern, gpu.name)]


def _misnamed(there: Preflight, spec: Spec) -> str | None:
    """What says that every GPU is of another kind than was named, so that nothing is wrong but the name."""
    if len(_others(there, spec)) == len(there.gpus):
        return f"they are {there.gpus[0].name}, not {spec.hardware.name}"
    counts, expected = {gpu.num_links for gpu in there.gpus}, spec.hardware.num_links
    if expected is None or counts & {expected, None}:
        return None
    numbers = " or ".join(map(str, sorted(count for count in counts if count is not None)))
    return f"every GPU has {numbers} NVLinks, {spec.hardware.name} has {expected}"


def _unlike(there: Preflight, spec: Spec) -> list[Finding]:
    """GPUs, links and connections that are not as the others or as the hardware file says."""
    expected = spec.hardware.num_links
    found = [
        _noted(
            NodeVerdict.FAIL, "E102", f"it is a {there.gpus[number].name}, not a {spec.hardware.name}", f"gpu{number}"
        )
        for number in _others(there, spec)
    ]
    found += [
        _noted(NodeVerdict.FAIL, "E103", f"{up} of {expected} NVLinks are up", f"gpu{number}")
        for number, up in enumerate(there.links_up)
        if up is not None and expected is not None and up < expected
    ]
    if there.topology and len(there.gpus) > 1 and expected and there.topology != "NVLINK":
        found.append(_noted(NodeVerdict.FAIL, "E104", f"the pairs are connected by {there.topology}"))
    return found


def _inventory_layer(attempt: SuiteRun, spec: Spec) -> str:
    there = attempt.preflight
    if there is None or not there.gpus:
        return "absent: no GPUs were seen"
    if there.made_up:
        return "absent: the GPUs are made up"
    if not spec.gpus_named:
        return f"absent: how many GPUs belong here is not known ({len(there.gpus)} seen); gpus=N says it"
    return f"judged: {len(there.gpus)} GPUs, {spec.gpus} expected"


def _foreign(there: Preflight) -> list[Finding]:
    return [
        Finding(
            NodeVerdict.SETUP, "U902", f"gpu{number}", f"{state.foreign_processes} other processes use it", "inventory"
        )
        for number, state in enumerate(there.states)
        if state.foreign_processes
    ]


# ---- layer 1: correctness, and ranks that could not go on


def _correctness(attempt: SuiteRun) -> list[Finding]:
    found = [
        Finding(
            NodeVerdict.FAIL,
            _WRONG.get(name.split(":")[0], "E301"),
            _place(f"{name}: {said}"),
            f"{name}: {said}",
            "correctness",
        )
        for name, said in attempt.checks.items()
        if said != "ok"
    ]
    for trouble in attempt.troubles:
        if trouble.kind == "incorrect":
            continue  # stands among the checks
        words = f"{trouble.message} {trouble.last_words}"
        site = [mapped for pattern, mapped in _SITE.items() if re.search(pattern, words)]
        verdict, code = site[0] if site else _TROUBLE[trouble.kind]
        found.append(Finding(verdict, code, trouble.where, f"{trouble.phase}: {trouble.message}", "correctness"))
    return found


def _place(name: str) -> str:
    match = re.search(r"gpu\d+(>gpu\d+)?", name)
    return match[0] if match else ""


# ---- layers 2 to 6: speed


def _speed(attempt: SuiteRun, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    rates = attempt.rates
    layers = {
        "physics": "judged" if any(rate.peak for rate in rates) else "absent: no link whose peak is known",
        "inside": "judged: copies of each pair and GEMMs of each GPU by the others"
        if rates
        else "absent: nothing was measured",
        "stability": "judged" if rates else "absent: nothing was measured",
        "fleet": "absent: one node alone; the fleet's summary judges it",
    }
    if layers["physics"] == "judged":
        layers["physics"] += _without_floor(spec)
    found = _physics(rates, spec) + _dips(rates, spec) + _inside(rates, spec) + _stability(rates, spec)
    by_reference, layers["reference"] = _by_reference(attempt, spec)
    return found + by_reference, layers


def _physics(rates: list[Rate], spec: Spec) -> list[Finding]:
    found = []
    for rate in rates:
        band = spec.thresholds.floor(rate.test)
        has_floor = spec.has_floor(rate.test, _mib(rate))
        if rate.peak is None or band is None or (not has_floor and rate.median <= rate.peak):
            continue
        share = rate.median / rate.peak
        if share > 1:
            message = f"{rate.key} of {rate.median:.0f} {rate.unit} is {share:.0%} of the link's peak"
            found.append(Finding(NodeVerdict.INCONCLUSIVE, "U912", rate.where, message, "physics"))
        elif share < band[0]:
            message = (
                f"{rate.key} of {rate.median:.0f} {rate.unit} is {share:.0%} of the link's peak, "
                f"{_limits(band)} is the floor"
            )
            found.append(Finding(_banded(share, band), _SLOW[rate.test], rate.where, message, "physics"))
    return found


def _without_floor(spec: Spec) -> str:
    """What dips, reference and fleet alone judge, as a clause each."""
    clauses = []
    if not spec.has_dispatch_floor:
        clauses.append("dispatch and combine have no floor with this backend, config or workload")
    if not spec.has_floor("all_to_all", max(spec.alltoall_mib)):
        clauses.append(f"the all-to-all has no floor below {ALLTOALL_FLOOR_MIB} MiB")
    if not spec.has_floor("pair_copy", spec.copy_mib):
        clauses.append(f"copies have no floor below {COPY_FLOOR_MIB} MiB")
    return "".join(f"; {clause}" for clause in clauses)


def _mib(rate: Rate) -> int:
    """The size in the name of a rate that has one, 64 MiB."""
    size = rate.per.removesuffix(" MiB")
    return int(size) if size.isdigit() else 0


def _banded(value: float, band: Band) -> NodeVerdict:
    return NodeVerdict.FAIL if value < band[1] else NodeVerdict.WARN


def _limits(band: Band) -> str:
    return f"{band[0]:.0%} (fail {band[1]:.0%})"


def _dips(rates: list[Rate], spec: Spec) -> list[Finding]:
    """Bandwidth that falls when an all-to-all grows."""
    found = []
    steps = sorted((rate for rate in rates if rate.test == "all_to_all"), key=_mib)
    for smaller, larger in itertools.pairwise(steps):
        ratio = larger.median / smaller.median
        if ratio < spec.thresholds.dip:
            message = f"{larger.key} reaches {ratio:.2f}x the bandwidth of {smaller.per}"
            found.append(Finding(NodeVerdict.WARN, "E205", "", message, "physics"))
    return found


def _inside(rates: list[Rate], spec: Spec) -> list[Finding]:
    """Each GPU and each pair over the median of the others: what no z-score can do with four GPUs."""
    found = []
    groups: dict[str, list[Rate]] = defaultdict(list)
    for rate in rates:
        if rate.where:
            groups[rate.key].append(rate)
    for key, members in groups.items():
        if ">" in members[0].where:
            found += _slow_pairs(key, members, spec)
        else:
            found += _slow_gpus(key, {rate.where: rate.median for rate in members}, spec.thresholds.inside_compute)
    return _merged(found)


def _slow_gpus(key: str, of: dict[str, float], band: Band) -> list[Finding]:
    found = []
    for where, value in of.items():
        others = [other for place, other in of.items() if place != where]
        if not others:
            continue
        ratio = value / statistics.median(others)
        if ratio < band[0]:
            message = f"{key} is {ratio:.2f}x that of the node's other GPUs"
            found.append(Finding(_banded(ratio, band), "E203", where, message, "inside"))
    return found


def _slow_pairs(key: str, members: list[Rate], spec: Spec) -> list[Finding]:
    """Slow pairs; a GPU all of whose pairs are slow is named instead of them.

    Two GPUs have one pair, in two directions: which of the two is at fault cannot be told from it.
    """
    of = {rate.where: rate.median for rate in members}
    slow: dict[str, float] = {}
    for where, value in of.items():
        others = [other for place, other in of.items() if place != where]
        ratio = value / max(statistics.median(others), 1e-12) if others else 1.0
        if ratio < spec.thresholds.inside[0]:
            slow[where] = ratio
    gpus = sorted({gpu for where in of for gpu in where.split(">")})
    found = []
    for gpu in gpus if len(gpus) > 2 else []:
        own = [where for where in of if gpu in where.split(">")]
        rest = [value for where, value in of.items() if where not in own]
        ratio = statistics.median(of[where] for where in own) / statistics.median(rest)
        if all(of[where] / statistics.median(rest) < spec.thresholds.inside[0] for where in own):
            message = f"{key}: every pair of it is slow, {ratio:.2f}x the other pairs"
            found.append(Finding(_banded(ratio, spec.thresholds.inside), "E203", gpu, message, "inside"))
            slow = {where: value for where, value in slow.items() if where not in own}
    for where, ratio in slow.items():
        message = f"{key} is {ratio:.2f}x that of the node's other pairs"
        found.append(Finding(_banded(ratio, spec.thresholds.inside), "E201", where, message, "inside"))
    return found


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding for each code and place, the worst, so that a slow GPU is one line and not six."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for one in findings:
        groups[one.code, one.where].append(one)
    merged = []
    for group in groups.values():
        first = min(group, key=lambda one: one.verdict is not NodeVerdict.FAIL)
        more = f" (and {len(group) - 1} more of the same)" if len(group) > 1 else ""
        merged.append(Finding(first.verdict, first.code, first.where, first.message + more, first.layer))
    return merged


def _stability(rates: list[Rate], spec: Spec) -> list[Finding]:
    noisy = [rate for rate in rates if rate.variation > spec.thresholds.noise(rate.test)]
    if not noisy:
        return []
    worst_one = max(noisy, key=lambda rate: rate.variation)
    message = (
        f"{worst_one.key} {worst_one.where}".strip()
        + f" scatters by {worst_one.variation:.1%} over {len(worst_one.blocks)} blocks, twice as many as planned"
    )
    return [Finding(NodeVerdict.INCONCLUSIVE, "U910", worst_one.where, message, "stability")]


def _by_reference(attempt: SuiteRun, spec: Spec) -> tuple[list[Finding], str]:
    if not spec.references:
        return [], "absent: no stored reference (learn=FILE makes one, reference=FILE uses it)"
    if attempt.environment is None:
        return [], "absent: nothing was measured"
    environment = attempt.environment
    versions = environment.versions
    key = (
        environment.device,
        environment.num_ranks,
        environment.num_links,
        versions.get("deep_ep", ""),
        versions.get("nccl", ""),
    )
    found, judged, absent = [], 0, []
    for rate in attempt.rates:
        known = reference.find(spec.references, key, rate.key)
        if known is None:
            absent.append(rate.key)
            continue
        judged += 1
        found += _against(rate, known, spec)
    if not judged:
        return [], f"absent: the reference has no entry for {environment.device} with these versions"
    missing = f"; none for {', '.join(sorted(set(absent)))}" if absent else ""
    return _merged(found), f"judged: {judged} rates{missing}"


def _against(rate: Rate, known: reference.Reference, spec: Spec) -> list[Finding]:
    found = []
    code = _SLOW.get(rate.test, "E203")
    ratio = rate.median / known.median
    band = spec.thresholds.by_reference(rate.test)
    if ratio < band[0]:
        message = f"{rate.key} is {ratio:.2f}x the reference of {known.num_nodes} good nodes"
        found.append(Finding(_banded(ratio, band), code, rate.where, message, "reference"))
    distance = reference.distance(rate.blocks, known) if len(rate.blocks) >= 5 else 0.0
    if distance > spec.thresholds.shape[0]:
        verdict = NodeVerdict.FAIL if distance > spec.thresholds.shape[1] else NodeVerdict.WARN
        message = f"{rate.key} has slow blocks: {distance:.1%} below the reference's deciles"
        found.append(Finding(verdict, code, rate.where, message, "reference"))
    return found


# ---- layers 7 and the counters


def _with_context(slow: list[Finding], attempt: SuiteRun) -> list[Finding]:
    """Thermal throttling is named as the cause of slowness; a power cap under load is how GPUs work."""
    found = []
    for one in slow:
        reasons = sorted(
            {reason for gpu, said in attempt.throttled.items() for reason in said if gpu in one.where or not one.where}
            & set(_THERMAL)
        )
        if reasons and one.verdict in (NodeVerdict.FAIL, NodeVerdict.WARN):
            found.append(Finding(one.verdict, "E501", one.where, f"{', '.join(reasons)}: {one.message}", "context"))
        else:
            found.append(one)
    named = {one.where for one in found if one.code == "E501"}
    for gpu, said in attempt.throttled.items():
        hot = sorted(set(said) & set(_THERMAL))
        if hot and gpu not in named:
            message = f"{', '.join(hot)}, though nothing was slow beside the others"
            found.append(Finding(NodeVerdict.WARN, "E501", gpu, message, "context"))
    return found


def _two_counts(attempt: SuiteRun) -> str:
    """What NVML's link counters say of the bytes that the rates stand on."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for one in attempt.link_bytes:
        ratios[one.test].append(one.ratio)
    said = ", ".join(f"{test} {min(of):.2f} to {max(of):.2f}" for test, of in ratios.items())
    return f"NVML's link counters over the bytes of the tokens: {said}"


def _context_layer(attempt: SuiteRun) -> str:
    if not attempt.after:
        return "absent: no counters of GPUs"
    said = "; ".join(f"{gpu} {', '.join(reasons)}" for gpu, reasons in attempt.throttled.items() if reasons)
    untold = sorted({name for one in attempt.after for name, value in one.values.items() if value is None})
    silent = f"; not told by this driver: {', '.join(untold)}" if untold else ""
    return f"judged: {said or 'no GPU was throttled'}{silent}"
