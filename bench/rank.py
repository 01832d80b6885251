"""One rank: a disposable process that does what the supervisor asks on its stdin and answers on its stdout."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import BinaryIO

import msgspec
import torch
import torch.distributed as dist

from bench import faults, protocol
from bench.backends import BACKENDS
from bench.backends.session import Context, Payload, Session
from bench.faults import FaultKind
from bench.oracle import Oracle, edge_routings
from bench.records import Dtype, Op, Point
from bench.timing import GpuTimer, HostTimer, Timer, spin
from bench.workload import TopK, route

_PR_SET_PDEATHSIG = 1
_CYCLES_PER_US = 1700
_GROUP_TIMEOUT = timedelta(hours=1)  # the supervisor's deadlines come first


class Worker:
    """The state of one rank: its group, one session per backend, one oracle per dtype."""

    def __init__(self, setup: protocol.Setup) -> None:
        """Joins the process group; collective."""
        spec = self._spec = setup.spec
        self.rank = setup.rank
        if spec.device == "cuda":
            self._device = torch.device("cuda", setup.rank % torch.cuda.device_count())
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(1)
            self._device = torch.device("cpu")
        dist.init_process_group(
            "gloo",
            init_method=f"file://{setup.store}",
            rank=setup.rank,
            world_size=spec.num_ranks,
            timeout=_GROUP_TIMEOUT,
        )
        host = dist.group.WORLD
        assert host is not None
        own_gpu = spec.device == "cuda" and not spec.shared_gpus
        device_group = dist.new_group(backend="nccl", timeout=_GROUP_TIMEOUT) if own_gpu else host
        self._timer: Timer = (GpuTimer if own_gpu else HostTimer)(device_group, self._device)
        self._context = Context(
            rank=setup.rank,
            num_ranks=spec.num_ranks,
            device=self._device,
            workload=spec.workload,
            host_group=host,
            device_group=device_group,
        )
        self._routings = [route(spec.workload, rank=rank, num_ranks=spec.num_ranks) for rank in range(spec.num_ranks)]
        self._sessions: dict[str, Session] = {}
        self._oracles: dict[Dtype, Oracle] = {}

    def ready(self) -> protocol.Ready:
        """What this rank runs on."""
        on_gpu = self._device.type == "cuda"
        return protocol.Ready(
            device_name=torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            versions=_versions(self._spec, on_gpu=on_gpu),
            python=platform.python_version(),
        )

    def self_test(self, ask: protocol.SelfTest) -> protocol.SelfTested:
        """Edge routings through the point's backend, and the reading of an empty operation."""
        session = self._session(ask.point.backend)
        results = {}
        for name, routings in edge_routings(self._spec.workload, num_ranks=self._spec.num_ranks).items():
            oracle = self._oracle_for(routings, self._spec.workload.dtype)
            wrong = oracle.wrong_dispatch(session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=ask.point.knobs))
            wrong = wrong or oracle.wrong_combine(session.combine(oracle.returned, knobs=ask.point.knobs))
            results[name] = wrong or "ok"
        empty = self._timer.samples_us(lambda: None, warmup=3, iterations=ask.iterations)
        return protocol.SelfTested(results, empty)

    def check(self, ask: protocol.Check) -> protocol.Checked:
        """Dispatch in full, then what the point times, each against the oracle."""
        point = ask.point
        faults.strike(self._spec.faults, rank=self.rank, label=point.label)
        session, oracle = self._session(point.backend), self._oracle(point)
        wrong = oracle.wrong_dispatch(
            session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=self._handle_knobs(point))
        )
        wrong = wrong or self._wrong(point, self._operation(point)())
        return protocol.Checked(wrong, session.layout())

    def time(self, ask: protocol.Time) -> protocol.Timed:
        """Samples of the point; the output of one more call afterwards is checked too."""
        begin = time.perf_counter()
        operation = self._operation(ask.point)
        slow = faults.struck(self._spec.faults, FaultKind.SLOW, rank=self.rank, label=ask.point.label)
        timed = operation if slow is None else _after_delay(slow, operation)
        samples = self._timer.samples_us(timed, warmup=ask.warmup, iterations=ask.iterations)
        busy_s = time.perf_counter() - begin
        return protocol.Timed(samples, busy_s, self._wrong(ask.point, operation()))

    def _session(self, backend: str) -> Session:
        if backend not in self._sessions:
            points = [point for point in self._spec.points if point.backend == backend]
            self._sessions[backend] = BACKENDS[backend].open(self._context, points)
        return self._sessions[backend]

    def _oracle(self, point: Point) -> Oracle:
        dtype = point.dtype if point.op is not Op.COMBINE else self._spec.workload.dtype
        if dtype not in self._oracles:
            self._oracles[dtype] = self._oracle_for(self._routings, dtype)
        return self._oracles[dtype]

    def _oracle_for(self, routings: list[TopK], dtype: Dtype) -> Oracle:
        return Oracle(self._spec.workload, routings, rank=self.rank, dtype=dtype, device=self._device)

    def _handle_knobs(self, point: Point) -> dict[str, int]:
        """Combine's own config may be one that dispatch was never asked about: same shared knobs, default rest."""
        if point.op is not Op.COMBINE:
            return point.knobs
        backend = BACKENDS[point.backend]
        default = backend.default(Op.DISPATCH, num_ranks=self._spec.num_ranks)
        return default | {knob.name: point.knobs[knob.name] for knob in backend.knobs if knob.shared}

    def _operation(self, point: Point) -> Callable[[], object]:
        session, oracle, knobs = self._session(point.backend), self._oracle(point), point.knobs
        inputs, dtype = oracle.inputs, oracle.dtype
        if point.op is Op.COMBINE:
            returned = oracle.returned
            return lambda: session.combine(returned, knobs=knobs)
        if point.op is Op.DISPATCH:
            return lambda: session.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        return lambda: session.dispatch(inputs, dtype=dtype, knobs=knobs)

    def _wrong(self, point: Point, output: object) -> str | None:
        oracle = self._oracle(point)
        if point.op is Op.COMBINE:
            assert isinstance(output, torch.Tensor)
            return oracle.wrong_combine(self._spoilt(point, output))
        payload: Payload = output.payload if point.op is Op.DISPATCH_FULL else output  # type: ignore[attr-defined, assignment]
        return oracle.wrong_payload((self._spoilt(point, payload[0]), payload[1]))

    def _spoilt(self, point: Point, tokens: torch.Tensor) -> torch.Tensor:
        """Swaps the first two tokens where a WRONG_TOKEN fault says so."""
        if faults.struck(self._spec.faults, FaultKind.WRONG_TOKEN, rank=self.rank, label=point.label):
            tokens = tokens.clone()
            tokens[[0, 1]] = tokens[[1, 0]]
        return tokens


def _after_delay(fault: faults.Fault, operation: Callable[[], object]) -> Callable[[], object]:
    def delayed() -> object:
        _delay(fault)
        return operation()

    return delayed


def _delay(fault: faults.Fault) -> None:
    """Holds the stream (or, without a GPU, the process) for the fault's microseconds."""
    if torch.cuda.is_available():
        spin(int(fault.slow_us * _CYCLES_PER_US))
    else:
        time.sleep(fault.slow_us / 1e6)


def _versions(spec: protocol.GroupSpec, *, on_gpu: bool) -> dict[str, str]:
    """Versions of what the backends of this group stand on."""
    wanted = {package for point in spec.points for package in BACKENDS[point.backend].packages}
    found = {"torch": str(torch.__version__)}
    if on_gpu:
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    if "deep_ep" in wanted:
        providers = importlib.metadata.packages_distributions().get("deep_ep", [])
        found["deep_ep"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(providers)))
    return found


def _die_with_parent() -> None:
    """The kernel kills this process when the supervisor dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the supervisor is gone")


def _answer(worker: Worker | None, ask: protocol.Ask) -> tuple[Worker | None, protocol.Answer]:
    if isinstance(ask, protocol.Setup):
        worker = Worker(ask)
        return worker, worker.ready()
    assert worker is not None
    if isinstance(ask, protocol.SelfTest):
        return worker, worker.self_test(ask)
    if isinstance(ask, protocol.Check):
        return worker, worker.check(ask)
    return worker, worker.time(ask)


def serve(asks: BinaryIO, answers: BinaryIO) -> None:
    """Answers each line until the input ends; an exception is an answer too."""
    decoder = msgspec.json.Decoder(protocol.Ask)
    worker: Worker | None = None
    for line in asks:
        try:
            worker, answer = _answer(worker, decoder.decode(line))
        except Exception as error:  # noqa: BLE001  (the rank's edge: whatever it was becomes a Failed record)
            text = str(error) or type(error).__name__
            is_cuda = isinstance(error, torch.AcceleratorError) or "CUDA" in text
            answer = protocol.Raised(f"{type(error).__name__}: {text}", is_cuda, traceback.format_exc())
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def main() -> None:
    """Keeps stdout for answers: whatever a library prints goes to stderr."""
    _die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
    os._exit(0)  # destructors of CUDA libraries may wait for ranks that are already gone


if __name__ == "__main__":
    main()
