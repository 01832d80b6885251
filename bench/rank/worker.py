"""One rank's work: joins the process group, then checks, times and moves as the supervisor requests."""

from __future__ import annotations

import os
import platform
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from bench import protocol
from bench.backends import BACKENDS, PAIR_OPS
from bench.backends.sessions.session import Context
from bench.rank.alignment import time_signals
from bench.rank.injection import Injection
from bench.rank.links import Links
from bench.rank.operations import Operations
from bench.rank.oracle import edge_routings
from bench.rank.timing import LEAD_US, LONG_LEAD_US, GpuTimer, HostTimer, Timer
from bench.records import Op, Point

_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_GROUP_TIMEOUT = timedelta(hours=1)  # the supervisor's deadlines come first


class Worker:
    """The state of one rank, one method for each request of bench.protocol."""

    def __init__(self, setup: protocol.Setup) -> None:
        """Joins the process group. Collective."""
        spec = self._spec = setup.spec
        self.rank = setup.rank
        gpus = spec.devices or list(range(spec.num_ranks))
        self._device = _take_device(spec, gpus[setup.rank])
        self._context = _join(setup, self._device)
        self._timer: Timer = (GpuTimer if spec.has_own_gpus else HostTimer)(self._context.device_group, self._device)
        self._injection = Injection(spec.faults, gpu=gpus[setup.rank])
        self._operations = Operations(spec, self._context, self._injection)
        self._links = Links(self._context, gpus)

    def ready(self) -> protocol.Ready:
        """What this rank runs on."""
        on_gpu = self._device.type == "cuda"
        return protocol.Ready(
            device_name=torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            versions=_versions(on_gpu=on_gpu),
            python=platform.python_version(),
        )

    def self_test(self, request: protocol.SelfTest) -> protocol.SelfTested:
        """Runs the edge routings through the points' backend, and times an empty operation."""
        point = request.points[0]
        session, knobs = self._operations.session(point.backend), point.knobs
        roundings = BACKENDS[point.backend].roundings(self._spec.num_ranks)
        results = self._compare_defaults(request.points)
        for name, routings in edge_routings(self._spec.workload, num_ranks=self._spec.num_ranks).items():
            oracle = self._operations.oracle_of(routings, self._spec.workload.dtype)
            received, _ = self._operations.dispatch(point, oracle)
            # every rank combines, even after a mismatch: the others would wait for it
            combined = session.combine(self._operations.returned(point, oracle), knobs=knobs)
            wrong = oracle.check_dispatch(received) or oracle.check_combine(combined, roundings=roundings)
            results[name] = wrong or "ok"
        empty = self._timer.measure(lambda _: None, warmup=3, iterations=request.iterations)
        return protocol.SelfTested(results, empty.total_us)

    def _compare_defaults(self, points: list[Point]) -> dict[str, str]:
        """Whether the library takes by itself what the plan has for its default; empty where it does not say.

        Before anything else: a kernel may report of itself only once.
        """
        session = self._operations.session(points[0].backend)
        taken = {point.op: session.library_default(point.op) for point in points}
        told = [(point, taken[point.op]) for point in points if taken[point.op] is not None]
        wrong = [f"{point.op} takes {own}, the plan has {point.knobs}" for point, own in told if own != point.knobs]
        return {"library_default": wrong[0] if wrong else "ok"} if told else {}

    def align(self, request: protocol.Align) -> protocol.Aligned:
        """Times signals between rank 0 and every other rank."""
        return protocol.Aligned(
            time_signals(self._timer, self._context, warmup=request.warmup, iterations=request.iterations)
        )

    def warm(self, request: protocol.Warm) -> protocol.Warmed:
        """Runs a full dispatch, then what the point times, on one token from each rank."""
        point, operations = request.point, self._operations
        routings = edge_routings(self._spec.workload, num_ranks=self._spec.num_ranks)["one_token"]
        oracle = operations.oracle_of(routings, operations.oracle(point).dtype)
        operations.dispatch(point, oracle)
        operations.prepare(point, oracle)(_no_mark)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return protocol.Warmed()

    def check(self, request: protocol.Check) -> protocol.Checked:
        """Runs a full dispatch, then what the point times, and compares both with the oracle."""
        point = request.point
        self._injection.inject(point.label)
        if point.op is Op.COMPUTE:
            return protocol.Checked(None, [])
        received, sent = self._operations.dispatch(point)
        # every rank runs it, even after a mismatch: the others would wait for it
        output = self._operations.prepare(point)(_no_mark)
        wrong = self._operations.oracle(point).check_dispatch(received) or self._operations.check(point, output)
        return protocol.Checked(wrong, sent)

    def time(self, request: protocol.Time) -> protocol.Timed:
        """Times the point, then runs it once more and compares that output with the oracle."""
        point, begin = request.point, time.perf_counter()
        operation = self._operations.prepare(point)
        series = self._timer.measure(
            self._injection.delay(operation, label=point.label),
            warmup=request.warmup,
            iterations=request.iterations,
            lead_us=_lead_us(point),
        )
        busy_s = time.perf_counter() - begin
        wrong = self._operations.check(point, operation(_no_mark))
        return protocol.Timed(series.total_us, series.marked_us, busy_s, wrong, self._operations.gemms_dtype(point))

    def move(self, request: protocol.Copy | protocol.Exchange) -> protocol.Moved:
        """Times bytes that move without any library's dispatch, then checks them."""
        self._injection.inject(request.label)
        transfer = self._links.prepare(request)
        takes_part = not isinstance(request, protocol.Copy) or self.rank in (request.source, request.target)
        samples_us: list[float] = []
        if (operation := transfer.operation) is not None:
            samples_us = self._timer.measure(
                self._injection.delay(operation, label=request.label) if takes_part else operation,
                warmup=request.warmup,
                iterations=request.iterations,
                collective=transfer.collective,
            ).total_us
        wrong = transfer.check()
        if takes_part and self._injection.corrupts(request.label):
            wrong = "injected"
        return protocol.Moved(samples_us, wrong)


def _take_device(spec: protocol.GroupSpec, gpu: int) -> torch.device:
    """The rank's device, made current; ranks that share GPUs take them in turn."""
    if spec.device != "cuda":
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", gpu % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _join(setup: protocol.Setup, device: torch.device) -> Context:
    """The process groups: gloo between the hosts, and NCCL where every rank has a GPU of its own. Collective."""
    spec = setup.spec
    dist.init_process_group(
        "gloo",
        init_method=f"file://{setup.store}",
        rank=setup.rank,
        world_size=spec.num_ranks,
        timeout=_GROUP_TIMEOUT,
    )
    host_group = dist.group.WORLD
    assert host_group is not None
    return Context(
        rank=setup.rank,
        num_ranks=spec.num_ranks,
        device=device,
        workload=spec.workload,
        host_group=host_group,
        device_group=dist.new_group(backend="nccl", timeout=_GROUP_TIMEOUT) if spec.has_own_gpus else host_group,
    )


def _lead_us(point: Point) -> float | None:
    """How long the host may take to queue the point's operation; None to find out."""
    if point.op in (Op.COMPUTE, *PAIR_OPS):
        return LONG_LEAD_US
    return LEAD_US if BACKENDS[point.backend].one_kernel else None


def _no_mark() -> None:
    """Marks nothing, for runs that are not timed."""


def _versions(*, on_gpu: bool) -> dict[str, str]:
    """Versions of what this process has loaded, and the setting that decides which kernels may overlap."""
    versions = {"torch": str(torch.__version__)}
    if on_gpu:
        versions["cuda"] = str(torch.version.cuda)
        versions["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        if connections := os.environ.get(_CONNECTIONS):
            versions[_CONNECTIONS] = connections
    return versions
