"""Files for frameworks: their content, and that they load."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given

from launcher.deploy import exporting
from launcher.deploy.formats import EXPORTS, SHIM, render
from launcher.deploy.tuned import PICKS, provenance
from tests.builders import ROOT
from tests.deploy.exported import COMBINE, DISPATCH, FILES, TUNED, Document, holds, hostile, with_text, written


def bare(text: str) -> list[str]:
    """The lines without comments."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_the_documented_table_equals_that_of_the_report() -> None:
    lines = (ROOT / "docs" / "APPLY.md").read_text().split("## What each can take")[1].split("## ")[0].splitlines()[4:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")[:3]] for line in lines if line.startswith("|")]
    assert [[re.sub(r"^\[(.*)\]\(.*\)$", r"\1", name), *carried] for name, *carried in rows] == [
        [export.framework, export.num_sms, export.chunk_and_buffer] for export in EXPORTS.values()
    ]


@pytest.mark.parametrize("kind", ["within_margin", "inconclusive"])
def test_a_verdict_other_than_tuned_is_exported_and_stated_in_every_file(
    kind: str, document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["verdict"] |= {"kind": kind, "meaning": "why it is so"}
    paths = exporting.export(written(document, tmp_path), names=list(EXPORTS))
    assert capsys.readouterr().err == f"note: the verdict is {kind}: why it is so\n"
    assert [path.name for path in paths if kind not in path.read_text()] == []


def test_an_incomplete_run_is_exported_and_every_file_states_it(
    document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["points"] |= {"missing": 3}
    paths = exporting.export(written(document, tmp_path), names=list(EXPORTS))
    assert capsys.readouterr().err == "note: the run is incomplete: 3 of 1335 points are missing\n"
    assert [path.name for path in paths if "3 of 1335 points" not in path.read_text()] == []


@pytest.mark.parametrize("pick", PICKS)
def test_each_pick_exports_its_pair(pick: str, document: Document) -> None:
    text = render(TUNED, pick=pick, names=["sglang"])["sglang_deepep_config.json"]
    exported = msgspec.json.decode(text)
    pair = document["picks"][pick]
    for operation in ("dispatch", "combine"):
        values = [pair["num_sms"], pair[operation]["nvl_chunk"], pair[operation]["nvl_buffer"], 6, 128]
        assert list(exported[f"normal_{operation}"].values()) == values
    assert exported["deepep_sweep"]["pick"] == pick


def test_every_file_states_its_provenance(exports: Path) -> None:
    facts = provenance(TUNED, "fastest")
    assert facts.keys() >= {"machine", "workload", "deep_ep", "measured", "command", "verdict", "pick", "dispatch"}
    for name in set(FILES) - {SHIM, "sglang_deepep_config.json"}:
        lines = (exports / name).read_text().splitlines()
        assert [value for key, value in facts.items() if f"# deepep-sweep, {key}: {value}" not in lines] == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("megatron.args", "Megatron takes no chunk and no buffer"),
        ("vllm.env", "vLLM takes no num_sms, chunk or buffer"),
        ("verl.overrides", "Sets num_sms of the actor. Chunk and buffer: import deepep_shim.py"),
        ("primus_turbo.yaml", "Current Primus-Turbo ignores chunk and buffer"),
        ("primus_turbo.yaml", "(num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config"),
        ("torchtitan_primus_turbo.py", "torchtitan itself is on DeepEP V2 and ignores all of this"),
        ("torchtitan_primus_turbo.py", "(nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms is separate"),
        ("paddle.yaml", "for every number of ranks"),
        ("sglang_deepep_config.json", "low-latency decode has none"),
        (SHIM, "For other numbers of ranks both return what"),
    ],
)
def test_every_file_names_the_knobs_that_its_framework_cannot_take(name: str, sentence: str, exports: Path) -> None:
    assert sentence in (exports / name).read_text()


def test_sglang_s_objects_are_keyword_arguments_of_config_with_one_num_sms(exports: Path) -> None:
    exported = msgspec.json.decode((exports / "sglang_deepep_config.json").read_bytes())
    assert list(exported["normal_dispatch"].values()) == list(DISPATCH)
    assert list(exported["normal_combine"].values()) == list(COMBINE)
    process = holds(
        "import deep_ep, json\n"
        f"found = json.load(open({str(exports / 'sglang_deepep_config.json')!r}))\n"
        f"assert deep_ep.Config(**found['normal_dispatch']) == deep_ep.Config{DISPATCH}\n"
        f"assert deep_ep.Config(**found['normal_combine']) == deep_ep.Config{COMBINE}\n"
    )
    assert process.stdout == ""


def test_megatron_s_arguments_parse_as_a_shell_hands_them_over(exports: Path) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--moe-token-dispatcher-type", choices=["allgather", "alltoall", "flex"])
    parser.add_argument("--moe-flex-dispatcher-backend", choices=["deepep", "hybridep"])
    parser.add_argument("--moe-flex-dispatcher-num-sms", type=int)
    line = f"printf '%s\\n' $(grep -v '^#' {shlex.quote(str(exports / 'megatron.args'))})"
    arguments = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.split()
    parsed = parser.parse_args(arguments)
    assert vars(parsed) == {
        "moe_token_dispatcher_type": "flex",
        "moe_flex_dispatcher_backend": "deepep",
        "moe_flex_dispatcher_num_sms": 128,
    }


def test_vllm_s_environment_is_sourced_and_holds_the_config(exports: Path) -> None:
    line = "set -a; . ./vllm.env; set +a; printenv VLLM_DEEPEP_BUFFER_SIZE_MB"
    process = subprocess.run(["sh", "-c", line], cwd=exports, capture_output=True, text=True, check=True)
    assert process.stdout == "1024\n"
    assert process.stderr == ""


def test_vllm_s_buffer_grows_where_the_config_needs_more_than_vllm_gives() -> None:
    pair = TUNED.picks["fastest"]
    combine = msgspec.structs.replace(pair.combine, knobs=pair.combine.knobs | {"nvl_buffer": 1024})
    large = msgspec.structs.replace(pair, combine=combine)
    tuned = TUNED._replace(library=msgspec.structs.replace(TUNED.library, picks={"fastest": large}))
    # 64 channels * 2 ranks * (20 + 1024 * (14336 + 8 + 1024 + 512 + 512)) bytes = 2049.0 MiB
    assert bare(render(tuned, pick="fastest", names=["vllm"])["vllm.env"]) == ["VLLM_DEEPEP_BUFFER_SIZE_MB=2050"]


def test_verl_s_overrides_parse_in_hydra(exports: Path) -> None:
    overrides = OverridesParser.create().parse_overrides(bare((exports / "verl.overrides").read_text()))
    prefix = "actor_rollout_ref.actor.megatron.override_transformer_config."
    assert all(override.is_add() for override in overrides)
    assert {override.key_or_group.removeprefix(prefix): override.value() for override in overrides} == {
        "moe_token_dispatcher_type": "flex",
        "moe_enable_deepep": True,
        "moe_deepep_num_sms": 128,
    }


def test_primus_and_paddle_files_are_yaml_with_the_numbers(exports: Path) -> None:
    assert yaml.safe_load((exports / "primus_turbo.yaml").read_text()) == {
        "use_turbo_deepep": True,
        "turbo_deepep_num_cu": 128,
    }
    assert yaml.safe_load((exports / "paddle.yaml").read_text()) == {
        "deepep_buffer_configs": {"num_sms": 128, "dispatch_config": [8, 128], "combine_config": [14, 256]}
    }


def test_paddle_s_lists_become_the_tuned_configs_behind_num_sms(exports: Path) -> None:
    configs = yaml.safe_load((exports / "paddle.yaml").read_text())["deepep_buffer_configs"]
    holds(
        "import deep_ep\n"
        f"found = {configs!r}\n"
        f"assert deep_ep.Config(found['num_sms'], *found['dispatch_config']) == deep_ep.Config{DISPATCH[:3]}\n"
        f"assert deep_ep.Config(found['num_sms'], *found['combine_config']) == deep_ep.Config{COMBINE[:3]}\n"
    )


def test_torchtitan_s_tuples_become_the_tuned_configs_behind_num_sms(exports: Path, tmp_path: Path) -> None:
    package = tmp_path / "torchtitan" / "distributed" / "deepep"
    package.mkdir(parents=True)
    (package / "utils.py").write_text("class PrimusTurboFlexTokenDispatcher: pass\n")
    holds(
        "import deep_ep, torchtitan_primus_turbo\n"
        "from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher as it\n"
        "def made(tuned): return deep_ep.Config(it.turbo_deepep_num_cus, *tuned)\n"
        f"assert made(it.turbo_deepep_dispatch_tuned_config) == deep_ep.Config{DISPATCH}\n"
        f"assert made(it.turbo_deepep_combine_tuned_config) == deep_ep.Config{COMBINE}\n",
        exports,
        tmp_path,
    )


def code_of(text: str) -> list[str]:
    """A Python file without its comments and its table of provenance."""
    statements = ast.parse(text).body
    return [ast.dump(one) for one in statements if getattr(getattr(one, "target", None), "id", "") != "PROVENANCE"]


CHECKS: dict[str, Callable[[str], Any]] = {
    "sglang_deepep_config.json": lambda text: [
        msgspec.json.decode(text)[key] for key in ("normal_dispatch", "normal_combine")
    ],
    SHIM: code_of,
    "megatron.args": lambda text: (bare(text), shlex.split(text, comments=True)),
    "vllm.env": bare,
    "verl.overrides": bare,
    "primus_turbo.yaml": yaml.safe_load,
    "torchtitan_primus_turbo.py": code_of,
    "paddle.yaml": lambda text: (bare(text), yaml.safe_load(text)),
}

HARMLESS = {name: CHECKS[name](text) for name, text in render(TUNED, pick="fastest", names=list(EXPORTS)).items()}


@example("\nVLLM_DEEPEP_BUFFER_SIZE_MB=1")
@example("\r--moe-flex-dispatcher-num-sms 2")
@example("\u2028turbo_deepep_num_cu: 2")
@example("'}\nimport os\n#")
@example('"""')
@example("$(reboot) `reboot` \\")
@given(hostile)
def test_no_text_from_a_run_gets_out_of_its_comment_or_string(text: str) -> None:
    if "\ud83d" in text:  # a lone surrogate: JSON cannot bring one in
        text = text.replace("\ud83d", "\\")
    texts = render(with_text(text), pick="fastest", names=list(EXPORTS))
    assert {name: CHECKS[name](content) for name, content in texts.items()} == HARMLESS
    assert [name for name, content in texts.items() if content.encode().decode() != content] == []
