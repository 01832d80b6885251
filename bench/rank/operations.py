"""Each point as an operation of this rank, and the check of what it returns."""

from __future__ import annotations

from typing import cast

import msgspec
import torch

from bench.backends import BACKENDS, shared_knobs, split_pair
from bench.backends.sessions.session import Context, Dispatched, Overlapped, Payload, Session
from bench.protocol import GroupSpec
from bench.rank.gemms import ExpertGemms
from bench.rank.injection import Injection
from bench.rank.oracle import Oracle
from bench.rank.timing import Mark, Operation, spin
from bench.records import Dtype, Op, Point
from bench.workload import TopK, route

_HEAD_START_US = 20.0
"""Communication occupies its SMs before the GEMMs start, as where a framework launches it first."""


class Operations:
    """Keeps what all points share: one session for each backend, one oracle for each dtype, the expert GEMMs."""

    def __init__(self, spec: GroupSpec, context: Context, injection: Injection) -> None:
        self._spec, self._context, self._injection = spec, context, injection
        self._routings = [route(spec.workload, rank=rank, num_ranks=spec.num_ranks) for rank in range(spec.num_ranks)]
        self._sessions: dict[str, Session] = {}
        self._oracles: dict[Dtype, Oracle] = {}
        self._gemms: ExpertGemms | None = None

    def session(self, backend: str) -> Session:
        """The backend's session, opened on first use for every point of the group. Collective on first use."""
        if backend not in self._sessions:
            points = [point for point in self._spec.points if point.backend == backend]
            handles = [
                msgspec.structs.replace(point, op=Op.DISPATCH, knobs=self._dispatch_knobs(point))
                for point in points
                if point.op is Op.COMBINE
            ]
            self._sessions[backend] = BACKENDS[backend].open(self._context, points + handles)
        return self._sessions[backend]

    def oracle(self, point: Point) -> Oracle:
        """The oracle of the group's routings in the dtype that the point dispatches."""
        return self._oracle(self._spec.workload.dtype if point.op is Op.COMBINE else point.dtype)

    def oracle_of(self, routings: list[TopK], dtype: Dtype) -> Oracle:
        """A new oracle of other routings, one [tokens, top-k] array for each rank."""
        return Oracle(self._spec.workload, routings, rank=self._context.rank, dtype=dtype, device=self._context.device)

    def dispatch(self, point: Point) -> tuple[Dispatched, list[int]]:
        """What a full dispatch of the point received, and how many tokens it sent to each rank; keeps the handle."""
        session, oracle = self.session(point.backend), self.oracle(point)
        received = session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=self._dispatch_knobs(point))
        if point.op is not Op.COMBINE:
            tokens, scales = received.payload
            received = received._replace(payload=(self._injection.corrupt(tokens, label=point.label), scales))
        return received, session.layout()

    def prepare(self, point: Point) -> Operation:
        """The operation that the point times. All but dispatch_full and compute reuse the handle of ``dispatch``."""
        if point.op is Op.COMPUTE:
            return self._compute()
        session, oracle, knobs = self.session(point.backend), self.oracle(point), point.knobs
        inputs, dtype = oracle.inputs, oracle.dtype
        if point.op is Op.COMBINE:
            returned = oracle.returned
            return lambda _: session.combine(returned, knobs=knobs)
        if point.op is Op.DISPATCH:
            return lambda _: session.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        if point.op is Op.OVERLAPPED:
            return self._overlap(point, session, oracle)
        return lambda _: session.dispatch(inputs, dtype=dtype, knobs=knobs)

    def check(self, point: Point, output: object) -> str | None:
        """What differs between an operation's output and the oracle, None where nothing does or nothing is checked."""
        if point.op is Op.COMPUTE:
            return None
        oracle, label = self.oracle(point), point.label
        if isinstance(output, Overlapped):
            combined = self._injection.corrupt(output.combined, label=label)
            return oracle.check_payload(output.payload) or oracle.check_combine(combined)
        if isinstance(output, torch.Tensor):
            return oracle.check_combine(self._injection.corrupt(output, label=label))
        tokens, scales = output.payload if isinstance(output, Dispatched) else cast("Payload", output)
        return oracle.check_payload((self._injection.corrupt(tokens, label=label), scales))

    def _oracle(self, dtype: Dtype) -> Oracle:
        if dtype not in self._oracles:
            self._oracles[dtype] = self.oracle_of(self._routings, dtype)
        return self._oracles[dtype]

    def _dispatch_knobs(self, point: Point) -> dict[str, int]:
        """The config of the dispatch that makes the point's handle.

        Dispatch may not accept the config of a combine: it takes the shared knobs from there, and the others from the
        library's default.
        """
        if point.op is Op.OVERLAPPED:
            return split_pair(point)[0]
        if point.op is not Op.COMBINE:
            return point.knobs
        backend = BACKENDS[point.backend]
        default = backend.default(Op.DISPATCH, num_ranks=self._spec.num_ranks)
        return default | {name: point.knobs[name] for name in shared_knobs(backend)}

    def _overlap(self, point: Point, session: Session, oracle: Oracle) -> Operation:
        """Dispatch and combine on the library's own stream, overlapped with the GEMMs on the current one.

        Communication starts first. Started at once, both would race for the SMs, and either could win.
        """
        compute = self._compute()
        dispatch, combine = split_pair(point)
        inputs, returned, dtype = oracle.inputs, oracle.returned, oracle.dtype

        def overlapped(mark: Mark) -> Overlapped:
            pending = session.start_pair(inputs, returned, dtype=dtype, dispatch=dispatch, combine=combine)
            spin(_HEAD_START_US)
            compute(mark)
            return pending.wait()

        return overlapped

    def _compute(self) -> Operation:
        """One layer's expert GEMMs of the tokens that this rank receives, in BF16."""
        if self._gemms is None:
            received = self._oracle(self._spec.workload.dtype).expected.tokens_per_expert
            self._gemms = ExpertGemms(self._spec.workload, received, device=self._context.device)
        gemms = self._gemms

        def compute(mark: Mark) -> None:
            gemms.run()
            mark()

        return compute
