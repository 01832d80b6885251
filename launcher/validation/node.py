"""NODE.json: all that is known of one node, what is most important first, one value a line (docs/node.schema.json)."""

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
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.versions import refuse_newer

SCHEMA: Final = "deepep-sweep/node/1"
PHASES = ("preflight", "pairs", "alltoall", "correctness", "speed", "counters")
"""In the order in which they run."""

FILE_NAME = "NODE.json"
LINES_NAME = "lines.jsonl"
_DECILES_APART = 2.563
"""Standard deviations between the first and the last decile of a normal distribution."""


class Rate(msgspec.Struct, frozen=True):
    """How fast one thing went, in blocks of time that can be compared.

    ``test``: pair_copy, pair_sm, all_to_all, dispatch, combine, compute. ``where``: a pair ``gpu0>gpu1``, a GPU
    ``gpu2``, or empty for the node. ``per``: what else it depends on, 64 MiB or bf16. GB/s are 10^9 bytes in one
    direction; compute counts expert layers a second. ``peak``: of the links concerned; None where there is none.
    """

    test: str
    where: str
    per: str
    unit: str
    blocks: list[float]
    peak: float | None = None

    @property
    def key(self) -> str:
        """What the same rate of another node has too."""
        return f"{self.test} {self.per}".strip()

    @property
    def median(self) -> float:
        """Of the blocks."""
        return statistics.median(self.blocks)

    @property
    def variation(self) -> float:
        """How much the blocks scatter: from the first to the last decile over their median, 0 for one.

        In units of a normal distribution's standard deviation. Unlike that of the blocks it does not see one block in
        ten in which the host paused; what such blocks do to the tail is compared with the reference.
        """
        if len(self.blocks) < 2:
            return 0.0
        first, *_, last = statistics.quantiles(self.blocks, n=10, method="inclusive")
        return (last - first) / _DECILES_APART / self.median


class Trouble(msgspec.Struct, frozen=True):
    """What a rank could not do: kind as in the records (incorrect, hang, crash, cuda, error), and its last words."""

    phase: str
    kind: str
    where: str
    message: str
    last_words: str = ""


class Phase(msgspec.Struct, frozen=True):
    """One of the six. ``reason`` says why it was skipped or how it ended early."""

    name: str
    status: Literal["pending", "running", "done", "skipped", "failed"]
    reason: str = ""
    wall_s: float = 0.0


class Preflight(msgspec.Struct, frozen=True):
    """What is there before anything runs. ``links_up`` by GPU; None where the driver does not say.

    ``pci_gpus``: on the PCI bus; None where CUDA_VISIBLE_DEVICES chooses among them.
    """

    gpus: list[Gpu]
    states: list[GpuState]
    links_up: list[int | None]
    topology: str | None
    driver: str | None
    is_synthetic: bool = msgspec.field(name="made_up", default=False)
    pci_gpus: int | None = None


class LinkBytes(msgspec.Struct, frozen=True):
    """What one GPU's links moved ``out`` or ``in`` during a test: as we count the tokens, and as NVML counts."""

    test: str
    where: str
    direction: str
    wire_bytes: int
    nvml_bytes: int

    @property
    def ratio(self) -> float:
        """NVML's count over ours; more than 1 is what the library moves besides tokens."""
        return self.nvml_bytes / max(self.wire_bytes, 1)


class SuiteRun(msgspec.Struct, frozen=True):
    """One run of the suite. ``order`` is the GPU of each rank; ``checks`` what was compared with the oracle."""

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
    """The file. ``layers`` says of each layer of judgement that it judged, or why it is absent.

    Until it is ``complete`` the findings are those that need no second look. ``faults``: injected on purpose.
    ``drain``: the short reason to drain the node, for a fault that is certain or was seen twice; else empty.
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
    def fingerprint(self) -> tuple[object, ...]:
        """What two nodes must share to be compared: the kind of GPU and link, and the versions."""
        environment = next((run.environment for run in self.suite_runs if run.environment), None)
        if environment is None:
            return ("unknown",)
        versions = tuple(sorted(environment.versions.items()))
        return (environment.device, environment.num_ranks, environment.num_links, environment.driver, *versions)

    @property
    def rates(self) -> list[Rate]:
        """Those of the first suite run, which every node has."""
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
        raise UserError(f"{file} is no NODE.json of this version: {error}") from None


def schema() -> bytes:
    """The JSON Schema of NODE.json, docs/node.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA}
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Node) | head), indent=1) + b"\n"
