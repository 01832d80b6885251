"""NCCL EP on one rank: ``nccl.ep`` with high throughput and the layout FLAT."""

from __future__ import annotations

import ctypes
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nccl import ep
from nccl.ep.interop.torch import get_nccl_comm_from_group

from bench.backends import BACKENDS
from bench.backends.nccl_ep import agrees, printed_config
from bench.backends.sessions.session import Context, Dispatched, Inputs, Operation, Overlapped, Payload, Pending
from bench.records import Dtype, Op

_LEAST_TOKENS = 128
"""The self test sends up to 109 tokens, whatever the workload."""

_STDERR = 2


class _Settings(NamedTuple):
    """The variables that a group is made with; None for one that is not set."""

    NCCL_EP_COMM_SMS: int | None = None
    NCCL_EP_TOKENS_PER_CHUNK: int | None = None
    NCCL_EP_DISPATCH_NUM_STAGES: int | None = None
    NCCL_EP_DISPATCH_NUM_PIPELINES: int | None = None
    NCCL_EP_COMBINE_NUM_STAGES_G2S: int | None = None
    NCCL_EP_COMBINE_NUM_PIPELINES: int | None = None

    def of(self, op: Op) -> tuple[int | None, ...]:
        """Those that an operation depends on."""
        return (*self[:2], *(self[4:] if op is Op.COMBINE else self[2:4]))

    def with_op(self, op: Op, knobs: dict[str, int]) -> _Settings:
        """The same if it has this config of the operation, else with it.

        The other operation keeps its own, but a new dispatch sets combine too: that is likely to follow.
        """
        num_sms, chunk, stages, pipelines = knobs.values()
        if self.of(op) == (num_sms, chunk, stages, pipelines):
            return self
        if op is Op.COMBINE:
            return _Settings(num_sms, chunk, *self[2:4], stages, pipelines)
        return _Settings(num_sms, chunk, stages, pipelines, stages, pipelines)


class _Group(NamedTuple):
    """A group, what it was made with, and the handle of the routing that it holds."""

    settings: _Settings
    group: Any
    handle: Any

    def destroy(self) -> None:
        """Releases both after the kernels that use them."""
        torch.cuda.synchronize()
        self.handle.destroy()
        self.group.destroy()


class NcclEPSession:
    """One communicator, and one group at a time: a config that needs another one replaces it. See Session."""

    def __init__(self, context: Context) -> None:
        """Makes the communicator; the host group passes its id on. Collective."""
        workload = context.workload
        self._context, self._comm = context, get_nccl_comm_from_group(context.host_group)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        most = max(workload.num_tokens, _LEAST_TOKENS)
        self._most_tokens = most + most % 2  # an odd number is padded
        self._group: _Group | None = None
        self._confirmed: set[tuple[object, ...]] = set()
        self._launched: dict[tuple[Op, Dtype], list[dict[str, int]]] = defaultdict(list)
        self._own: dict[Op, dict[str, int] | None] = {}
        self._topk_idx = torch.empty(0, workload.num_topk, dtype=torch.int64, device=context.device)
        self._counters = torch.zeros(
            1 + workload.num_experts // context.num_ranks, dtype=torch.int32, device=context.device
        )
        self._counts = torch.empty(len(self._counters), dtype=torch.int32, pin_memory=True)
        self._counted = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._bound: Any = None
        self._num_received = 0

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """Exchanges the routing, then tokens, indices and weights.

        The host waits for the counts only: the library itself waits for them before it launches the kernel.
        """
        group = self._update(knobs, inputs.topk_idx)
        self._counts.copy_(self._counters, non_blocking=True)
        self._counted.record()
        with self._confirms(group, Op.DISPATCH, dtype):
            payload, idx, weights = self._dispatch(group, inputs)
        self._counted.synchronize()
        self._num_received, *per_expert = self._counts.tolist()
        count = self._num_received
        return Dispatched(_head(payload, count), idx[:count], weights[:count], per_expert)

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """The dispatch of a backward pass: only the payload, by the handle's routing."""
        return self._cached_dispatch(self._live(Op.DISPATCH, knobs), inputs, torch.cuda.current_stream())

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """Sums without weights."""
        group = self._live(Op.COMBINE, knobs)
        with self._confirms(group, Op.COMBINE, Dtype.BF16):
            return self._combine(group, tokens, torch.cuda.current_stream())

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Queues both on a stream of its own, dispatch first, after what the current stream holds now."""
        self._live(Op.DISPATCH, dispatch)
        group = self._live(Op.COMBINE, combine)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            payload = self._cached_dispatch(group, inputs, self._stream)
            combined = self._combine(group, tokens, self._stream)
        return _PendingPair(self._stream, Overlapped(payload, combined), (inputs, tokens))

    def exchange(self, inputs: Inputs) -> Operation:
        """Not supported: packing is part of the kernel."""
        raise NotImplementedError("the nccl_ep backend has no exchange apart (exchanges is False)")

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """None: rows arrive ordered by source rank, then by token."""
        return None

    def library_default(self, op: Op) -> dict[str, int] | None:
        """What the kernels of a group without variables report of themselves, at their first launch on rank 0."""
        if not self._own:
            begin = _log_end()
            self._run_without_variables()
            self._own = {each: _printed(each, begin) for each in (Op.DISPATCH, Op.COMBINE)}
            for each, own in self._own.items():
                self._launched[each, Dtype.BF16] += [own] if own else []
        return self._own[op]

    def _run_without_variables(self) -> None:
        """A dispatch and a combine of two tokens, with the library's own choices."""
        workload, device = self._context.workload, self._context.device
        step = workload.num_experts // workload.num_topk
        self._topk_idx = (step * torch.arange(workload.num_topk, device=device)).repeat(2, 1)
        group = self._replace(_Settings())
        tokens = torch.zeros(2, workload.hidden, dtype=torch.bfloat16, device=device)
        weights = torch.ones(2, workload.num_topk, device=device)
        self._dispatch(group, Inputs((tokens, None), self._topk_idx, weights))
        received = tokens.new_zeros(int(self._counters[0]), workload.hidden)
        self._combine(group, received, torch.cuda.current_stream())
        torch.cuda.synchronize()

    def layout(self) -> list[int]:
        """Counted from the routing, since the library counts what it receives; every token once for each rank."""
        experts = self._context.workload.num_experts // self._context.num_ranks
        owner = torch.where(self._topk_idx >= 0, self._topk_idx // experts, -1)
        ranks = torch.arange(self._context.num_ranks, device=owner.device)
        return [int(count) for count in (owner[:, :, None] == ranks).any(dim=1).sum(dim=0).tolist()]

    def _update(self, knobs: dict[str, int], topk_idx: torch.Tensor) -> _Group:
        """The group of a dispatch's config with this routing, whose number of tokens may differ by rank and call."""
        group = self._group
        settings = (_Settings() if group is None else group.settings).with_op(Op.DISPATCH, knobs)
        self._topk_idx = topk_idx
        if group is None or group.settings != settings:
            return self._replace(settings)
        group.handle.update(self._bind(), layout_info=self._layout_info(), stream=_current())
        return group

    def _live(self, op: Op, knobs: dict[str, int]) -> _Group:
        """The group of the config, with the routing of the last full dispatch. Collective where it must be made."""
        assert self._group is not None
        settings = self._group.settings.with_op(op, knobs)
        return self._group if settings == self._group.settings else self._replace(settings)

    def _replace(self, settings: _Settings) -> _Group:
        """A new group and handle in place of the old. Collective."""
        if self._group is not None:
            self._group.destroy()
            self._group = None
        workload, ranks = self._context.workload, self._context.num_ranks
        with _environment(settings):
            group = ep.Group.create(
                self._comm,
                ep.GroupConfig(
                    algorithm=ep.Algorithm.HIGH_THROUGHPUT,
                    num_experts=workload.num_experts,
                    max_dispatch_tokens_per_rank=self._most_tokens,
                    max_recv_tokens_per_rank=ranks * self._most_tokens,
                    max_token_bytes=2 * workload.hidden,
                ),
            )
        handle = group.create_handle(ep.Layout.FLAT, self._bind(), layout_info=self._layout_info(), stream=_current())
        self._group = _Group(settings, group, handle)
        return self._group

    def _bind(self) -> Any:
        """The routing as the library takes it, kept alive: the handle refers to it."""
        self._bound = ep.Tensor(_even(self._topk_idx, fill=-1))
        return self._bound

    def _layout_info(self) -> Any:
        """Where a handle writes its counts, and that experts count from 0 on each rank."""
        return ep.LayoutInfo(
            recv_total_counter=ep.Tensor(self._counters[:1]),
            expert_counters=ep.Tensor(self._counters[1:]),
            recv_topk_idx_kind=ep.ExpertIdKind.LOCAL,
        )

    def _dispatch(self, group: _Group, inputs: Inputs) -> tuple[Payload, torch.Tensor, torch.Tensor]:
        """Receives into tensors of the largest size, which the library demands."""
        most = self._context.num_ranks * self._most_tokens
        payload, topk = self._receive(inputs.payload), inputs.topk_idx.shape[1]
        idx = torch.empty(most, topk, dtype=torch.int64, device=self._context.device)
        weights = torch.empty(most, topk, dtype=torch.float32, device=self._context.device)
        tokens, scales = (None if part is None else _even(part) for part in inputs.payload)
        group.handle.dispatch(
            ep.DispatchInputs(
                tokens=_tensor(tokens), topk_weights=_tensor(_even(inputs.topk_weights)), scales=_tensor(scales)
            ),
            ep.DispatchOutputs(
                tokens=_tensor(payload[0]),
                topk_weights=_tensor(weights),
                scales=_tensor(payload[1]),
                topk_idx=_tensor(idx),
            ),
            config=_config(inputs.payload, ep.PassDir.FWD),
            stream=_current(),
        )
        return payload, idx, weights

    def _cached_dispatch(self, group: _Group, inputs: Inputs, stream: torch.cuda.Stream) -> Payload:
        payload = self._receive(inputs.payload)
        tokens, scales = (None if part is None else _even(part) for part in inputs.payload)
        group.handle.dispatch(
            ep.DispatchInputs(tokens=_tensor(tokens), scales=_tensor(scales)),
            ep.DispatchOutputs(tokens=_tensor(payload[0]), scales=_tensor(payload[1])),
            config=_config(inputs.payload, ep.PassDir.BWD),
            stream=stream.cuda_stream,
        )
        return _head(payload, self._num_received)

    def _combine(self, group: _Group, tokens: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
        num_tokens = len(self._topk_idx)
        combined = tokens.new_empty(num_tokens + num_tokens % 2, tokens.shape[1])
        group.handle.combine(
            ep.CombineInputs(tokens=_tensor(tokens)),
            ep.CombineOutputs(tokens=_tensor(combined)),
            stream=stream.cuda_stream,
        )
        return combined[:num_tokens]

    def _receive(self, sent: Payload) -> Payload:
        """Empty tensors like the payload, of the most rows that a rank may receive."""
        most = self._context.num_ranks * self._most_tokens
        tokens, scales = sent
        rows = tokens.new_empty(most, tokens.shape[1])
        return rows, None if scales is None else scales.new_empty(most, scales.shape[1])

    @contextmanager
    def _confirms(self, group: _Group, op: Op, dtype: Dtype) -> Iterator[None]:
        """Compares what the kernel of a config reports of itself at its first launch with what was asked for.

        A kernel that reports nothing has been launched before. RuntimeError where they differ: the library keeps its
        default for a value out of range.
        """
        key = (op, dtype, group.settings.of(op))
        if key in self._confirmed:
            yield
            return
        begin = _log_end()
        yield
        torch.cuda.synchronize()
        printed, launched = _printed(op, begin), self._launched[op, dtype]
        if printed:
            launched.append(printed)
        names = (knob.name for knob in BACKENDS["nccl_ep"].knobs)
        asked = dict(zip(names, group.settings.of(op), strict=True))
        if not agrees(asked, [printed] if printed else launched):
            raise RuntimeError(f"NCCL EP runs {op} with {printed or 'the config of another point'}, asked for {asked}")
        self._confirmed.add(key)


class _PendingPair:
    """Holds inputs and outputs until the current stream waits for the session's. See Pending."""

    def __init__(self, stream: torch.cuda.Stream, result: Overlapped, inputs: object) -> None:
        self._stream, self._result, self._inputs = stream, result, inputs

    def wait(self) -> Overlapped:
        """See Pending."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._stream)
        for tensor in (*self._result.payload, self._result.combined):
            if tensor is not None:
                tensor.record_stream(current)
        return self._result


def _current() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def _tensor(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else ep.Tensor(tensor)


def _config(payload: Payload, direction: Any) -> Any:
    """FP8 tokens travel with the caller's scales."""
    recipe = ep.DispatchQuantizationRecipe.NONE if payload[1] is None else ep.DispatchQuantizationRecipe.FWD
    return ep.DispatchConfig(pass_direction=direction, quantization_recipe=recipe)


def _even(rows: torch.Tensor, *, fill: int = 0) -> torch.Tensor:
    """The rows, and one more where their number is odd, which two ranks may not send."""
    if len(rows) % 2 == 0:
        return rows
    padded = rows.new_empty(len(rows) + 1, rows.shape[1])
    padded[:-1].copy_(rows)
    padded[-1:].view(torch.uint8).zero_() if fill == 0 else padded[-1:].fill_(fill)
    return padded


def _head(payload: Payload, count: int) -> Payload:
    tokens, scales = payload
    return tokens[:count], None if scales is None else scales[:count]


@contextmanager
def _environment(settings: _Settings) -> Iterator[None]:
    """The variables while a group is made, which is when the library reads them."""
    values = settings._asdict()
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)


def _log_end() -> int:
    """The size of the rank's log after a flush of C's output buffers; 0 if stderr is not a file."""
    ctypes.CDLL(None).fflush(None)
    status = os.fstat(_STDERR)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _printed(op: Op, begin: int) -> dict[str, int] | None:
    """The knobs that the kernel of an operation has printed since; None where it printed nothing."""
    end = _log_end()
    if end <= begin:
        return None
    with Path(f"/proc/self/fd/{_STDERR}").open("rb") as log:
        log.seek(begin)
        text = log.read(end - begin).decode(errors="replace")
    return printed_config(text, op)
