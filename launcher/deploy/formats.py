"""The files that put a tuned config into force, one or two for each framework; pure: tuned results in, texts out."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from typing import Any

import msgspec

from bench.backends.deepep import buffer_bytes
from launcher.deploy.tuned import TunedResults, configs, provenance
from launcher.store.results_file import SavedPair
from launcher.text import one_line

SHIM = "deepep_shim.py"
ONLY_BY_SHIM = "only by the shim"
VLLM_DEFAULT_MB = 1024
"""What vLLM gives DeepEP's buffer when VLLM_DEEPEP_BUFFER_SIZE_MB is not set."""

_TUPLES = (
    "Two conventions for a tuned tuple are in use:",
    "  (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms is separate. This file uses it.",
    "  (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256).",
    "  A tuple of the second kind in place of the first becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer",
    "  of 8, which DeepEP asserts against.",
)


class Export(msgspec.Struct, frozen=True):
    """One format: the framework that takes it, its file, its text, and how it is used, as Markdown.

    ``num_sms``, ``chunk_and_buffer``: whether the file carries them, or what else does.
    """

    framework: str
    file: str
    text: Callable[[TunedResults, str], str]
    use: str
    num_sms: str = "yes"
    chunk_and_buffer: str = "yes"

    @property
    def needs_shim(self) -> bool:
        """Whether the shim has to carry what the file cannot."""
        return ONLY_BY_SHIM in (self.num_sms, self.chunk_and_buffer)


def render(tuned: TunedResults, *, pick: str, names: list[str]) -> dict[str, str]:
    """Texts by file name for some of ``EXPORTS``, the shim among them wherever one needs it."""
    chosen = [EXPORTS[name] for name in names]
    if any(export.needs_shim for export in chosen):
        chosen.append(EXPORTS["shim"])
    return {export.file: export.text(tuned, pick) for export in chosen}


def _comments(tuned: TunedResults, pick: str, *does: str) -> list[str]:
    facts = [f"deepep-sweep, {name}: {one_line(value)}" for name, value in provenance(tuned, pick).items()]
    return [f"# {line}".rstrip() for line in [*does, "", *facts]]


def _file(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _tuples(pair: SavedPair) -> list[list[int]]:
    """(nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer) of dispatch and combine."""
    return [list(arguments.values())[1:] for arguments in configs(pair).values()]


def _num_sms(pair: SavedPair) -> int:
    return pair.dispatch.knobs["num_sms"]


def _sglang(tuned: TunedResults, pick: str) -> str:
    tables = configs(tuned.pair(pick))
    document = {
        "normal_dispatch": tables["dispatch"],
        "normal_combine": tables["combine"],
        "deepep_sweep": {
            "carries": "num_sms, nvl_chunk and nvl_buffer of the normal mode (prefill); low-latency decode has none",
            **provenance(tuned, pick),
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _shim(tuned: TunedResults, pick: str) -> str:
    """The template with its two empty tables filled, as literals that repr has escaped."""
    text = resources.files("launcher.deploy").joinpath("templates", SHIM).read_text(encoding="utf-8")
    tables: dict[str, dict[Any, Any]] = {
        "PROVENANCE: dict[str, str] = ": provenance(tuned, pick),
        "TUNED: dict[int, Configs] = ": {tuned.ep: configs(tuned.pair(pick))},
    }
    for declaration, table in tables.items():
        empty = f"\n{declaration}{{}}\n"
        assert text.count(empty) == 1
        rows = "".join(f"    {key!r}: {value!r},\n" for key, value in table.items())
        text = text.replace(empty, f"\n{declaration}{{\n{rows}}}\n")
    return text


def _megatron(tuned: TunedResults, pick: str) -> str:
    num_sms = _num_sms(tuned.pair(pick))
    return _file(
        *_comments(
            tuned,
            pick,
            "Megatron-LM: pretrain_gpt.py ... $(grep -v '^#' megatron.args)",
            "Sets num_sms. Megatron takes no chunk and no buffer: for these import deepep_shim.py in every rank.",
            f"Older versions: --moe-token-dispatcher-type flex --moe-enable-deepep --moe-deepep-num-sms {num_sms}",
        ),
        "--moe-token-dispatcher-type flex",
        "--moe-flex-dispatcher-backend deepep",
        f"--moe-flex-dispatcher-num-sms {num_sms}",
    )


def _vllm(tuned: TunedResults, pick: str) -> str:
    hidden_bytes = 2 * tuned.workload.hidden
    operations = tuned.pair(pick).operations.values()
    needed = max(
        buffer_bytes(operation.knobs, num_ranks=tuned.ep, hidden_bytes=hidden_bytes) for operation in operations
    )
    needed_mb = math.ceil(needed / 2**20)
    return _file(
        *_comments(
            tuned,
            pick,
            "vLLM, high-throughput DeepEP: set -a; . ./vllm.env; set +a",
            "  PYTHONPATH=FOLDER_OF_THE_SHIM vllm serve MODEL --enable-expert-parallel",
            "  --all2all-backend deepep_high_throughput --worker-extension-cls deepep_shim.WorkerExtension",
            "The last of these makes every worker import the shim.",
            "Sets only the size of the buffer. vLLM takes no num_sms, chunk or buffer: deepep_shim.py does.",
            f"The tuned config needs {needed_mb} MiB at hidden {tuned.workload.hidden}, vLLM's default is "
            f"{VLLM_DEFAULT_MB}; this is the larger one.",
        ),
        f"VLLM_DEEPEP_BUFFER_SIZE_MB={max(needed_mb, VLLM_DEFAULT_MB)}",
    )


def _verl(tuned: TunedResults, pick: str) -> str:
    prefix = "+actor_rollout_ref.actor.megatron.override_transformer_config"
    num_sms = _num_sms(tuned.pair(pick))
    return _file(
        *_comments(
            tuned,
            pick,
            "verl with Megatron: python -m verl.trainer.main_ppo ... $(grep -v '^#' verl.overrides)",
            "Sets num_sms of the actor. Chunk and buffer: import deepep_shim.py in every worker.",
            "Where Megatron calls moe_deepep_num_sms deprecated: moe_flex_dispatcher_num_sms.",
        ),
        f"{prefix}.moe_token_dispatcher_type=flex",
        f"{prefix}.moe_enable_deepep=True",
        f"{prefix}.moe_deepep_num_sms={num_sms}",
    )


def _primus_turbo(tuned: TunedResults, pick: str) -> str:
    pair = tuned.pair(pick)
    dispatch, combine = (tuple(values) for values in _tuples(pair))
    return _file(
        *_comments(
            tuned,
            pick,
            "Primus: merge into the overrides of the module in the experiment's yaml.",
            "Sets num_sms, which Primus calls CUs. Current Primus-Turbo ignores chunk and buffer; older ones take",
            f"the tuples {dispatch} for dispatch, {combine} for combine.",
            "Where Primus-Turbo runs on deep_ep itself, deepep_shim.py carries them.",
            *_TUPLES,
        ),
        "use_turbo_deepep: true",
        f"turbo_deepep_num_cu: {_num_sms(pair)}",
    )


def _torchtitan(tuned: TunedResults, pick: str) -> str:
    pair = tuned.pair(pick)
    dispatch, combine = (tuple(values) for values in _tuples(pair))
    return _file(
        *_comments(
            tuned,
            pick,
            "torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.",
            "Sets num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.",
            *_TUPLES,
        ),
        "from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher",
        "",
        f"PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = {_num_sms(pair)}",
        f"PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = {dispatch}",
        f"PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = {combine}",
    )


def _paddle(tuned: TunedResults, pick: str) -> str:
    pair = tuned.pair(pick)
    dispatch, combine = _tuples(pair)
    return _file(
        *_comments(
            tuned,
            pick,
            "PaddleFleet: merge into the training yaml.",
            "Sets num_sms, chunk and buffer, the lists as [nvl_chunk, nvl_buffer], for every number of ranks.",
        ),
        "deepep_buffer_configs:",
        f"  num_sms: {_num_sms(pair)}",
        f"  dispatch_config: {dispatch[:2]}",
        f"  combine_config: {combine[:2]}",
    )


EXPORTS = {
    "sglang": Export(
        "SGLang",
        "sglang_deepep_config.json",
        _sglang,
        "`--deepep-config exports/sglang_deepep_config.json`",
    ),
    "shim": Export(
        "the shim, for all on `deep_ep.Buffer`",
        SHIM,
        _shim,
        "`import deepep_shim` in every rank, before the Buffer is made",
    ),
    "megatron": Export(
        "Megatron-LM",
        "megatron.args",
        _megatron,
        "`$(grep -v '^#' exports/megatron.args)`, and the shim",
        chunk_and_buffer=ONLY_BY_SHIM,
    ),
    "vllm": Export(
        "vLLM",
        "vllm.env",
        _vllm,
        "source `exports/vllm.env`; `--worker-extension-cls deepep_shim.WorkerExtension`",
        num_sms=ONLY_BY_SHIM,
        chunk_and_buffer=ONLY_BY_SHIM,
    ),
    "verl": Export(
        "verl",
        "verl.overrides",
        _verl,
        "`$(grep -v '^#' exports/verl.overrides)`, and the shim",
        chunk_and_buffer=ONLY_BY_SHIM,
    ),
    "primus_turbo": Export(
        "Primus-Turbo",
        "primus_turbo.yaml",
        _primus_turbo,
        "merge `exports/primus_turbo.yaml` into the overrides of the module",
        chunk_and_buffer="no (old versions: yes)",
    ),
    "torchtitan": Export(
        "torchtitan forks",
        "torchtitan_primus_turbo.py",
        _torchtitan,
        "run `exports/torchtitan_primus_turbo.py` in every rank, before the model is built",
    ),
    "paddle": Export(
        "PaddleFleet",
        "paddle.yaml",
        _paddle,
        "merge `exports/paddle.yaml` into the training yaml",
    ),
}
