"""Makes deep_ep take the config that deepep-sweep measured. Needs nothing but deep_ep (V1, ``deep_ep.Buffer``).

Import it in every rank before the framework makes its Buffer:

    import deepep_shim                          # the numbers below
    deepep_shim.apply("RESULTS_EP4.json")       # adds those of another sweep

For the number of ranks that was measured, ``Buffer.get_dispatch_config`` and ``get_combine_config`` then return the
tuned Config, which is what DeepEP takes where ``config=`` is left out, and what frameworks size their Buffer by.
``Buffer.num_sms`` is set too, for code that builds a Config of its own. For other numbers of ranks both return what
they did before. A number of SMs that the framework sets later does not change the tuned Config.

``deepep_shim.active()`` returns the configs in force. If deep_ep cannot be used, the import warns and changes nothing,
while ``apply`` raises ShimError.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Configs = dict[str, dict[str, int]]

RESULTS_SCHEMAS = ("deepep-sweep/results/1", "deepep-sweep/results/2")
OPERATIONS = ("dispatch", "combine")

PROVENANCE: dict[str, str] = {
    'machine': '4 x NVIDIA H200, EP=4',
    'hosts': 'vm',
    'workload': 'deepseek_v3: 4096 tokens a rank, hidden 7168, 256 experts, top-8, bf16 dispatch, routing uniform',
    'deep_ep': 'tokenspeed-deepep 1.2.1.post20251110',
    'measured': '2026-11-26T11:32:52Z',
    'command': 'deepep-sweep -m \'ep=\'"\'"\'4\'"\'"\'\' grid=full workload=deepseek_v3 workload.dtype=bf16 run=outputs/published/ep4-deepseek_v3-bf16 \'search.candidates=[[24,8,256]]\'',
    'verdict': 'tuned: the optimal pair is faster than the default; default / fastest = 1.629, 95 % CI 1.626 to 1.631',
    'pick': 'fastest',
    'dispatch': '(num_sms, nvl_chunk, nvl_buffer) = (128, 4, 256): median 497.17 us, 95 % CI 496.61 to 497.72',
    'combine': '(num_sms, nvl_chunk, nvl_buffer) = (128, 6, 256): median 513.07 us, 95 % CI 512.14 to 514.01',
}
TUNED: dict[int, Configs] = {
    4: {'dispatch': {'num_sms': 128, 'num_max_nvl_chunked_send_tokens': 4, 'num_max_nvl_chunked_recv_tokens': 256, 'num_max_rdma_chunked_send_tokens': 6, 'num_max_rdma_chunked_recv_tokens': 128}, 'combine': {'num_sms': 128, 'num_max_nvl_chunked_send_tokens': 6, 'num_max_nvl_chunked_recv_tokens': 256, 'num_max_rdma_chunked_send_tokens': 6, 'num_max_rdma_chunked_recv_tokens': 128}},
}


class ShimError(RuntimeError):
    """The tuned config cannot be put in force; the message says why."""


class WorkerExtension:
    """Empty: ``vllm serve --worker-extension-cls deepep_shim.WorkerExtension`` imports this file in every worker."""


def apply(path: str | os.PathLike[str] | None = None, *, pick: str = "fastest") -> dict[int, Configs]:
    """Puts the embedded configs in force, or those of a RESULTS file; may be called again. Returns what is in force.

    Of several sweeps each number of ranks keeps its own, the last one sets ``Buffer.num_sms``. ShimError without a
    deep_ep that has the V1 Buffer, and for a file that measured no DeepEP.
    """
    tuned = TUNED if path is None else _read(Path(path), pick)
    state = _install(_deep_ep())
    for num_ranks, configs in tuned.items():
        state.tuned[num_ranks] = configs
        state.num_sms = configs["dispatch"]["num_sms"]
        state.buffer.set_num_sms(state.num_sms)
        _say(num_ranks, configs)
    return dict(state.tuned)


def active() -> dict[int, Configs]:
    """The keyword arguments of deep_ep.Config that are in force, by number of ranks and operation; empty for none."""
    buffer = getattr(sys.modules.get("deep_ep"), "Buffer", None)
    state = getattr(buffer, "_deepep_shim", None)
    return {} if state is None else dict(state.tuned)


def _deep_ep() -> Any:
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # the extension of deep_ep links against it
    try:
        module = importlib.import_module("deep_ep")
    except ImportError as error:
        raise ShimError(f"deep_ep cannot be imported: {error}") from error
    members = ("num_sms", "set_num_sms", "get_dispatch_config", "get_combine_config")
    if not hasattr(module, "Config") or not all(hasattr(getattr(module, "Buffer", None), name) for name in members):
        raise ShimError("this deep_ep has no V1 Buffer: the tuned config does not fit it")
    return module


def _install(deep_ep: Any) -> Any:
    """State of the replaced functions. It is kept on the Buffer, where a second copy of this file finds it."""
    buffer = deep_ep.Buffer
    if not hasattr(buffer, "_deepep_shim"):
        state = types.SimpleNamespace(buffer=buffer, tuned={}, num_sms=None, num_sms_before=buffer.num_sms)
        for operation in OPERATIONS:
            name = f"get_{operation}_config"
            setattr(buffer, name, staticmethod(_replacement(deep_ep, state, operation, getattr(buffer, name))))
        buffer._deepep_shim = state
    return buffer._deepep_shim


def _replacement(deep_ep: Any, state: Any, operation: str, before: Callable[[int], Any]) -> Callable[[int], Any]:
    def config(num_ranks: int) -> Any:
        if num_ranks in state.tuned:
            return deep_ep.Config(**state.tuned[num_ranks][operation])
        return _default_config(state, before, num_ranks)

    return config


def _default_config(state: Any, before: Callable[[int], Any], num_ranks: int) -> Any:
    """The library's own config, for the Buffer.num_sms from before the shim, or that which other code has set since."""
    now = state.buffer.num_sms
    if now != state.num_sms:
        return before(num_ranks)
    state.buffer.num_sms = state.num_sms_before
    try:
        return before(num_ranks)
    finally:
        state.buffer.num_sms = now


def _read(path: Path, pick: str) -> dict[int, Configs]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShimError(f"{path} cannot be read: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in RESULTS_SCHEMAS:
        raise ShimError(f"{path} has schema {schema!r}, this file reads {' and '.join(map(repr, RESULTS_SCHEMAS))}")
    try:
        return _tuned(path, document, pick)
    except KeyError as error:
        raise ShimError(f"{path} is malformed: no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ShimError(f"{path} is malformed: {error}") from error


def _tuned(path: Path, document: dict[str, Any], pick: str) -> dict[int, Configs]:
    is_old = document["schema"] == RESULTS_SCHEMAS[0]
    libraries = [document] if is_old else document["libraries"]
    by_name = {library["backend" if is_old else "name"]: library for library in libraries}
    if document["dry_run"] or document["shared_gpus"] or "deepep" not in by_name:
        raise ShimError(f"{path} is not a measurement of DeepEP: a dry run, shared GPUs, or another backend")
    picks = by_name["deepep"]["picks"]
    if pick not in picks:
        raise ShimError(f"{path} has no pick {pick!r}; it has {', '.join(picks) or 'none'}")
    pair = picks[pick]
    configs = {}
    for operation in OPERATIONS:
        knobs = {**pair, **pair[operation]} if is_old else pair[operation]["knobs"]
        configs[operation] = {
            "num_sms": int(knobs["num_sms"]),
            "num_max_nvl_chunked_send_tokens": int(knobs["nvl_chunk"]),
            "num_max_nvl_chunked_recv_tokens": int(knobs["nvl_buffer"]),
        }
    return {int(document["ep"]): configs}


def _say(num_ranks: int, configs: Configs) -> None:
    """One line, from rank 0 where the launcher numbers the ranks."""
    if os.environ.get("RANK", "0") == "0":
        tuples = ", ".join(f"{operation} {tuple(configs[operation].values())[:3]}" for operation in OPERATIONS)
        print(f"deepep_shim: at EP={num_ranks} (num_sms, nvl_chunk, nvl_buffer) is {tuples}", file=sys.stderr)


def _apply_at_import() -> None:
    """A job must not die because it cannot have a speed-up: here an error is only a warning."""
    try:
        apply()
    except ShimError as error:
        warnings.warn(f"deepep_shim changes nothing: {error}", RuntimeWarning, stacklevel=2)


if TUNED:
    _apply_at_import()
