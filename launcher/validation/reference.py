"""The rates of good nodes, to judge the next one by; pure except for reading files.

A learned reference is made of at least five good nodes of a site. The published ones ship with the project: they are
made of the one to three nodes of a kind that it has published, and can only warn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from bench.records import Environment
from launcher.errors import UserError
from launcher.store.versions import refuse_newer
from launcher.validation.node import Node, Rate

SCHEMA: Final = "deepep-sweep/reference/1"
MIN_NODES = 5
PUBLISHED: Final = "published"
"""The value of ``reference`` that stands for the references in the package."""

_PACKAGED = Path(__file__).parent / "references"
_MATTERS = {
    "pair_copy": (),
    "pair_sm": (),
    "all_to_all": ("num_gpus", "nccl"),
    "dispatch": ("num_gpus",),
    "combine": ("num_gpus",),
    "compute": ("num_gpus", "torch"),
}
"""What must be equal, beside GPU and links, for a published reference to apply to a test.

Two builds of DeepEP V1, tokenspeed-deepep 1.2.1 and sgl-deep-ep 0.1.2, agree within 1 % on the published H100s. Other
libraries have other knobs, hence another name of the test.
"""
_DECILES = tuple(range(10, 100, 10))


NodeKind = tuple[str, int, int | None, str, str]
"""What the nodes of one reference share: GPU, number of GPUs, links of each, deep_ep, NCCL."""


class Reference(msgspec.Struct, frozen=True):
    """One test on one kind of node. ``shape``: the deciles of all blocks, each over the median of its node.

    ``published``: the day on which published nodes were measured, 2026-11-26; empty if the reference was learned.
    """

    gpu: str
    num_gpus: int
    num_links: int | None
    test: str
    deep_ep: str
    nccl: str
    unit: str
    median: float
    shape: list[float]
    num_nodes: int
    published: str = ""
    torch: str = ""

    @property
    def label(self) -> str:
        """What judges, in words."""
        if not self.published:
            return f"the reference of {self.num_nodes} good nodes"
        return f"the published reference of {self.num_gpus} x {self.gpu} (n = {self.num_nodes}, {self.published})"

    def fits(self, environment: Environment) -> bool:
        """Whether it applies to what was measured there; a learned one to exactly its kind of node."""
        if not self.published:
            return self.kind == environment_kind(environment)
        versions = environment.versions
        here = {"num_gpus": environment.num_ranks, "nccl": versions.get("nccl"), "torch": versions.get("torch")}
        is_same = (self.gpu, self.num_links) == (environment.device, environment.num_links)
        return is_same and all(getattr(self, name) == here[name] for name in _MATTERS[self.test.split(" ", 1)[0]])

    @property
    def kind(self) -> NodeKind:
        """The kind of node."""
        return (self.gpu, self.num_gpus, self.num_links, self.deep_ep, self.nccl)


class File(msgspec.Struct, frozen=True):
    """A reference file with its provenance: nodes, date, drivers, program, and the code that measured.

    ``revisions``: commits, or the hash of the code if there is no commit.
    """

    schema: Literal["deepep-sweep/reference/1"]
    learned: str
    nodes: list[str]
    program: str
    entries: list[Reference]
    revisions: list[str] = []
    drivers: list[str] = []


def environment_kind(environment: Environment) -> NodeKind:
    """The kind of the node that measured in this environment."""
    return (
        environment.device,
        environment.num_ranks,
        environment.num_links,
        environment.versions.get("deep_ep", ""),
        environment.versions.get("nccl", ""),
    )


def node_kind(node: Node) -> NodeKind:
    """The kind of a node; one that measured nothing has no GPUs."""
    return ("", 0, None, "", "") if node.environment is None else environment_kind(node.environment)


def learn(nodes: list[Node], *, learned: str, program: str) -> File:
    """The reference of these good nodes. UserError if fewer than five are of a kind, or a rate is above its peak."""
    groups: dict[NodeKind, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node_kind(node)].append(node)
    measured = {kind: members for kind, members in groups.items() if kind[1]}
    count = max(map(len, measured.values()), default=0)
    if count < MIN_NODES:
        raise UserError(
            f"a reference is learned from at least {MIN_NODES} good nodes of one kind, got {count}",
            hint="validate more nodes; only PASS and WARN count, with the same GPU and versions",
        )
    enough = {kind: members for kind, members in measured.items() if len(members) >= MIN_NODES}
    return _make_file(enough, learned=learned, program=program)


def publish(nodes: list[Node], *, day: str, program: str) -> File:
    """The published reference of these nodes of one kind. UserError if a rate is above its peak.

    Without the shape of the blocks: that of one node in one minute is no standard for others.
    """
    file = _make_file({node_kind(nodes[0]): nodes}, learned=day, program=program)
    environment = nodes[0].environment
    assert environment is not None
    entries = [
        msgspec.structs.replace(
            entry, shape=[], median=round(entry.median, 2), published=day, torch=environment.versions["torch"]
        )
        for entry in file.entries
    ]
    return msgspec.structs.replace(file, entries=entries)


def _make_file(kinds: dict[NodeKind, list[Node]], *, learned: str, program: str) -> File:
    good = [node for members in kinds.values() for node in members]
    drivers = {node.environment.driver for node in good if node.environment}
    return File(
        schema=SCHEMA,
        learned=learned,
        nodes=sorted(node.node for node in good),
        program=program,
        entries=[entry for kind, members in kinds.items() for entry in _make_entries(kind, members)],
        revisions=sorted({node.revision.commit or node.revision.code for node in good}),
        drivers=sorted(filter(None, drivers)),
    )


def _make_entries(kind: NodeKind, nodes: list[Node]) -> list[Reference]:
    rates: dict[str, list[Rate]] = defaultdict(list)
    for node in nodes:
        for rate in node.rates:
            if rate.peak is not None and rate.median > rate.peak:
                raise UserError(
                    f"{node.node}: {rate.key} {rate.where} of {rate.median:.0f} {rate.unit} is above the physical "
                    f"bound of {rate.peak:.0f}",
                    hint="a wrong measurement cannot teach a reference",
                )
            rates[rate.key].append(rate)
    gpu, num_gpus, num_links, deep_ep, nccl = kind
    return [
        Reference(
            gpu=gpu,
            num_gpus=num_gpus,
            num_links=num_links,
            test=test,
            deep_ep=deep_ep,
            nccl=nccl,
            unit=members[0].unit,
            median=float(np.median([rate.median for rate in members])),
            shape=shape([block / rate.median for rate in members for block in rate.blocks]),
            num_nodes=len(nodes),
        )
        for test, members in sorted(rates.items())
    ]


def shape(relative: list[float]) -> list[float]:
    """The deciles of blocks that are divided by their median."""
    return [float(value) for value in np.percentile(relative, _DECILES)]


def distance(blocks: list[float], reference: Reference) -> float:
    """How far the blocks' deciles lie below the reference's: the mean of the positive differences.

    Both are divided by their medians first. A plain shift shows in the ratio of medians, and a node that is 6 % slower
    throughout must not count twice. What remains is a longer slow tail.
    """
    deciles = np.asarray(shape(list(np.asarray(blocks) / np.median(blocks))))
    return float(np.clip(np.asarray(reference.shape) - deciles, 0, None).mean())


def find(references: Sequence[Reference], environment: Environment | None, test: str) -> Reference | None:
    """The entry that applies to a test in this environment; None if there is none."""
    if environment is None:
        return None
    return next((entry for entry in references if entry.test == test and entry.fits(environment)), None)


def read_published() -> list[Reference]:
    """The entries of every published reference."""
    return [entry for path in sorted(_PACKAGED.glob("*.json")) for entry in read(path).entries]


def read(path: Path) -> File:
    """A reference file; members that this version does not know are ignored.

    UserError when it is not a reference file, and for a newer major version.
    """
    try:
        content = path.read_bytes()
        refuse_newer(f"reference={path}", content, known=SCHEMA)
        return msgspec.json.decode(content, type=File)
    except OSError as error:
        raise UserError(f"reference={path} cannot be read: {error.strerror}", hint="learn=FILE writes one") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"reference={path} is not a reference file: {error}", hint="learn=FILE writes one") from None
