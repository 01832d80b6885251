"""Each point as an operation of this rank, and the check of what it returns."""

from __future__ import annotations

from typing import cast

import msgspec
import torch

from bench.backends import BACKENDS, LIBRARY_DEFAULT, PAIR_OPS, shared_knobs, split_pair
from bench.backends.sessions.session import Context, Dispatched, Overlapped, Payload, Session
from bench.protocol import GroupSpec
from bench.rank.gemms import ExpertGemms
from bench.rank.injection import Injection
from bench.rank.layer import Layers
from bench.rank.oracle import Oracle
from bench.rank.timing import Mark, Operation, spin
from bench.records import HEAD_START_US, Dtype, Op, Point
from bench.rules import Facts
from bench.workload import TopK, route


class Operations:
    """Keeps what all points share: one session for each backend, one oracle for each dtype, the expert GEMMs."""

    def __init__(self, spec: GroupSpec, context: Context, injection: Injection) -> None:
        self._spec, self._context, self._injection = spec, context, injection
        self._facts = Facts(spec.num_ranks, spec.workload, num_sms=None, memory_bytes=None)
        self._routings = [route(spec.workload, rank=rank, num_ranks=spec.num_ranks) for rank in range(spec.num_ranks)]
        self._sessions: dict[str, Session] = {}
        self._oracles: dict[Dtype, Oracle] = {}
        self._gemms: dict[Dtype, ExpertGemms] = {}
        self._num_rows: dict[str, int] = {}
        self._layers = Layers(context)

    def session(self, backend: str) -> Session:
        """The backend's session, opened on first use for every point of the group. Collective on first use."""
        if backend not in self._sessions:
            points = [
                point
                for point in self._spec.points
                if point.backend == backend and point.op in (Op.DISPATCH, Op.COMBINE)
            ]
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

    def dispatch(self, point: Point, oracle: Oracle | None = None) -> tuple[Dispatched, list[int]]:
        """What a full dispatch of the point received, in the oracle's order, and how many tokens it sent to each rank.

        Keeps the handle. ``oracle``: one of other routings than the group's.
        """
        session, oracle = self.session(point.backend), oracle or self.oracle(point)
        received = session.dispatch(oracle.inputs, dtype=oracle.dtype, knobs=self._dispatch_knobs(point))
        self._num_rows[point.backend] = len(received.topk_idx)
        received = in_order(received, session.rows(knobs=self._dispatch_knobs(point)))
        if point.op is not Op.COMBINE and oracle is self.oracle(point):
            tokens, scales = received.payload
            received = received._replace(payload=(self._injection.corrupt(tokens, label=point.label), scales))
        return received, session.layout()

    def prepare(self, point: Point, oracle: Oracle | None = None) -> Operation:
        """The operation that the point times. All but full dispatches and layers reuse the handle of ``dispatch``.

        ``oracle``: that of the dispatch, where it had other routings than the group's.
        """
        if point.op is Op.COMPUTE:
            return self._compute(point.dtype)
        session, oracle = self.session(point.backend), oracle or self.oracle(point)
        if point.op is Op.OVERLAPPED:
            return self._overlap(point, session, oracle)
        if point.op is Op.SERIAL:
            return self._serial(point, session, oracle)
        if point.op in (Op.LAYER, Op.LAYER_TRAINING):
            return self._layers.operation(point, session, oracle, self._oracle(Dtype.BF16).inputs)
        return self._single(point, session, oracle)

    def _single(self, point: Point, session: Session, oracle: Oracle) -> Operation:
        """One call of the library."""
        inputs, dtype, knobs = oracle.inputs, oracle.dtype, point.knobs
        if point.op is Op.COMBINE:
            returned = self.returned(point, oracle)
            return lambda _: session.combine(returned, knobs=knobs)
        if point.op is Op.DISPATCH:
            return lambda _: session.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        if point.op is Op.EXCHANGE:
            exchange = session.exchange(inputs)
            return lambda _: exchange()
        return lambda _: session.dispatch(inputs, dtype=dtype, knobs=knobs)

    def check(self, point: Point, output: object) -> str | None:
        """What differs between an operation's output and the oracle, None where nothing does or nothing is checked."""
        if point.op is Op.COMPUTE:
            return None
        oracle, label = self.oracle(point), point.label
        roundings = BACKENDS[point.backend].roundings(self._spec.num_ranks)
        if point.op in (Op.LAYER, Op.LAYER_TRAINING):
            tensor = self._injection.corrupt(cast("torch.Tensor", output), label=label)
            return oracle.check_layer(tensor, self._layers.expected(oracle))
        if point.op is Op.EXCHANGE:
            tokens, scales = oracle.expected.payload
            moved = self._injection.corrupt(cast("torch.Tensor", output).view(tokens.dtype), label=label)
            return oracle.check_payload((moved, scales))
        if isinstance(output, torch.Tensor):
            return oracle.check_combine(self._injection.corrupt(output, label=label), roundings=roundings)
        rows = self.session(point.backend).rows(knobs=self._dispatch_knobs(point))
        if isinstance(output, Overlapped):
            combined = self._injection.corrupt(output.combined, label=label)
            payload = select(output.payload, rows)
            return oracle.check_payload(payload) or oracle.check_combine(combined, roundings=roundings)
        payload = output.payload if isinstance(output, Dispatched) else cast("Payload", output)
        tokens, scales = select(payload, rows)
        return oracle.check_payload((self._injection.corrupt(tokens, label=label), scales))

    def returned(self, point: Point, oracle: Oracle | None = None) -> torch.Tensor:
        """What the rank's experts return, in the rows of the point's handle; zeros in rows without an expert."""
        session, oracle = self.session(point.backend), oracle or self.oracle(point)
        rows = session.rows(knobs=self._dispatch_knobs(point))
        if rows is None:
            return oracle.returned
        placed = oracle.returned.new_zeros(self._num_rows[point.backend], oracle.returned.shape[1])
        placed[rows] = oracle.returned
        return placed

    def _oracle(self, dtype: Dtype) -> Oracle:
        if dtype not in self._oracles:
            self._oracles[dtype] = self.oracle_of(self._routings, dtype)
        return self._oracles[dtype]

    def _dispatch_knobs(self, point: Point) -> dict[str, int]:
        """The config of the dispatch that makes the point's handle.

        Dispatch may not accept the config of a combine: it takes the shared knobs from there, and the others from the
        library's default. Where a config belongs to a group, it accepts it, and the group stays.
        """
        if point.op in PAIR_OPS:
            return split_pair(point)[0]
        backend = BACKENDS[point.backend]
        if point.op is not Op.COMBINE or backend.regroups:
            return point.knobs
        default = backend.defaults(Op.DISPATCH, self._facts)[LIBRARY_DEFAULT]
        return default | {name: point.knobs[name] for name in shared_knobs(backend)}

    def _overlap(self, point: Point, session: Session, oracle: Oracle) -> Operation:
        """Dispatch and combine on the library's own stream, overlapped with the GEMMs on the current one.

        Communication starts first. Started at once, both would race for the SMs, and either could win.
        """
        compute = self._compute(point.dtype)
        dispatch, combine = split_pair(point)
        inputs, returned, dtype = oracle.inputs, self.returned(point), oracle.dtype

        def overlapped(mark: Mark) -> Overlapped:
            pending = session.start_pair(inputs, returned, dtype=dtype, dispatch=dispatch, combine=combine)
            spin(HEAD_START_US)
            compute(mark)
            return pending.wait()

        return overlapped

    def _serial(self, point: Point, session: Session, oracle: Oracle) -> Operation:
        """The same dispatch, GEMMs and combine on the current stream, each after the one before."""
        compute = self._compute(point.dtype)
        dispatch, combine = split_pair(point)
        inputs, returned, dtype = oracle.inputs, self.returned(point), oracle.dtype

        def serial(mark: Mark) -> Overlapped:
            payload = session.cached_dispatch(inputs, dtype=dtype, knobs=dispatch)
            compute(mark)
            return Overlapped(payload, session.combine(returned, knobs=combine))

        return serial

    def _compute(self, dtype: Dtype) -> Operation:
        """One layer's expert GEMMs of the tokens that this rank receives, in this dtype where they can run."""
        if dtype not in self._gemms:
            workload, device = self._spec.workload, self._context.device
            received = self._oracle(workload.dtype).expected.tokens_per_expert
            assert received is not None
            self._gemms[dtype] = ExpertGemms(workload, received, dtype=dtype, device=device)
        gemms = self._gemms[dtype]

        def compute(mark: Mark) -> None:
            gemms.run()
            mark()

        return compute

    def gemms_dtype(self, point: Point) -> Dtype | None:
        """What the GEMMs of a prepared point multiply, for layers in the forward pass; None without GEMMs."""
        if point.op in (Op.LAYER, Op.LAYER_TRAINING):
            return self._layers.experts().dtype(point.dtype)
        return self._gemms[point.dtype].dtype if point.op in (Op.COMPUTE, Op.OVERLAPPED, Op.SERIAL) else None


def select(payload: Payload, rows: torch.Tensor | None) -> Payload:
    """The rows of a payload that the oracle expects, in its order; see Session.rows."""
    if rows is None:
        return payload
    tokens, scales = payload
    ordered = tokens.view(torch.uint8)[rows].view(tokens.dtype)
    return ordered, None if scales is None else scales[rows]


def in_order(received: Dispatched, rows: torch.Tensor | None) -> Dispatched:
    """The same with the rows that the oracle expects, in its order; see Session.rows."""
    if rows is None:
        return received
    return received._replace(
        payload=select(received.payload, rows),
        topk_idx=received.topk_idx[rows],
        topk_weights=received.topk_weights[rows],
    )
