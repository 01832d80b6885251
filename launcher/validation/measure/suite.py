"""The validation of one node on this machine: one suite run, or two if a finding needs confirmation."""

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
from launcher.errors import read_version
from launcher.store import revision
from launcher.store.files import Appender
from launcher.text import utc
from launcher.validation import node as nodes
from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge.confirmation import confirm_findings
from launcher.validation.judge.headline import Headline, choose_headline, drain_reason
from launcher.validation.judge.layers import LAYERS, find_certain_faults, judge_suite_run
from launcher.validation.measure.context import SuiteContext
from launcher.validation.measure.phases import run_phases
from launcher.validation.measure.readings import FaultyReadings, Nvml, Readings
from launcher.validation.node import Node, SuiteRun
from launcher.validation.node_faults import DIE, MACHINE_FAULTS, parse_gpu, parse_kind, select_faults


class Suite:
    """The validation of one node. ``say`` gets a line about each phase."""

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
        self._node = node or socket.gethostname()
        self._started, self._began = time.time(), time.monotonic()
        self._faults = select_faults(spec.faults, self._node)
        of_ranks = [text for text in self._faults if parse_kind(text) not in (*MACHINE_FAULTS, DIE)]
        self._rank_faults = [Fault.parse(text) for text in of_ranks]
        self._deadly_phases = {text.split(":", 1)[1] for text in self._faults if parse_kind(text) == DIE}
        self._readings = self._inject_faults(readings or Nvml())
        self._suite_runs: list[SuiteRun] = []

    def _inject_faults(self, readings: Readings) -> Readings:
        faults = [(parse_kind(text), parse_gpu(text)) for text in self._faults if parse_kind(text) in MACHINE_FAULTS]
        if not faults:
            return readings
        return FaultyReadings(readings, faults, num_gpus=self._spec.gpus, hardware=self._spec.hardware)

    def run(self) -> Node:
        """The node with its verdict, as written to NODE.json."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / nodes.LINES_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        with contextlib.suppress(OSError):  # without locks in the file system, nothing shows that this runs
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with contextlib.closing(Appender(descriptor)) as appender:
                return self._validate(appender)
        except Exception as error:  # noqa: BLE001  (whatever broke, the node needs a result, and not that of a fault)
            traceback.print_exc()
            return self._write_broken(error)
        finally:
            os.close(descriptor)

    def _validate(self, appender: Appender) -> Node:
        suite_runs: list[SuiteRun] = []
        layers: dict[str, str] = {}
        order = list(range(self._spec.gpus))
        for devices in (order, order[::-1]):
            if suite_runs and not self._needs_second(suite_runs[0]):
                break
            if suite_runs:
                self._say("second suite run, in fresh processes and with the GPUs in reverse order")
            suite_run = self._run_phases(appender, devices, suite_runs)
            findings, reports = judge_suite_run(suite_run, self._spec)
            layers = layers or reports
            suite_runs.append(msgspec.structs.replace(suite_run, findings=findings))
        findings, layers["confirmation"] = confirm_findings(suite_runs, confirm=self._spec.confirm)
        node = self._make_node(choose_headline(findings), suite_runs)
        layers = {name: layers[name] for name in LAYERS if name in layers}
        return self._write(msgspec.structs.replace(node, complete=True, findings=findings, layers=layers))

    def _run_phases(self, appender: Appender, order: list[int], earlier: list[SuiteRun]) -> SuiteRun:
        context = SuiteContext(
            self._spec,
            order,
            number=len(earlier),
            readings=self._readings,
            faults=self._rank_faults,
            log_folder=self._folder / "logs",
            sink=appender.add,
        )
        return run_phases(context, checkpoint=lambda now: self._write_checkpoint([*earlier, now]), say=self._say)

    def _needs_second(self, first: SuiteRun) -> bool:
        return self._spec.confirm and any(finding.needs_confirmation for finding in first.findings)

    def _find_certain_faults(self) -> list[Finding]:
        """The certain faults so far, one for each code and place."""
        faults = [fault for suite_run in self._suite_runs for fault in find_certain_faults(suite_run, self._spec)]
        return list({(fault.code, fault.where): fault for fault in faults}.values())

    def _write_checkpoint(self, suite_runs: list[SuiteRun]) -> None:
        """Writes the NODE.json that remains if this process dies now."""
        self._suite_runs = suite_runs
        running = next((phase.name for phase in suite_runs[-1].phases if phase.status == "running"), None)
        reason = f"the validation ended {f'in phase {running}' if running else 'between two phases'}"
        faults = self._find_certain_faults()
        if faults:
            headline = choose_headline(faults)
            headline = headline._replace(reason=f"{headline.reason}; {reason}")
        else:
            short = f"U901 in {running}" if running else "U901 between phases"
            headline = Headline(NodeVerdict.NO_RESULT, "U901", short, reason)
        self._write(msgspec.structs.replace(self._make_node(headline, suite_runs), findings=faults))
        if running in self._deadly_phases:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write_broken(self, error: Exception) -> Node:
        """Writes the node when the suite cannot go on: a GPU fell off the bus, or we made a mistake."""
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, pynvml.NVMLError_GpuIsLost):
            finding = Finding(NodeVerdict.FAIL, "E101", "", message, "inventory")
        else:
            finding = Finding(NodeVerdict.SETUP, "U901", "", message, "correctness")
        findings = [*self._find_certain_faults(), finding]
        headline = choose_headline(findings)
        if headline.reason != message:
            headline = headline._replace(reason=f"{headline.reason}; then the validation broke: {message}")
        node = self._make_node(headline, self._suite_runs)
        return self._write(msgspec.structs.replace(node, complete=True, findings=findings))

    def _write(self, node: Node) -> Node:
        """The node with its drain reason, as written to NODE.json."""
        node = msgspec.structs.replace(node, drain=drain_reason(node))
        nodes.write(self._folder, node)
        return node

    def _make_node(self, headline: Headline, suite_runs: list[SuiteRun]) -> Node:
        return Node(
            verdict=headline.verdict,
            reason_short=headline.short,
            code=headline.code,
            reason=headline.reason,
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
            revision=revision.read_revision(),
            suite_runs=suite_runs,
            faults=self._faults,
        )
