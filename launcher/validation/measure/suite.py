"""One node's validation on this machine: an attempt, its judgement, and a second attempt where a look must be taken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import pynvml

from bench.faults import Fault
from launcher import read_version
from launcher.store import revision
from launcher.store.files import Appender
from launcher.text import utc
from launcher.validation import node as nodes
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge.layers import LAYERS, certain_faults, conclude, drain_reason, headline, judge_suite_run
from launcher.validation.measure.phases import PhaseRunner
from launcher.validation.measure.readings import Doctored, Nvml, Readings
from launcher.validation.node import Node, SuiteRun
from launcher.validation.node_faults import DIE, MACHINE_FAULTS, gpu_of, kind_of, own_faults


class Suite:
    """``say`` hears a line for each phase."""

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        *,
        node: str | None = None,
        job_id: str | None = None,
        readings: Readings | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``folder`` gets NODE.json, every raw line, and the logs of the ranks. ``readings``: NVML's if not given."""
        self._spec, self._folder, self._job_id, self._say = spec, folder, job_id, say
        self._real: Readings = readings or Nvml()
        self._node = node or socket.gethostname()
        self._started, self._began = time.time(), time.monotonic()
        self._faults = own = own_faults(spec.faults, self._node)
        self._rank_faults = [Fault.parse(text) for text in own if kind_of(text) not in (*MACHINE_FAULTS, DIE)]
        self._deadly = {text.split(":", 1)[1] for text in own if kind_of(text) == DIE}
        injected = [(kind_of(text), gpu_of(text)) for text in own if kind_of(text) in MACHINE_FAULTS]
        self._injected = injected
        self._seen: list[SuiteRun] = []

    def run(self) -> Node:
        """The node with its verdict, which also stands in NODE.json."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / nodes.LINES_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can see that this still runs
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with contextlib.closing(Appender(descriptor)) as appender:
                return self._attempts(appender)
        except Exception as error:  # noqa: BLE001  (whatever broke here, it must not look like no result, or a fault)
            traceback.print_exc()
            return self._broken(error)
        finally:
            os.close(descriptor)

    def _broken(self, error: Exception) -> Node:
        """What is said when the suite itself cannot go on: a GPU that fell off the bus, or our own mistake."""
        said = f"{type(error).__name__}: {error}"
        lost = isinstance(error, pynvml.NVMLError_GpuIsLost)
        verdict, code = (NodeVerdict.FAIL, "E101") if lost else (NodeVerdict.SETUP, "U901")
        broke = Finding(verdict, code, "", said, "inventory" if lost else "correctness")
        findings = [*self._certain(self._seen), broke]
        verdict, code, short, reason = headline(findings)
        if reason != said:
            reason += f"; then the validation broke: {said}"
        made = self._node_of(verdict, code, short, reason, self._seen)
        return self._written(msgspec.structs.replace(made, complete=True, findings=findings))

    def _written(self, made: Node) -> Node:
        """The node as it now stands in its file."""
        made = msgspec.structs.replace(made, drain=drain_reason(made))
        nodes.write(self._folder, made)
        return made

    def _attempts(self, appender: Appender) -> Node:
        spec, readings = self._spec, self._real
        if self._injected:
            readings = Doctored(readings, self._injected, gpus=spec.gpus, hardware=spec.hardware)
        attempts: list[SuiteRun] = []
        layers: dict[str, str] = {}
        order = list(range(self._spec.gpus))
        for number, devices in enumerate((order, order[::-1])):
            if number and not self._needs_second(attempts[0]):
                break
            if number:
                self._say("a second attempt, in fresh processes and with the GPUs in another order")
            made = PhaseRunner(
                self._spec,
                devices,
                number=number,
                readings=readings,
                faults=self._rank_faults,
                folder=self._folder,
                sink=appender.add,
                checkpoint=lambda so_far: self._checkpoint([*attempts, so_far]),
                say=self._say,
            ).run()
            findings, found = judge_suite_run(made, self._spec)
            layers = layers or found
            attempts.append(msgspec.structs.replace(made, findings=findings))
        findings, layers["confirmation"] = conclude(attempts, confirm=self._spec.confirm)
        verdict, code, short, reason = headline(findings)
        said = {name: layers[name] for name in LAYERS if name in layers}
        made_node = self._node_of(verdict, code, short, reason, attempts)
        made_node = msgspec.structs.replace(made_node, complete=True, findings=findings, layers=said)
        return self._written(made_node)

    def _needs_second(self, first: SuiteRun) -> bool:
        return self._spec.confirm and any(finding.needs_confirmation for finding in first.findings)

    def _certain(self, attempts: list[SuiteRun]) -> list[Finding]:
        """What no cut-off and no break of ours takes back, each once."""
        found = [one for attempt in attempts for one in certain_faults(attempt, self._spec)]
        return list({(one.code, one.where): one for one in found}.values())

    def _checkpoint(self, attempts: list[SuiteRun]) -> None:
        """What NODE.json shall say if this process is never heard of again."""
        self._seen = attempts
        running = next((phase.name for phase in attempts[-1].phases if phase.status == "running"), None)
        verdict, code = NodeVerdict.NO_RESULT, "U901"
        short = f"U901 in {running}" if running else "U901 between phases"
        reason = f"the validation ended {f'in phase {running}' if running else 'between two phases'}"
        findings = self._certain(attempts)
        if findings:
            verdict, code, short, found = headline(findings)
            reason = f"{found}; {reason}"
        made = self._node_of(verdict, code, short, reason, attempts)
        self._written(msgspec.structs.replace(made, findings=findings))
        if running in self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def _node_of(self, verdict: NodeVerdict, code: str, short: str, reason: str, attempts: list[SuiteRun]) -> Node:
        return Node(
            verdict=verdict,
            reason_short=short,
            code=code,
            reason=reason,
            node=self._node,
            schema=nodes.SCHEMA,
            complete=False,
            started=utc(self._started),
            ended=utc(time.time()),
            wall_s=round(time.monotonic() - self._began, 3),
            job_id=self._job_id,
            backend=self._spec.backend,
            num_gpus=self._spec.gpus,
            dry_run=self._spec.on_cpu,
            program=read_version(),
            revision=revision.revision(),
            attempts=attempts,
            faults=self._faults,
        )
