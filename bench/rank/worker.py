"""One rank: a disposable process that does what the supervisor requests, line by line, and responses each."""

from __future__ import annotations

import faulthandler
import importlib.metadata
import os
import platform
import signal
import time
import traceback
from datetime import timedelta
from typing import BinaryIO, NoReturn, cast

import msgspec
import torch
import torch.distributed as dist

from bench import faults, protocol
from bench.backends import BACKENDS, shared_knobs, split_pair
from bench.backends.sessions.session import Context, Dispatched, Overlapped, Payload, Session
from bench.faults import FaultKind
from bench.rank.gemms import ExpertGemms
from bench.rank.links import Links
from bench.rank.oracle import Oracle, edge_routings
from bench.rank.timing import LEAD_US, LONG_LEAD_US, GpuTimer, HostTimer, Mark, Operation, Timer, spin
from bench.records import Dtype, Op, Point
from bench.workload import TopK, route

_HEAD_START_US = 20.0
"""Communication is on its SMs before the GEMMs beside it begin, as where a framework launches it first."""
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_GROUP_TIMEOUT = timedelta(hours=1)  # the supervisor's deadlines come first


class Worker:
    """The state of one rank: its group, one session per backend, one oracle per dtype."""

    def __init__(self, setup: protocol.Setup) -> None:
        """Joins the process group; collective."""
        spec = self._spec = setup.spec
        self.rank = setup.rank
        self._gpu_index = spec.devices[setup.rank] if spec.devices else setup.rank  # a fault belongs to a GPU
        if spec.device == "cuda":
            self._device = torch.device("cuda", self._gpu_index % torch.cuda.device_count())
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
        self._gemms: ExpertGemms | None = None
        self._links = Links(
            self._context, [spec.devices[rank] if spec.devices else rank for rank in range(spec.num_ranks)]
        )

    def ready(self) -> protocol.Ready:
        """What this rank runs on."""
        on_gpu = self._device.type == "cuda"
        return protocol.Ready(
            device_name=torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            versions=_versions(self._spec, on_gpu=on_gpu),
            python=platform.python_version(),
        )

    def self_test(self, request: protocol.SelfTest) -> protocol.SelfTested:
        """Edge routings through the point's backend, and the reading of an empty operation."""
        session = self._session(request.point.backend)
        results = {}
        for name, routings in edge_routings(self._spec.workload, num_ranks=self._spec.num_ranks).items():
            oracle = self._oracle_for(routings, self._spec.workload.dtype)
            received = session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=request.point.knobs)
            combined = session.combine(
                oracle.returned, knobs=request.point.knobs
            )  # by all ranks, whatever one has seen
            results[name] = oracle.wrong_dispatch(received) or oracle.wrong_combine(combined) or "ok"
        empty = self._timer.series(lambda _: None, warmup=3, iterations=request.iterations)
        return protocol.SelfTested(results, empty.total_us)

    def check(self, request: protocol.Check) -> protocol.Checked:
        """Dispatch in full, then what the point times, each against the oracle."""
        point = request.point
        faults.inject(self._spec.faults, rank=self._gpu_index, label=point.label)
        if point.op is not Op.COMPUTE:
            session, oracle = self._session(point.backend), self._oracle(point)
            received = session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=self._dispatch_knobs(point))
            if point.op is not Op.COMBINE:
                tokens, scales = received.payload
                received = received._replace(payload=(self._corrupted(point, tokens), scales))
            layout = session.layout()
            # by all ranks, whatever one has seen: else the others wait for it
            output = self._operation(point)(_no_mark)
            return protocol.Checked(oracle.wrong_dispatch(received) or self._wrong(point, output), layout)
        return protocol.Checked(None, [])

    def time(self, request: protocol.Time) -> protocol.Timed:
        """Samples of the point; the output of one more call afterwards is checked too."""
        begin = time.perf_counter()
        operation = self._operation(request.point)
        slow = faults.matching(self._spec.faults, FaultKind.SLOW, rank=self._gpu_index, label=request.point.label)
        timed = operation if slow is None else _after_delay(slow, operation)
        series = self._timer.series(
            timed, warmup=request.warmup, iterations=request.iterations, lead_us=_lead_us(request.point)
        )
        busy_s = time.perf_counter() - begin
        wrong = self._wrong(request.point, operation(_no_mark))
        return protocol.Timed(series.total_us, series.marked_us, busy_s, wrong)

    def move(self, request: protocol.Copy | protocol.Exchange) -> protocol.Moved:
        """Samples of bytes that move without any library's dispatch, then whether they came as they were sent."""
        faults.inject(self._spec.faults, rank=self._gpu_index, label=request.label)
        transfer = self._links.transfer(request)
        slow = faults.matching(self._spec.faults, FaultKind.SLOW, rank=self._gpu_index, label=request.label)
        takes_part = not isinstance(request, protocol.Copy) or self.rank in (request.source, request.target)
        samples_us: list[float] = []
        if transfer.operation is not None:
            timed = _after_delay(slow, transfer.operation) if slow is not None and takes_part else transfer.operation
            series = self._timer.series(
                timed, warmup=request.warmup, iterations=request.iterations, alone=transfer.alone
            )
            samples_us = series.total_us
        wrong = transfer.wrong()
        if (
            faults.matching(self._spec.faults, FaultKind.WRONG_TOKEN, rank=self._gpu_index, label=request.label)
            and takes_part
        ):
            wrong = "injected"
        return protocol.Moved(samples_us, wrong)

    def _session(self, backend: str) -> Session:
        if backend not in self._sessions:
            points = [point for point in self._spec.points if point.backend == backend]
            handles = [
                msgspec.structs.replace(point, op=Op.DISPATCH, knobs=self._dispatch_knobs(point))
                for point in points
                if point.op is Op.COMBINE
            ]
            self._sessions[backend] = BACKENDS[backend].open(self._context, points + handles)
        return self._sessions[backend]

    def _oracle(self, point: Point) -> Oracle:
        return self._oracle_of(self._spec.workload.dtype if point.op is Op.COMBINE else point.dtype)

    def _oracle_of(self, dtype: Dtype) -> Oracle:
        if dtype not in self._oracles:
            self._oracles[dtype] = self._oracle_for(self._routings, dtype)
        return self._oracles[dtype]

    def _oracle_for(self, routings: list[TopK], dtype: Dtype) -> Oracle:
        return Oracle(self._spec.workload, routings, rank=self.rank, dtype=dtype, device=self._device)

    def _dispatch_knobs(self, point: Point) -> dict[str, int]:
        """The config of the dispatch that makes the handle.

        Combine's own config may be one that dispatch was never asked about: it keeps the shared knobs and takes the
        library's default for the rest.
        """
        if point.op is Op.OVERLAPPED:
            return split_pair(point)[0]
        if point.op is not Op.COMBINE:
            return point.knobs
        backend = BACKENDS[point.backend]
        default = backend.default(Op.DISPATCH, num_ranks=self._spec.num_ranks)
        return default | {name: point.knobs[name] for name in shared_knobs(backend)}

    def _operation(self, point: Point) -> Operation:
        if point.op is Op.COMPUTE:
            return self._experts()
        session, oracle, knobs = self._session(point.backend), self._oracle(point), point.knobs
        inputs, dtype = oracle.inputs, oracle.dtype
        if point.op is Op.COMBINE:
            returned = oracle.returned
            return lambda _: session.combine(returned, knobs=knobs)
        if point.op is Op.DISPATCH:
            return lambda _: session.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        if point.op is Op.OVERLAPPED:
            return self._beside_experts(point, session, oracle)
        return lambda _: session.dispatch(inputs, dtype=dtype, knobs=knobs)

    def _beside_experts(self, point: Point, session: Session, oracle: Oracle) -> Operation:
        """Dispatch and combine on the library's own stream, just ahead of the GEMMs on ours; over when both are.

        Begun at once they would race for the SMs, and either may win.
        """
        experts = self._experts()
        dispatch, combine = split_pair(point)
        inputs, returned, dtype = oracle.inputs, oracle.returned, oracle.dtype

        def both(mark: Mark) -> Overlapped:
            pending = session.start_pair(inputs, returned, dtype=dtype, dispatch=dispatch, combine=combine)
            spin(_HEAD_START_US)
            experts(mark)
            return pending.wait()

        return both

    def _experts(self) -> Operation:
        """One layer's expert GEMMs of the tokens that this rank receives, in BF16."""
        if self._gemms is None:
            received = self._oracle_of(self._spec.workload.dtype).expected.tokens_per_expert
            self._gemms = ExpertGemms(self._spec.workload, received, device=self._device)
        gemms = self._gemms

        def compute(mark: Mark) -> None:
            gemms.run()
            mark()

        return compute

    def _wrong(self, point: Point, output: object) -> str | None:
        if point.op is Op.COMPUTE:
            return None
        oracle = self._oracle(point)
        if isinstance(output, Overlapped):
            return oracle.wrong_payload(output.payload) or oracle.wrong_combine(self._corrupted(point, output.combined))
        if isinstance(output, torch.Tensor):
            return oracle.wrong_combine(self._corrupted(point, output))
        tokens, scales = output.payload if isinstance(output, Dispatched) else cast("Payload", output)
        return oracle.wrong_payload((self._corrupted(point, tokens), scales))

    def _corrupted(self, point: Point, tokens: torch.Tensor) -> torch.Tensor:
        """Swaps the first two tokens where a WRONG_TOKEN fault says so."""
        if faults.matching(self._spec.faults, FaultKind.WRONG_TOKEN, rank=self._gpu_index, label=point.label):
            tokens = tokens.clone()
            tokens[[0, 1]] = tokens[[1, 0]]
        return tokens


def _lead_us(point: Point) -> float:
    """How long the host needs to queue it."""
    quick = BACKENDS[point.backend].one_kernel and point.op not in (Op.OVERLAPPED, Op.COMPUTE)
    return LEAD_US if quick else LONG_LEAD_US


def _no_mark() -> None:
    """For runs that are not timed."""


def _after_delay(fault: faults.Fault, operation: Operation) -> Operation:
    def delayed(mark: Mark) -> object:
        _delay(fault)
        return operation(mark)

    return delayed


def _delay(fault: faults.Fault) -> None:
    """Holds the stream (or, without a GPU, the process) for the fault's microseconds."""
    if torch.cuda.is_available():
        spin(fault.slow_us)
    else:
        time.sleep(fault.slow_us / 1e6)


def _versions(spec: protocol.GroupSpec, *, on_gpu: bool) -> dict[str, str]:
    """Versions of what the backends of this group stand on, and the setting that decides what runs beside what."""
    wanted = {package for point in spec.points for package in BACKENDS[point.backend].packages}
    found = {"torch": str(torch.__version__)}
    if on_gpu:
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        if connections := os.environ.get(_CONNECTIONS):
            found[_CONNECTIONS] = connections
    if "deep_ep" in wanted:
        providers = importlib.metadata.packages_distributions().get("deep_ep", [])
        found["deep_ep"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(providers)))
    return found


def _response(worker: Worker | None, request: protocol.Request) -> tuple[Worker | None, protocol.Response]:
    if isinstance(request, protocol.Setup):
        worker = Worker(request)
        return worker, worker.ready()
    assert worker is not None
    if isinstance(request, protocol.SelfTest):
        return worker, worker.self_test(request)
    if isinstance(request, protocol.Check):
        return worker, worker.check(request)
    if isinstance(request, protocol.Copy | protocol.Exchange):
        return worker, worker.move(request)
    return worker, worker.time(request)


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Answers each line until the input ends; an exception is an response too."""
    decoder = msgspec.json.Decoder(protocol.Request)
    worker: Worker | None = None
    for line in requests:
        try:
            worker, response = _response(worker, decoder.decode(line))
        except Exception as error:  # noqa: BLE001  (the rank's edge: whatever it was becomes a Failed record)
            text = str(error) or type(error).__name__
            is_cuda = isinstance(error, torch.AcceleratorError) or "CUDA" in text
            response = protocol.Raised(f"{type(error).__name__}: {text}", is_cuda, traceback.format_exc())
        responses.write(msgspec.json.encode(response) + b"\n")
        responses.flush()


def run(requests: BinaryIO, responses: BinaryIO) -> NoReturn:
    """The whole life of a rank: its stderr is open, and no GPU has been touched yet."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    serve(requests, responses)
    os._exit(0)  # destructors of CUDA libraries may wait for ranks that are already gone
