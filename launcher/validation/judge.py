"""From what was measured of one node to findings and a verdict, layer by layer; pure.

An absent layer is said, never silently passed. Every layer is one-sided: fast is never bad.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict

from launcher.validation import reference, wear
from launcher.validation.node import Attempt, Preflight, Rate
from launcher.validation.settings import Band, Spec
from launcher.validation.verdict import Finding, Verdict, worst

_TROUBLE = {
    "hang": (Verdict.HANG, "E601"),
    "crash": (Verdict.FAIL, "E602"),
    "cuda": (Verdict.FAIL, "E602"),
    "error": (Verdict.SETUP, "U901"),
    "start": (Verdict.SETUP, "U903"),
    "timeout": (Verdict.HANG, "E603"),
}
_WRONG = {"pairs": "E302", "alltoall": "E303"}
_SLOW = {"pair_copy": "E201", "pair_sm": "E201", "all_to_all": "E204", "dispatch": "E206", "combine": "E207"}
_THERMAL = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake")
LAYERS = ("correctness", "physics", "reference", "inside", "fleet", "stability", "context", "confirmation")


def judge(attempt: Attempt, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    """Every finding of one attempt, and what each layer had to say; fleet and confirmation come later."""
    findings = [
        *_inventory(attempt, spec),
        *_correctness(attempt),
        *wear.findings(attempt),
    ]
    slow, layers = _speed(attempt, spec)
    findings += _with_context(slow, attempt)
    checked = f"judged: {len(attempt.checks)} checks against the oracle" if attempt.checks else "absent: nothing ran"
    layers |= {"correctness": checked, "context": _context_layer(attempt)}
    return findings, layers


def conclude(attempts: list[Attempt], *, confirm: bool) -> tuple[list[Finding], str]:
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
    seen = {(one.code, _unordered(one.where)) for one in attempts[1].findings if one.needs_confirmation}
    kept = [one for one in doubtful if (one.code, _unordered(one.where)) in seen]
    gone = [one for one in doubtful if one not in kept]
    sure = {(one.code, one.where): one for one in [*_sure(first), *_sure(attempts[1].findings)]}
    new = [
        one
        for one in attempts[1].findings
        if one.needs_confirmation
        and (one.code, _unordered(one.where)) not in {(other.code, _unordered(other.where)) for other in doubtful}
    ]
    unsure = [_unconfirmed(one, "the other attempt did not see it") for one in [*gone, *new]]
    if kept:  # the fault is certain, whatever else only one attempt saw
        unsure = []
    said = f"judged: the second attempt, GPUs in order {attempts[1].order}, saw {len(kept)} of {len(doubtful)} again"
    return [*sure.values(), *kept, *unsure], said


def _sure(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if not one.needs_confirmation]


def _unordered(where: str) -> frozenset[str]:
    return frozenset(where.split(">"))


def _unconfirmed(one: Finding, why: str) -> Finding:
    return Finding(Verdict.INCONCLUSIVE, "U911", one.where, f"{one.code}, but {why}: {one.message}", "confirmation")


def headline(findings: list[Finding]) -> tuple[Verdict, str, str, str]:
    """Verdict, code, the short reason that Slurm's 20 columns show best, and the whole reason."""
    verdict = worst([one.verdict for one in findings])
    if verdict is Verdict.PASS:
        return verdict, "", "ok", "every check passed"
    first = next(one for one in findings if one.verdict is verdict)
    ratio = re.search(r"\b0\.\d\dx\b", first.message)
    short = ":".join(filter(None, [first.code, first.where]))
    return verdict, first.code, f"{short} {ratio[0]}" if ratio else short, first.message


# ---- layer 0: what is there


def _inventory(attempt: Attempt, spec: Spec) -> list[Finding]:
    found: list[Finding] = []
    there = attempt.preflight
    if there is None or (spec.on_cpu and not there.made_up):
        return found

    def note(verdict: Verdict, code: str, where: str, message: str) -> None:
        found.append(Finding(verdict, code, where, message, "inventory"))

    if len(there.gpus) < spec.gpus:
        note(Verdict.FAIL, "E101", "", f"{len(there.gpus)} of {spec.gpus} GPUs are there")
    pattern = spec.hardware.gpu_pattern
    for number, gpu in enumerate(there.gpus if pattern and not there.made_up else []):
        if not re.search(str(pattern), gpu.name):
            note(Verdict.FAIL, "E102", f"gpu{number}", f"it is a {gpu.name}, not a {spec.hardware.name}")
    expected = spec.hardware.num_links
    for number, up in enumerate(there.links_up):
        if up is not None and expected is not None and up < expected:
            note(Verdict.FAIL, "E103", f"gpu{number}", f"{up} of {expected} NVLinks are up")
    if there.topology and len(there.gpus) > 1 and expected and there.topology != "NVLINK":
        note(Verdict.FAIL, "E104", "", f"the pairs are connected by {there.topology}")
    return found + _foreign(there)


def _foreign(there: Preflight) -> list[Finding]:
    return [
        Finding(Verdict.SETUP, "U902", f"gpu{number}", f"{state.foreign_processes} other processes use it", "inventory")
        for number, state in enumerate(there.states)
        if state.foreign_processes
    ]


# ---- layer 1: correctness, and ranks that could not go on


def _correctness(attempt: Attempt) -> list[Finding]:
    found = [
        Finding(Verdict.FAIL, _WRONG.get(name.split(":")[0], "E301"), _place(name), f"{name}: {said}", "correctness")
        for name, said in attempt.checks.items()
        if said != "ok"
    ]
    for trouble in attempt.troubles:
        if trouble.kind == "incorrect":
            continue  # stands among the checks
        verdict, code = _TROUBLE[trouble.kind]
        found.append(Finding(verdict, code, trouble.where, f"{trouble.phase}: {trouble.message}", "correctness"))
    return found


def _place(name: str) -> str:
    match = re.search(r"gpu\d+>gpu\d+", name)
    return match[0] if match else ""


# ---- layers 2 to 6: speed


def _speed(attempt: Attempt, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    rates = attempt.rates
    layers = {
        "physics": "judged" if any(rate.peak for rate in rates) else "absent: no link whose peak is known",
        "inside": "judged: each GPU and pair by the others" if rates else "absent: nothing was measured",
        "stability": "judged" if rates else "absent: nothing was measured",
        "fleet": "absent: one node alone; the fleet's summary judges it",
    }
    found = _physics(rates, spec) + _dips(rates, spec) + _inside(rates, spec) + _stability(rates, spec)
    by_reference, layers["reference"] = _by_reference(attempt, spec)
    return found + by_reference, layers


def _physics(rates: list[Rate], spec: Spec) -> list[Finding]:
    found = []
    for rate in rates:
        band = spec.thresholds.floor(rate.test)
        if rate.peak is None or band is None:
            continue
        share = rate.median / rate.peak
        if share > 1:
            message = f"{rate.key} of {rate.median:.0f} {rate.unit} is {share:.0%} of the link's peak"
            found.append(Finding(Verdict.INCONCLUSIVE, "U912", rate.where, message, "physics"))
        elif share < band[0]:
            message = (
                f"{rate.key} of {rate.median:.0f} {rate.unit} is {share:.0%} of the link's peak, "
                f"{_limits(band)} is the floor"
            )
            found.append(Finding(_banded(share, band), _SLOW[rate.test], rate.where, message, "physics"))
    return found


def _banded(value: float, band: Band) -> Verdict:
    return Verdict.FAIL if value < band[1] else Verdict.WARN


def _limits(band: Band) -> str:
    return f"{band[0]:.0%} (fail {band[1]:.0%})"


def _dips(rates: list[Rate], spec: Spec) -> list[Finding]:
    """Bandwidth that falls when an all-to-all grows."""
    found = []
    steps = [rate for rate in rates if rate.test == "all_to_all"]
    for smaller, larger in itertools.pairwise(steps):
        ratio = larger.median / smaller.median
        if ratio < spec.thresholds.dip:
            message = f"{larger.key} reaches {ratio:.2f}x the bandwidth of {smaller.per}"
            found.append(Finding(Verdict.WARN, "E205", "", message, "physics"))
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
            found += _slow_gpus(key, {rate.where: rate.median for rate in members}, spec, code="E203")
    return _merged(found)


def _slow_gpus(key: str, of: dict[str, float], spec: Spec, *, code: str) -> list[Finding]:
    found = []
    for where, value in of.items():
        others = [other for place, other in of.items() if place != where]
        if not others:
            continue
        ratio = value / statistics.median(others)
        if ratio < spec.thresholds.inside[0]:
            message = f"{key} is {ratio:.2f}x that of the node's other GPUs"
            found.append(Finding(_banded(ratio, spec.thresholds.inside), code, where, message, "inside"))
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
        first = min(group, key=lambda one: one.verdict is not Verdict.FAIL)
        more = f" (and {len(group) - 1} more of the same)" if len(group) > 1 else ""
        merged.append(Finding(first.verdict, first.code, first.where, first.message + more, first.layer))
    return merged


def _stability(rates: list[Rate], spec: Spec) -> list[Finding]:
    noisy = [rate for rate in rates if rate.variation > spec.thresholds.variation and rate.test != "pair_copy"]
    if not noisy:
        return []
    worst_one = max(noisy, key=lambda rate: rate.variation)
    message = (
        f"{worst_one.key} {worst_one.where}".strip()
        + f" varies by {worst_one.variation:.1%} over {len(worst_one.blocks)} blocks, after an extension"
    )
    return [Finding(Verdict.INCONCLUSIVE, "U910", worst_one.where, message, "stability")]


def _by_reference(attempt: Attempt, spec: Spec) -> tuple[list[Finding], str]:
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
    if ratio < spec.thresholds.reference[0]:
        message = f"{rate.key} is {ratio:.2f}x the reference of {known.num_nodes} good nodes"
        found.append(Finding(_banded(ratio, spec.thresholds.reference), code, rate.where, message, "reference"))
    distance = reference.distance(rate.blocks, known) if len(rate.blocks) >= 5 else 0.0
    if distance > spec.thresholds.shape[0]:
        verdict = Verdict.FAIL if distance > spec.thresholds.shape[1] else Verdict.WARN
        message = f"{rate.key} has slow blocks: {distance:.1%} below the reference's deciles"
        found.append(Finding(verdict, code, rate.where, message, "reference"))
    return found


# ---- layers 7 and the counters


def _with_context(slow: list[Finding], attempt: Attempt) -> list[Finding]:
    """Thermal throttling is named as the cause of slowness; a power cap under load is how GPUs work."""
    found = []
    for one in slow:
        reasons = sorted(
            {reason for gpu, said in attempt.throttled.items() for reason in said if gpu in one.where or not one.where}
            & set(_THERMAL)
        )
        if reasons and one.verdict in (Verdict.FAIL, Verdict.WARN):
            found.append(Finding(one.verdict, "E501", one.where, f"{', '.join(reasons)}: {one.message}", "context"))
        else:
            found.append(one)
    return found


def _context_layer(attempt: Attempt) -> str:
    if not attempt.after:
        return "absent: no counters of GPUs"
    said = "; ".join(f"{gpu} {', '.join(reasons)}" for gpu, reasons in attempt.throttled.items() if reasons)
    return f"judged: {said or 'no GPU was throttled'}"
