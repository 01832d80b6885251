"""The vocabulary of judgement: verdicts, codes, findings, and exit statuses; pure."""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from launcher.text import table


class NodeVerdict(StrEnum):
    """The verdict on a node. PASS and WARN may work, FAIL and HANG must not; nothing is known of the others.

    SETUP: our or the site's configuration is wrong. INCONCLUSIVE: noise, or two suite runs that disagree. SKIPPED: not
    tried, with the reason. NO_RESULT: tried without a result; only the fleet's summary has it.
    """

    PASS = "PASS"  # noqa: S105  (not a password)
    WARN = "WARN"
    INCONCLUSIVE = "INCONCLUSIVE"
    SETUP = "SETUP"
    NO_RESULT = "NO_RESULT"
    SKIPPED = "SKIPPED"
    HANG = "HANG"
    FAIL = "FAIL"


WORST_FIRST = (
    NodeVerdict.FAIL,
    NodeVerdict.HANG,
    NodeVerdict.NO_RESULT,
    NodeVerdict.SETUP,
    NodeVerdict.INCONCLUSIVE,
    NodeVerdict.WARN,
    NodeVerdict.SKIPPED,
    NodeVerdict.PASS,
)


class Status(IntEnum):
    """Nagios' exit statuses, and EX_USAGE of sysexits.h: a typo must not look like a fault."""

    OK = 0
    WARN = 1
    CRITICAL = 2
    UNKNOWN = 3
    USAGE = 64


EXIT_OK, EXIT_WARN, EXIT_CRITICAL, EXIT_UNKNOWN, EXIT_USAGE = Status

MEANINGS: dict[str, tuple[str, str]] = {
    "E101": (
        "GPUs are missing, or one fell off the bus during the validation",
        "check nvidia-smi -L and lspci; reseat or replace the GPU",
    ),
    "E102": ("a GPU is of another model than expected", "check the node's features and gres, and hardware=NAME"),
    "E103": (
        "NVLinks of a GPU are down",
        "check nvidia-smi nvlink -s; restart the fabric manager; if they stay down, RMA",
    ),
    "E104": (
        "GPUs do not reach each other over NVLink",
        "check nvidia-smi topo -p2p n, the fabric manager, the IOMMU and the container",
    ),
    "E201": ("one pair of GPUs is slow", "check nvidia-smi nvlink -e; reseat or replace the board between the two"),
    "E203": ("one GPU is slow", "check its clocks, power cap and cooling: nvidia-smi -q -d PERFORMANCE,CLOCK"),
    "E204": ("the all-to-all is slow", "check the fabric manager and the NVSwitches; compare with the pairs"),
    "E205": (
        "a larger all-to-all has less bandwidth than a smaller one",
        "look for a faulty NVSwitch or a fallback to PCIe: NCCL_DEBUG=INFO",
    ),
    "E206": (
        "dispatch is slow",
        "compare with pairs and all-to-all; if these are fine, check the versions of deep_ep and driver",
    ),
    "E207": ("combine is slow", "as for E206"),
    "E208": (
        "the node is slower than its fleet",
        "validate it again with earlier=RUN; compare its driver and firmware with the other nodes",
    ),
    "E209": (
        "the GEMMs of the node's GPUs, taken together, are slow",
        "check the power cap, the cooling and the clocks of all GPUs: nvidia-smi -q -d POWER,PERFORMANCE,CLOCK",
    ),
    "E210": (
        "the node is slower than its fleet, and was so before",
        "drain; compare its driver and firmware with the other nodes",
    ),
    "E301": ("dispatch or combine delivers wrong tokens", "drain; validate again with other GPUs; check ECC, then RMA"),
    "E302": ("a copy over a link delivers wrong bytes", "drain; RMA"),
    "E303": ("an all-to-all delivers wrong bytes", "drain; RMA the GPU or the NVSwitch"),
    "E401": ("uncorrectable memory errors", "reset the GPU; if they come back, RMA"),
    "E402": ("a row remapping is pending or has failed", "pending: reset the GPU; failed: RMA"),
    "E403": ("XID errors during the validation", "look up the number in NVIDIA's table of XIDs; check dmesg"),
    "E404": ("an NVLink recovered from errors", "check nvidia-smi nvlink -e; reseat; if it goes on, RMA"),
    "E405": ("many CRC errors on NVLink", "as for E404"),
    "E406": ("an NVLink replayed packets", "watch it: rare replays are tolerated"),
    "E407": ("the driver asks for a reset or a reboot", "see GPU Recovery Action in nvidia-smi -q"),
    "E501": (
        "thermal throttling or a power brake",
        "check cooling, power supply, power cap, and the neighbours in the chassis",
    ),
    "E601": ("ranks hang", "see the stacks in NODE.json; check the fabric manager and dmesg"),
    "E602": ("ranks crash", "see the last words in NODE.json; check dmesg; run compute-sanitizer"),
    "E603": ("the job reached its time limit", "look for a hang outside the ranks, or raise limits.job_min"),
    "E604": ("the node failed during its job, or did not boot", "check scontrol show node"),
    "E605": ("the driver does not respond", "does nvidia-smi hang too? check dmesg; reboot the node"),
    "U901": ("the validation itself broke", "see the job's log; report it with NODE.json"),
    "U902": ("other processes use the GPUs", "check nvidia-smi; give the validation an exclusive node"),
    "U903": (
        "the ranks do not start, or cannot use the GPU",
        "see the job's log: are torch and deep_ep installed, and built for this GPU and driver?",
    ),
    "U904": ("out of memory", "give the job all memory of the node (hydra.launcher.mem=0)"),
    "U905": ("the job was cancelled", "submit it again"),
    "U906": ("the job was preempted", "use a partition or a reservation without preemption"),
    "U907": ("the job did not begin before the deadline", "raise deadline_min or max_in_flight, or use a reservation"),
    "U908": ("the node is down or drained in Slurm", "check scontrol show node; repair and resume the node first"),
    "U909": ("Slurm, or the partition, has no such node", "check sinfo -N"),
    "U910": ("too noisy to judge", "run it again with nothing else on the node"),
    "U911": ("two suite runs disagree", "run it again; if it keeps changing, check the cooling and the neighbours"),
    "U912": ("faster than the links can be: our measurement is wrong", "report it with NODE.json"),
    "U913": (
        "the job sees no GPU",
        "does the job request GPUs (gres)? does the container start with --nv? check nvidia-smi -L",
    ),
    "U914": (
        "every GPU differs from hardware=NAME, in model or in number of NVLinks",
        "set hardware=NAME to what the node has",
    ),
    "U915": (
        "a phase reached its limit",
        "run it again with a larger limits.*; ranks that hang are reported as E601 before that",
    ),
    "U916": ("the job has not ended", "report it again when it has: report=outputs/RUN"),
    "U917": (
        "Slurm refused the job",
        "see Slurm's message in the report: do partition, account and reservation include this node?",
    ),
    "U918": (
        "the job ended before the validation began",
        "see its log in RUN/slurm; check hydra.launcher.python, setup, container_image and the node's file systems",
    ),
}
"""By code the meaning, and what to do. E: the node. U: setup, or us. A code never changes its meaning."""


def codes_table() -> str:
    """MEANINGS in Markdown, for docs/ADMIN.md."""
    rows = [(name, *MEANINGS[name]) for name in sorted(MEANINGS)]
    return "\n".join(table(("code", "means", "what to do"), rows)).strip()


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, with the verdict that it gives by itself. ``where`` is a GPU, a pair, or empty."""

    verdict: NodeVerdict
    code: str
    where: str
    message: str
    layer: str

    @property
    def needs_confirmation(self) -> bool:
        """Whether a second suite run must reproduce it: noise or bad luck could have caused it.

        The fleet's findings come after both suite runs.
        """
        is_fault = self.verdict in (NodeVerdict.FAIL, NodeVerdict.HANG)
        return is_fault and self.code[1] in "256" and self.layer != "fleet"


def worst(verdicts: list[NodeVerdict]) -> NodeVerdict:
    """The verdict to act on; PASS if there are none."""
    return min(verdicts, key=WORST_FIRST.index, default=NodeVerdict.PASS)


def combine_statuses(statuses: list[Status]) -> Status:
    """The status of several validations by one command: a fault goes before unknown, unknown before WARN.

    A usage error stays one only if nothing was started; together with other statuses it is unknown.
    """
    if not statuses or set(statuses) == {EXIT_USAGE}:
        return EXIT_USAGE if statuses else EXIT_OK
    by_severity = (EXIT_CRITICAL, EXIT_USAGE, EXIT_UNKNOWN, EXIT_WARN, EXIT_OK)
    worst_status = min(statuses, key=by_severity.index)
    return EXIT_UNKNOWN if worst_status is EXIT_USAGE else worst_status


def exit_status(verdicts: list[NodeVerdict], *, strict: bool) -> Status:
    """0 if all nodes may work; 1 for WARN if ``strict``; 2 for FAIL, HANG, NO_RESULT; 3 if nothing is known."""
    distinct = set(verdicts)
    if distinct & {NodeVerdict.FAIL, NodeVerdict.HANG, NodeVerdict.NO_RESULT}:
        return EXIT_CRITICAL
    if not distinct or distinct & {NodeVerdict.SETUP, NodeVerdict.INCONCLUSIVE} or distinct == {NodeVerdict.SKIPPED}:
        return EXIT_UNKNOWN
    if NodeVerdict.WARN in distinct and strict:
        return EXIT_WARN
    return EXIT_OK
