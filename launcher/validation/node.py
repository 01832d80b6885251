"""NODE.json: all that is known of one node, the most important first, one value per line (docs/node.schema.json)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Final, Literal

import msgspec

from bench.nvml.counters import Counters
from bench.records import Environment, Gpu, GpuState
from launcher.errors import UserError
from launcher.store.files import write_atomic
from launcher.store.revision import Revision
from launcher.store.versions import refuse_newer
from launcher.validation.codes import Finding, NodeVerdict

SCHEMA: Final = "deepep-sweep/node/1"
PHASES = ("preflight", "pairs", "alltoall", "correctness", "speed", "counters")
"""The phases of a suite run, in order."""

FILE_NAME = "NODE.json"
LINES_NAME = "lines.jsonl"
_DECILES_APART = 2.563
"""Standard deviations between the first and the last decile of a normal distribution."""


class Rate(msgspec.Struct, frozen=True):
    """The rate of one test, in blocks of time that can be compared.

    ``test``: pair_copy, pair_sm, all_to_all, dispatch, combine, compute. ``where``: a pair ``gpu0>gpu1``, a GPU
    ``gpu2``, or empty for the node. ``per``: what else the rate depends on, 64 MiB or bf16. ``unit``: GB/s, 10^9 bytes
    in one direction, or layers/s, expert layers per second. ``peak``: that of the links; None if there is none.
    """

    test: str
    where: str
    per: str
    unit: str
    blocks: list[float]
    peak: float | None = None

    @property
    def key(self) -> str:
        """Test and ``per``: the same rate of another node has the same key."""
        return f"{self.test} {self.per}".strip()

    @property
    def median(self) -> float:
        """The median of the blocks."""
        return statistics.median(self.blocks)

    @property
    def variation(self) -> float:
        """Scatter of the blocks: the distance of the first and last decile over the median; 0 for one block.

        Scaled to the standard deviation of a normal distribution. Unlike the blocks' own standard deviation it ignores
        one block in ten in which the host paused; the reference judges the tail of such blocks.
        """
        if len(self.blocks) < 2:
            return 0.0
        first, *_, last = statistics.quantiles(self.blocks, n=10, method="inclusive")
        return (last - first) / _DECILES_APART / self.median


class Trouble(msgspec.Struct, frozen=True):
    """A failure in a phase. ``kind``: that of the records, or start, timeout, driver. ``last_words``: of the rank."""

    phase: str
    kind: str
    where: str
    message: str
    last_words: str = ""


class Phase(msgspec.Struct, frozen=True):
    """One of the six phases. ``reason``: why it was skipped, or how it failed."""

    name: str
    status: Literal["pending", "running", "done", "skipped", "failed"]
    reason: str = ""
    wall_s: float = 0.0


class Preflight(msgspec.Struct, frozen=True):
    """The GPUs before anything runs. ``links_up``: by GPU, None if the driver does not report it.

    ``made_up``: injected faults need GPUs, and the machine has none. ``pci_gpus``: the number of NVIDIA GPUs on the PCI
    bus, None if CUDA_VISIBLE_DEVICES chooses among them.
    """

    gpus: list[Gpu]
    states: list[GpuState]
    links_up: list[int | None]
    topology: str | None
    driver: str | None
    is_synthetic: bool = msgspec.field(name="made_up", default=False)
    pci_gpus: int | None = None


class LinkBytes(msgspec.Struct, frozen=True):
    """Bytes that one GPU's links moved ``out`` or ``in`` during a test: by the tokens, and by NVML's counters."""

    test: str
    where: str
    direction: str
    wire_bytes: int
    nvml_bytes: int

    @property
    def ratio(self) -> float:
        """NVML's count over ours; above 1, the library moves more than the tokens."""
        return self.nvml_bytes / max(self.wire_bytes, 1)


class SuiteRun(msgspec.Struct, frozen=True):
    """One run of the six phases. ``order``: the GPU of each rank. ``checks``: by name ``ok``, or what was wrong.

    ``throttled``: by GPU, why it was throttled. ``xids``: XID errors.
    """

    number: int
    order: list[int]
    phases: list[Phase]
    preflight: Preflight | None = None
    environment: Environment | None = None
    rates: list[Rate] = []
    checks: dict[str, str] = {}
    troubles: list[Trouble] = []
    before: list[Counters] = []
    after: list[Counters] = []
    throttled: dict[str, list[str]] = {}
    xids: list[str] = []
    link_bytes: list[LinkBytes] = []
    findings: list[Finding] = []


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The file. ``layers``: for each layer of judgement that it judged, or why it did not.

    Until it is ``complete``, the findings are only those that need no confirmation. ``attempts``: the suite runs.
    ``faults``: injected on purpose. ``drain``: the short reason to drain the node, for a certain or confirmed fault;
    else empty.
    """

    verdict: NodeVerdict
    reason_short: str
    drain: str = ""
    code: str
    reason: str
    node: str
    schema: Literal["deepep-sweep/node/1"]
    complete: bool
    started: str
    ended: str
    wall_s: float
    job_id: str | None
    backend: str
    num_gpus: int
    dry_run: bool
    program: str
    revision: Revision
    findings: list[Finding] = []
    layers: dict[str, str] = {}
    suite_runs: list[SuiteRun] = msgspec.field(name="attempts", default=[])
    faults: list[str] = []

    @property
    def environment(self) -> Environment | None:
        """That of the first suite run that has one; None if nothing was measured."""
        return next((run.environment for run in self.suite_runs if run.environment), None)

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What two nodes must share to be compared: GPU, number, links, and versions."""
        environment = self.environment
        if environment is None:
            return ("unknown",)
        versions = tuple(sorted(environment.versions.items()))
        return (environment.device, environment.num_ranks, environment.num_links, environment.driver, *versions)

    @property
    def rates(self) -> list[Rate]:
        """The rates of the first suite run, which every node has."""
        return self.suite_runs[0].rates if self.suite_runs else []


def write(folder: Path, node: Node) -> None:
    """Replaces NODE.json in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE_NAME, msgspec.json.format(msgspec.json.encode(node), indent=1) + b"\n")


def read(file: Path) -> Node:
    """The node in a NODE.json; members that this version does not know are ignored.

    UserError when the file cannot be read, and for a newer major version.
    """
    try:
        content = file.read_bytes()
        refuse_newer(str(file), content, known=SCHEMA)
        return msgspec.json.decode(content, type=Node)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a NODE.json of this version: {error}") from None


def schema() -> bytes:
    """The JSON Schema of NODE.json, docs/node.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA}
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Node) | head), indent=1) + b"\n"
