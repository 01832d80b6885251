"""One node's validation on this machine: an attempt, its judgement, and a second attempt where a look must be taken."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.faults import Fault
from launcher import store
from launcher.store import Appender
from launcher.validation import node as nodes
from launcher.validation.attempt import AttemptRun
from launcher.validation.judge import LAYERS, conclude, headline, judge
from launcher.validation.node import Attempt, Node
from launcher.validation.readings import MACHINE_FAULTS, Doctored, Nvml, Readings
from launcher.validation.settings import Spec
from launcher.validation.verdict import Verdict

DIE = "die"
"""A fault of the job itself: it is killed when the phase begins that the fault's text names."""


class Suite:
    """``say`` hears a line for each phase."""

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        *,
        node: str | None = None,
        job_id: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``folder`` gets NODE.json, every raw line, and the logs of the ranks."""
        self._spec, self._folder, self._job_id, self._say = spec, folder, job_id, say
        self._node = node or socket.gethostname()
        self._started, self._began = time.time(), time.monotonic()
        own = own_faults(spec.faults, self._node)
        self._rank_faults = [Fault.parse(text) for text in own if _kind(text) not in (*MACHINE_FAULTS, DIE)]
        self._deadly = {text.split(":", 1)[1] for text in own if _kind(text) == DIE}
        injected = [(_kind(text), _gpu(text)) for text in own if _kind(text) in MACHINE_FAULTS]
        real: Readings = Nvml()
        self._readings = Doctored(real, injected, gpus=spec.gpus, hardware=spec.hardware) if injected else real

    def run(self) -> Node:
        """The node with its verdict, which also stands in NODE.json."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lines.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with contextlib.closing(Appender(descriptor)) as appender:
                return self._attempts(appender)
        finally:
            os.close(descriptor)

    def _attempts(self, appender: Appender) -> Node:
        attempts: list[Attempt] = []
        layers: dict[str, str] = {}
        order = list(range(self._spec.gpus))
        for number, devices in enumerate((order, order[::-1])):
            if number and not self._needs_second(attempts[0]):
                break
            if number:
                self._say("a second attempt, in fresh processes and with the GPUs in another order")
            made = AttemptRun(
                self._spec,
                devices,
                number=number,
                readings=self._readings,
                faults=self._rank_faults,
                folder=self._folder,
                sink=appender.add,
                checkpoint=lambda so_far: self._checkpoint([*attempts, so_far]),
                say=self._say,
            ).run()
            findings, found = judge(made, self._spec)
            layers = layers or found
            attempts.append(msgspec.structs.replace(made, findings=findings))
        findings, layers["confirmation"] = conclude(attempts, confirm=self._spec.confirm)
        verdict, code, short, reason = headline(findings)
        said = {name: layers[name] for name in LAYERS if name in layers}
        made_node = self._node_of(verdict, code, short, reason, attempts)
        made_node = msgspec.structs.replace(made_node, complete=True, findings=findings, layers=said)
        nodes.write(self._folder, made_node)
        return made_node

    def _needs_second(self, first: Attempt) -> bool:
        return self._spec.confirm and any(finding.needs_confirmation for finding in first.findings)

    def _checkpoint(self, attempts: list[Attempt]) -> None:
        """What NODE.json shall say if this process is never heard of again."""
        running = next((phase.name for phase in attempts[-1].phases if phase.status == "running"), None)
        short = f"U901 in {running}" if running else "U901 between phases"
        reason = f"the validation ended {f'in phase {running}' if running else 'between two phases'}"
        nodes.write(self._folder, self._node_of(Verdict.NO_RESULT, "U901", short, reason, attempts))
        if running in self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def _node_of(self, verdict: Verdict, code: str, short: str, reason: str, attempts: list[Attempt]) -> Node:
        return Node(
            verdict=verdict,
            reason_short=short,
            code=code,
            reason=reason,
            node=self._node,
            schema=nodes.SCHEMA,
            complete=False,
            started=_utc(self._started),
            ended=_utc(time.time()),
            wall_s=round(time.monotonic() - self._began, 3),
            job_id=self._job_id,
            backend=self._spec.backend,
            num_gpus=self._spec.gpus,
            dry_run=self._spec.on_cpu,
            program=store.version(),
            revision=store.revision(),
            attempts=attempts,
        )


def own_faults(texts: list[str], node: str) -> list[str]:
    """The faults, ``[NODE/]KIND@GPU:TEXT``, that are meant for this node."""
    own = []
    for text in texts:
        head, _, _ = text.partition("@")
        name, slash, kind = head.rpartition("/")
        if not slash or name == node:
            own.append(kind + text[len(head) :])
    return own


def check_faults(texts: list[str]) -> None:
    """ValueError for a fault that could not be injected."""
    for text in texts:
        plain = text[len(text.partition("@")[0].rpartition("/")[0]) :].removeprefix("/")
        if _kind(plain) in (*MACHINE_FAULTS, DIE):
            _gpu(plain)
        else:
            Fault.parse(plain)


def _kind(text: str) -> str:
    return text.partition("@")[0]


def _gpu(text: str) -> int:
    number = text.partition("@")[2].partition(":")[0]
    if not number.isdigit() or ":" not in text:
        raise ValueError(f"a fault is written [NODE/]KIND@GPU:TEXT, got {text!r}")
    return int(number)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
