"""NODE.json: all that is known of one node, what is most important first, one value a line (docs/node.schema.json)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Final, Literal

import msgspec

from bench.counters import Counters
from bench.records import Environment, Gpu, GpuState
from launcher.errors import UserError
from launcher.store import Revision, write_atomic
from launcher.validation.verdict import Finding, Verdict

SCHEMA: Final = "deepep-sweep/node/1"
FILE_NAME = "NODE.json"


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
        """Standard deviation over mean of the blocks, 0 for one."""
        return statistics.stdev(self.blocks) / statistics.fmean(self.blocks) if len(self.blocks) > 1 else 0.0


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
    """What is there before anything runs. ``links_up`` by GPU; None where the driver does not say."""

    gpus: list[Gpu]
    states: list[GpuState]
    links_up: list[int | None]
    topology: str | None
    driver: str | None
    made_up: bool = False


class Attempt(msgspec.Struct, frozen=True):
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
    findings: list[Finding] = []


class Node(msgspec.Struct, frozen=True):
    """The file. ``layers`` says of each layer of judgement that it judged, or why it is absent."""

    verdict: Verdict
    reason_short: str
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
    attempts: list[Attempt] = []

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What two nodes must share to be compared: the kind of GPU and link, and the versions."""
        environment = next((one.environment for one in self.attempts if one.environment), None)
        if environment is None:
            return ("unknown",)
        versions = tuple(sorted(environment.versions.items()))
        return (environment.device, environment.num_ranks, environment.num_links, environment.driver, *versions)

    @property
    def rates(self) -> list[Rate]:
        """Those of the first attempt, which every node has."""
        return self.attempts[0].rates if self.attempts else []


def write(folder: Path, node: Node) -> None:
    """Replaces NODE.json in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE_NAME, msgspec.json.format(msgspec.json.encode(node), indent=1) + b"\n")


def read(file: Path) -> Node:
    """UserError when it cannot be read, or when it is of another version."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Node)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no NODE.json of this version: {error}") from None
