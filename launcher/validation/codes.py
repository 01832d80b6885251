"""The vocabulary of judgements: verdicts, codes, findings, and the exit status that each gives; pure."""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from launcher.text import table


class NodeVerdict(StrEnum):
    """What a node is. PASS and WARN may work, FAIL and HANG may not, and of the others nothing is known.

    SETUP: our or the site's configuration. INCONCLUSIVE: noisy, or two attempts disagree. SKIPPED: not tried, for a
    reason that is named. NO_RESULT: tried, and nothing came back; only the fleet's summary says so.
    """

    PASS = "PASS"  # noqa: S105  (no password)
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
        "GPUs are missing, or one fell off the bus while it was validated",
        "reseat or replace the GPU; nvidia-smi -L, lspci",
    ),
    "E102": ("GPUs of another kind than expected", "check the node's feature or gres, or hardware=NAME"),
    "E103": ("NVLinks are down, or fewer than the GPU has", "nvidia-smi nvlink -s; restart the fabric manager; RMA"),
    "E104": ("GPUs do not reach each other over NVLink", "nvidia-smi topo -p2p n; fabric manager, IOMMU, containers"),
    "E201": ("one pair of GPUs is slow", "reseat or replace the board between the two; nvidia-smi nvlink -e"),
    "E203": ("one GPU is slow", "clocks, power cap and cooling of this GPU: nvidia-smi -q -d PERFORMANCE,CLOCK"),
    "E204": ("the all-to-all is slow", "fabric manager and NVSwitch; compare with the pairs"),
    "E205": ("the all-to-all becomes slower with size", "NVSwitch or PCIe fallback; NCCL_DEBUG=INFO"),
    "E206": (
        "dispatch is slow",
        "compare with pairs and all-to-all: if these are fine, versions of deep_ep and driver",
    ),
    "E207": ("combine is slow", "as E206"),
    "E208": ("slower than its fleet", "as the test that is named; compare driver and firmware with the others"),
    "E301": ("dispatch or combine delivers wrong tokens", "drain; run again with other GPUs; ECC, then RMA"),
    "E302": ("bytes that were copied over a link are wrong", "drain; RMA"),
    "E303": ("an all-to-all delivers wrong bytes", "drain; RMA, NVSwitch"),
    "E401": ("uncorrectable memory errors", "reset the GPU; RMA if they come back"),
    "E402": ("row remapping is pending or has failed", "pending: reset the GPU. Failed: RMA"),
    "E403": ("XID errors while it ran", "the driver's table of XIDs; dmesg"),
    "E404": ("NVLink recovered from errors", "nvidia-smi nvlink -e; reseat; RMA if it goes on"),
    "E405": ("many CRC errors on NVLink", "as E404"),
    "E406": ("NVLink replayed packets", "watch it: rare replays are tolerated"),
    "E407": ("the driver asks for a reset or a reboot", "nvidia-smi -q: GPU Recovery Action"),
    "E501": ("thermal or power throttling", "cooling, power supply, power cap; the neighbours in the chassis"),
    "E601": ("ranks hang", "the stacks in NODE.json; fabric manager; dmesg"),
    "E602": ("ranks die", "the last words in NODE.json; dmesg, cuda-memcheck"),
    "E603": ("the job ran into its time limit", "a hang outside the ranks, or limits.job_min is too short"),
    "E604": ("Slurm calls it NODE_FAIL", "the node went away while it was validated: scontrol show node"),
    "E605": ("the driver does not answer", "nvidia-smi hangs too? dmesg; reboot the node"),
    "U901": ("the validation itself broke", "the job's log; report it with NODE.json"),
    "U902": ("other processes use the GPUs", "nvidia-smi; give the validation an exclusive node"),
    "U903": (
        "the ranks do not start, or cannot use the GPU",
        "are torch and deep_ep there in the job, and built for this GPU and driver? see its log",
    ),
    "U904": ("out of memory", "give the job all memory of the node (hydra.launcher.mem=0)"),
    "U905": ("the job was cancelled", "submit it again"),
    "U906": ("the job was preempted", "use a partition or a reservation that nobody preempts"),
    "U907": (
        "its turn did not come before the deadline",
        "a longer deadline_min, a larger max_in_flight, or a reservation",
    ),
    "U908": ("Slurm has the node down or drained", "scontrol show node; repair and resume it first"),
    "U909": ("Slurm, or the partition, has no such node", "sinfo -N"),
    "U910": ("too noisy to judge", "run it again with nothing else on the node"),
    "U911": ("two attempts disagree", "run it again; if it keeps changing, look for heat and neighbours"),
    "U913": (
        "the job sees no GPU",
        "does the job ask for GPUs (gres)? is the container started with --nv? nvidia-smi -L",
    ),
    "U914": (
        "every GPU is of another kind than was named, or has another number of NVLinks",
        "hardware=NAME of what the node has",
    ),
    "U915": (
        "a phase was not done within its limit",
        "run it again with a larger limits.*; ranks that hang are called that (E601) before the limit ends",
    ),
    "U916": ("its job is not over yet", "report it again when it is: report=outputs/RUN"),
    "U917": (
        "Slurm refused the job",
        "its words stand in the report; do partition, account and reservation include this node?",
    ),
    "U918": (
        "the job ended before the validation began",
        "its log in RUN/slurm: hydra.launcher.python, setup, container_image; the file systems of the node",
    ),
    "U912": ("faster than the link can be: our measurement is wrong", "report it with NODE.json"),
}
"""Code -> what it means, and what to do about it. E: the node. U: setup, or us. A code never changes its meaning."""


def codes_table() -> str:
    """MEANINGS in Markdown, for docs/ADMIN.md."""
    rows = [(name, *MEANINGS[name]) for name in sorted(MEANINGS)]
    return "\n".join(table(("code", "means", "what to do"), rows)).strip()


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, with the verdict that it alone would give. ``where`` is a GPU, a pair, or empty."""

    verdict: NodeVerdict
    code: str
    where: str
    message: str
    layer: str

    @property
    def needs_confirmation(self) -> bool:
        """Whether a second attempt must see it too: everything that noise or bad luck might have caused."""
        return self.verdict in (NodeVerdict.FAIL, NodeVerdict.HANG) and self.code[1] in "256"


def worst(verdicts: list[NodeVerdict]) -> NodeVerdict:
    """Of several verdicts the one to act on; PASS of none."""
    return min(verdicts, key=WORST_FIRST.index, default=NodeVerdict.PASS)


def combined(statuses: list[Status]) -> Status:
    """Of several validations by one command: what is known to be bad before what is not known, and that before WARN.

    A usage error is one only where nothing was started; beside others it means that something is not known.
    """
    if not statuses or set(statuses) == {EXIT_USAGE}:
        return EXIT_USAGE if statuses else EXIT_OK
    by_severity = (EXIT_CRITICAL, EXIT_USAGE, EXIT_UNKNOWN, EXIT_WARN, EXIT_OK)
    worst_status = min(statuses, key=by_severity.index)
    return EXIT_UNKNOWN if worst_status is EXIT_USAGE else worst_status


def exit_status(verdicts: list[NodeVerdict], *, strict: bool) -> Status:
    """0 when all may work; 1 for WARN if ``strict``; 2 for FAIL, HANG, NO_RESULT; 3 where nothing is known."""
    seen = set(verdicts)
    if seen & {NodeVerdict.FAIL, NodeVerdict.HANG, NodeVerdict.NO_RESULT}:
        return EXIT_CRITICAL
    if not seen or seen & {NodeVerdict.SETUP, NodeVerdict.INCONCLUSIVE} or seen == {NodeVerdict.SKIPPED}:
        return EXIT_UNKNOWN
    if NodeVerdict.WARN in seen and strict:
        return EXIT_WARN
    return EXIT_OK
