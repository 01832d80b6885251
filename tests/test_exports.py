"""Exported files load where they are meant to, say what they cannot carry, and let nothing hostile out."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from bench.backends import BACKENDS
from bench.records import Op
from launcher import export
from launcher.deploy import exporting, tuned
from launcher.deploy.formats import EXPORTS, SHIM, render
from launcher.deploy.tuned import PICKS, TunedResults, provenance
from launcher.errors import UserError
from launcher.store import results_file
from tests.builders import ROOT, Command, Sweep

RESULTS = ROOT / "outputs" / "published" / "h200x2-ep2-bf16" / "RESULTS_EP2.json"
STAND_INS = ROOT / "tests" / "stand_ins"
ANSWER = tuned.read(RESULTS)
FILES = [one.file for one in EXPORTS.values()]
DISPATCH, COMBINE = (128, 8, 128, 6, 128), (128, 14, 256, 6, 128)

Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    """A real RESULTS file, to be spoilt; the long tables left out."""
    found: Document = msgspec.json.decode(RESULTS.read_bytes())
    return found | {"measurements": [], "best_per_shared": []}


def written(document: Document, folder: Path, name: str = "RESULTS_EP2.json") -> Path:
    file = folder / name
    file.write_bytes(msgspec.json.encode(document))
    return file


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that is exported of two H200s at EP=2."""
    run = tmp_path_factory.mktemp("run")
    shutil.copy(RESULTS, run)
    paths = exporting.export(run / RESULTS.name, names=list(EXPORTS))
    assert [path.name for path in paths] == FILES
    return run / "exports"


def python(code: str, *folders: Path, stand_ins: bool = True) -> subprocess.CompletedProcess[str]:
    """A process that can import the stand-in deep_ep and what lies in the folders."""
    path = [*map(str, folders), *([str(STAND_INS)] if stand_ins else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "RANK": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def holds(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """The process, whose every assertion held."""
    process = python(code, *folders)
    assert process.returncode == 0, process.stderr
    return process


def bare(text: str) -> list[str]:
    """The lines that are no comments."""
    return [line for line in text.splitlines() if not line.startswith("#")]


# ---- the command


def test_stdout_is_the_paths_of_what_was_written(run_module: Command, tmp_path: Path) -> None:
    shutil.copytree(RESULTS.parent, tmp_path / "run", ignore=shutil.ignore_patterns("shards"))
    process = run_module("launcher.export", str(tmp_path / "run"))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == [str(tmp_path / "run" / "exports" / name) for name in FILES]
    assert sorted(FILES) == sorted(path.name for path in (tmp_path / "run" / "exports").iterdir())


def test_a_dry_run_is_refused_and_nothing_is_written(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.export", str(sweep.folder))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"error: {sweep.folder}/RESULTS_EP4.json is a dry run: it measured no DeepEP\n"
        "hint: sweep on a machine with GPUs and deep_ep\n"
    )
    assert not (sweep.folder / "exports").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_to_writes_one_format_and_the_shim_where_the_format_needs_it(name: str, tmp_path: Path) -> None:
    shutil.copy(RESULTS, tmp_path)
    assert export.main([str(tmp_path / RESULTS.name), "--to", name]) == 0
    wanted = {EXPORTS[name].file} | ({SHIM} if name in ("megatron", "vllm", "verl") else set())
    assert {path.name for path in (tmp_path / "exports").iterdir()} == wanted


def test_files_of_two_picks_never_share_a_folder(tmp_path: Path) -> None:
    shutil.copy(RESULTS, tmp_path)
    for arguments in ([], ["--to", "megatron", "--pick", "overlapped"], ["--to", "vllm", "--pick", "knee"]):
        assert export.main([str(tmp_path / RESULTS.name), *arguments]) == 0
    found: dict[Path, set[str]] = {}
    for file in (tmp_path / "exports").rglob("*.*"):
        said = {pick for pick in PICKS if re.search(rf"""pick['"]?: ['"]?{pick}\b""", file.read_text())}
        found[file.parent.relative_to(tmp_path)] = found.get(file.parent.relative_to(tmp_path), set()) | said
    assert found == {
        Path("exports"): {"fastest"},
        Path("exports/overlapped"): {"overlapped"},
        Path("exports/knee"): {"knee"},
    }


def test_the_documented_table_is_that_of_the_report() -> None:
    lines = (ROOT / "docs" / "APPLY.md").read_text().split("## What each can take")[1].split("## ")[0].splitlines()[4:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")[:3]] for line in lines if line.startswith("|")]
    assert [[re.sub(r"^\[(.*)\]\(.*\)$", r"\1", name), *carried] for name, *carried in rows] == [
        [one.framework, one.num_sms, one.chunk_and_buffer] for one in EXPORTS.values()
    ]


def test_help_names_every_format_and_every_pick(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in (*EXPORTS, *FILES, *PICKS))
    assert export.main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "nemo"], f"--to must be one of {', '.join(EXPORTS)}, got nemo"),
        (["--pick", "best"], f"--pick must be one of {', '.join(PICKS)}, got best"),
        (["--pick"], "argument --pick: expected one argument"),
        (["--too", "sglang"], "unrecognized arguments: --too sglang"),
    ],
)
def test_a_wrong_argument_is_one_line_that_lists_the_right_ones(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = shutil.copy(RESULTS, tmp_path)
    assert export.main([str(results), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"error: {message}"
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dry_run": True}, "is a dry run: it measured no DeepEP"),
        ({"shared_gpus": True}, "has ranks that shared a GPU: its times mean nothing"),
        ({"backend": "alltoall"}, "measured backend alltoall, not deepep"),
        ({"optimal": None, "picks": {}}, "has no optimal pair: too little was measured"),
        ({"verdict": None}, "has no verdict on the default: too little was measured"),
        (
            {"schema": "deepep-sweep/results/3"},
            "has schema deepep-sweep/results/3, this program reads up to deepep-sweep/results/2",
        ),
        ({"schema": "other"}, "is not a RESULTS file: its schema is not deepep-sweep/results/2"),
        ({"schema": 7}, "is not a RESULTS file: Expected `str`, got `int` - at `$.schema`"),
        ({"picks": {}}, "is not a RESULTS file: picks has no fastest"),
        ({"ep": "two"}, "is not a RESULTS file: Expected `int`, got `str` - at `$.ep`"),
    ],
)
def test_what_must_not_be_deployed_is_refused_in_one_line(
    changes: Document, message: str, document: Document, tmp_path: Path
) -> None:
    file = written(document | changes, tmp_path)
    with pytest.raises(UserError) as caught:
        tuned.read(file)
    assert str(caught.value) == f"{file} {message}"
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"{}"])
def test_a_file_that_is_no_results_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "RESULTS_EP2.json").write_bytes(content)
    with pytest.raises(UserError, match="is not a RESULTS file"):
        tuned.read(tmp_path / "RESULTS_EP2.json")


def test_a_run_folder_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="has no RESULTS file yet") as caught:
        results_file.locate(tmp_path)
    assert caught.value.hint == f"python -m launcher.aggregate {shlex.quote(str(tmp_path))}"


def test_the_results_of_other_environments_are_not_taken_for_the_run_s(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    for name in ("RESULTS_EP2.2.json", "RESULTS_EP2.json"):
        (tmp_path / name).touch()
    assert results_file.locate(tmp_path) == tmp_path / "RESULTS_EP2.json"


@pytest.mark.parametrize("kind", ["default_is_optimal", "inconclusive"])
def test_a_verdict_other_than_tuned_is_exported_and_said_everywhere(
    kind: str, document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["verdict"] |= {"kind": kind, "meaning": "why it is so"}
    paths = exporting.export(written(document, tmp_path), names=list(EXPORTS))
    assert capsys.readouterr().err == f"note: the verdict is {kind}: why it is so\n"
    assert [path.name for path in paths if kind not in path.read_text()] == []


def test_a_run_that_is_not_whole_is_exported_and_said_everywhere(
    document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["points"] |= {"missing": 3}
    paths = exporting.export(written(document, tmp_path), names=list(EXPORTS))
    assert capsys.readouterr().err == "note: the run is not whole: 3 of 1335 points are missing\n"
    assert [path.name for path in paths if "3 of 1335 points" not in path.read_text()] == []


@pytest.mark.parametrize("pick", PICKS)
def test_each_pick_exports_its_own_pair(pick: str, document: Document) -> None:
    text = render(ANSWER, pick=pick, names=["sglang"])["sglang_deepep_config.json"]
    found = msgspec.json.decode(text)
    pair = document["picks"][pick]
    for operation in ("dispatch", "combine"):
        values = [pair["num_sms"], pair[operation]["nvl_chunk"], pair[operation]["nvl_buffer"], 6, 128]
        assert list(found[f"normal_{operation}"].values()) == values
    assert found["deepep_sweep"]["pick"] == pick


def test_a_pick_that_the_run_does_not_have_is_refused_with_those_that_it_has(
    document: Document, tmp_path: Path
) -> None:
    del document["picks"]["overlapped"]
    with pytest.raises(UserError, match=r"^pick must be one of fastest, default_sms, knee here, got overlapped$"):
        exporting.export(written(document, tmp_path), names=["sglang"], pick="overlapped")
    assert not (tmp_path / "exports").exists()


def test_every_file_says_where_it_comes_from(exports: Path) -> None:
    said = provenance(ANSWER, "fastest")
    assert said.keys() >= {"machine", "workload", "deep_ep", "measured", "command", "verdict", "pick", "dispatch"}
    for name in set(FILES) - {SHIM, "sglang_deepep_config.json"}:
        lines = (exports / name).read_text().splitlines()
        assert [value for key, value in said.items() if f"# deepep-sweep, {key}: {value}" not in lines] == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("megatron.args", "Megatron takes no chunk and no buffer"),
        ("vllm.env", "vLLM takes no num_sms, chunk or buffer"),
        ("verl.overrides", "Carries num_sms of the actor. Chunk and buffer: import deepep_shim.py"),
        ("primus_turbo.yaml", "Primus-Turbo of today ignores chunk and buffer"),
        ("primus_turbo.yaml", "(num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config"),
        ("torchtitan_primus_turbo.py", "torchtitan itself is on DeepEP V2 and ignores all of this"),
        ("torchtitan_primus_turbo.py", "(nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart"),
        ("paddle.yaml", "for every number of ranks alike"),
        ("sglang_deepep_config.json", "low-latency decode has none"),
        (SHIM, "For other numbers of ranks both return what"),
    ],
)
def test_every_file_says_what_it_cannot_carry(name: str, sentence: str, exports: Path) -> None:
    assert sentence in (exports / name).read_text()


# ---- they load


def test_sglang_s_objects_are_keyword_arguments_of_config_with_one_num_sms(exports: Path) -> None:
    found = msgspec.json.decode((exports / "sglang_deepep_config.json").read_bytes())
    assert list(found["normal_dispatch"].values()) == list(DISPATCH)
    assert list(found["normal_combine"].values()) == list(COMBINE)
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
    given = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.split()
    found = parser.parse_args(given)
    assert vars(found) == {
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
    pair = ANSWER.picks["fastest"]
    combine = msgspec.structs.replace(pair.combine, knobs=pair.combine.knobs | {"nvl_buffer": 1024})
    large = msgspec.structs.replace(pair, combine=combine)
    found = ANSWER._replace(library=msgspec.structs.replace(ANSWER.library, picks={"fastest": large}))
    # 64 channels * 2 ranks * (20 + 1024 * (14336 + 8 + 1024 + 512 + 512)) bytes = 2049.0 MiB
    assert bare(render(found, pick="fastest", names=["vllm"])["vllm.env"]) == ["VLLM_DEEPEP_BUFFER_SIZE_MB=2050"]


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
    found = yaml.safe_load((exports / "paddle.yaml").read_text())["deepep_buffer_configs"]
    holds(
        "import deep_ep\n"
        f"found = {found!r}\n"
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


# ---- the shim


def test_importing_the_shim_replaces_the_answers_for_the_measured_ranks(exports: Path) -> None:
    process = holds(
        "import deepep_shim\n"
        "from deep_ep import Buffer, Config\n"
        f"assert Buffer.get_dispatch_config(2) == Config{DISPATCH}\n"
        f"assert Buffer.get_combine_config(2) == Config{COMBINE}\n"
        f"assert Buffer(2).dispatch() == Config{DISPATCH} and Buffer(2).combine() == Config{COMBINE}\n"
        "assert Buffer(2).dispatch(config=Config(4, 1, 32)) == Config(4, 1, 32)\n"
        "assert Buffer.num_sms == 128\n",
        exports,
    )
    assert process.stderr == (
        "deepep_shim: at EP=2 (num_sms, nvl_chunk, nvl_buffer) is dispatch (128, 8, 128), combine (128, 14, 256)\n"
    )


def test_the_shim_leaves_other_numbers_of_ranks_with_the_library_s_own_answer(exports: Path) -> None:
    holds(
        "from deep_ep import Buffer, Config\n"
        "before = [(Buffer.get_dispatch_config(n), Buffer.get_combine_config(n)) for n in (4, 8)]\n"
        "import deepep_shim\n"
        "assert before == [(Buffer.get_dispatch_config(n), Buffer.get_combine_config(n)) for n in (4, 8)]\n"
        "assert Buffer.num_sms == 128\n",
        exports,
    )


def test_a_framework_s_own_num_sms_holds_for_other_numbers_of_ranks_only(exports: Path) -> None:
    holds(
        "import deepep_shim\n"
        "from deep_ep import Buffer, Config\n"
        "Buffer.set_num_sms(32)\n"
        "assert Buffer.get_dispatch_config(8) == Config(32, 6, 256, 6, 128)\n"
        f"assert Buffer.get_dispatch_config(2) == Config{DISPATCH}\n",
        exports,
    )


def test_applying_the_shim_again_even_from_a_copy_changes_nothing(exports: Path, tmp_path: Path) -> None:
    shutil.copy(exports / SHIM, tmp_path / "copy_of_shim.py")
    holds(
        "import deepep_shim\n"
        "from deep_ep import Buffer\n"
        "def now(): return Buffer.get_dispatch_config, Buffer.get_combine_config, Buffer.num_sms\n"
        "once = now()\n"
        "own = Buffer.get_dispatch_config(8)\n"
        "import copy_of_shim\n"
        "deepep_shim.apply()\n"
        "assert once == now() and deepep_shim.active() == copy_of_shim.active()\n"
        "assert own == Buffer.get_dispatch_config(8) and own.num_sms == 20\n",
        exports,
        tmp_path,
    )


def test_apply_takes_the_results_of_another_sweep_beside_the_embedded_ones(
    exports: Path, document: Document, tmp_path: Path
) -> None:
    file = written(document | {"ep": 4}, tmp_path, "RESULTS_EP4.json")
    pair = tuned.read(RESULTS).pair("overlapped")
    wanted = {name: tuple(operation.knobs.values()) for name, operation in pair.operations.items()}
    holds(
        "import deepep_shim\n"
        f"active = deepep_shim.apply({str(file)!r}, pick='overlapped')\n"
        "from deep_ep import Buffer, Config\n"
        f"assert Buffer(4).dispatch() == Config{wanted['dispatch']}\n"
        f"assert Buffer(4).combine() == Config{wanted['combine']}\n"
        f"assert Buffer(2).dispatch() == Config{DISPATCH}\n"
        f"assert Buffer.num_sms == {wanted['dispatch'][0]}\n"
        "assert active == deepep_shim.active() and list(active) == [2, 4]\n"
        "assert Buffer.get_dispatch_config(8) == Config(20, 6, 256, 6, 128)\n",
        exports,
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dry_run": True}, "is not a measurement of DeepEP"),
        ({"shared_gpus": True}, "is not a measurement of DeepEP"),
        ({"schema": "deepep-sweep/results/3"}, "this file reads 'deepep-sweep/results/1' and 'deepep-sweep/results/2'"),
        ({"picks": {}}, "has no pick 'fastest'; it has none"),
        ({"picks": 7}, "is malformed"),
        ({"picks": {"fastest": None}}, "is malformed"),
        ({"picks": {"fastest": {"num_sms": 24, "dispatch": {}, "combine": {}}}}, "is malformed: no 'nvl_chunk'"),
        ({"ep": "four"}, "is malformed"),
        ({"shared_gpus": None, "backend": None}, "is not a measurement of DeepEP"),
    ],
)
def test_apply_refuses_what_export_refuses(
    changes: Document, why: str, exports: Path, document: Document, tmp_path: Path
) -> None:
    file = written(document | changes, tmp_path)
    process = python(f"import deepep_shim; deepep_shim.apply({str(file)!r})", exports)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("deepep_shim.ShimError: ")
    assert why in process.stderr


@pytest.mark.parametrize("missing", ["dry_run", "shared_gpus", "backend", "picks", "ep"])
def test_apply_of_a_document_that_lacks_something_is_a_shim_error(
    missing: str, exports: Path, document: Document, tmp_path: Path
) -> None:
    del document[missing]
    file = written(document, tmp_path)
    process = python(f"import deepep_shim; deepep_shim.apply({str(file)!r})", exports)
    assert process.stderr.splitlines()[-1] == f"deepep_shim.ShimError: {file} is malformed: no {missing!r}"


def test_importing_the_shim_where_deep_ep_cannot_be_used_warns_and_lives_on(exports: Path, tmp_path: Path) -> None:
    (tmp_path / "deep_ep.py").write_text("class ElasticBuffer: pass\n")
    for folders, why in (((exports, tmp_path), "has no V1 Buffer"), ((exports,), "deep_ep cannot be imported")):
        if importable := why == "has no V1 Buffer":
            (tmp_path / "torch.py").touch()
        process = python("import deepep_shim; print(deepep_shim.active())", *folders, stand_ins=False)
        assert (process.returncode, process.stdout) == (0, "{}\n"), importable
        assert (
            f"RuntimeWarning: deepep_shim changes nothing: {'this deep_ep ' if importable else ''}{why}"
            in process.stderr
        )
    process = python("import deepep_shim; deepep_shim.apply()", exports, tmp_path, stand_ins=False)
    assert process.returncode == 1


def test_the_template_itself_changes_nothing() -> None:
    holds(
        "import deepep_shim, sys\nassert 'deep_ep' not in sys.modules and deepep_shim.active() == {}\n",
        ROOT / "launcher" / "deploy" / "templates",
    )


def test_the_stand_in_has_the_defaults_that_the_project_keeps_of_deep_ep() -> None:
    for num_ranks in (2, 4, 8):
        wanted = [
            tuple(BACKENDS["deepep"].default(op, num_ranks=num_ranks).values()) for op in (Op.DISPATCH, Op.COMBINE)
        ]
        holds(
            "from deep_ep import Buffer, Config\n"
            f"assert Buffer.get_dispatch_config({num_ranks}) == Config(*{wanted[0]}, 6, 128)\n"
            f"assert Buffer.get_combine_config({num_ranks}) == Config(*{wanted[1]}, 6, 128)\n"
        )


# ---- hostile content

hostile = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\n\r\v\f\x1c\x85\u2028\u2029'\"`$(){}[]#:;\\|&<>!%*, -=\x00\ud83d\ufeff", max_size=30),
)


def with_text(text: str) -> TunedResults:
    """The answer with a text wherever a machine, a command or a configuration may put one."""
    replace, results = msgspec.structs.replace, ANSWER.results
    return ANSWER._replace(
        results=replace(
            results,
            command=["deepep-sweep", text, f"run={text}"],
            ended=text,
            hosts=[replace(results.hosts[0], hostname=text)],
            workload=replace(results.workload, name=text, routing=text),
        ),
        library=replace(ANSWER.library, version=text),
        device=text,
        verdict=replace(ANSWER.verdict, meaning=text),
    )


def code_of(text: str) -> list[str]:
    """A Python file without its comments and its table of provenance."""
    found = ast.parse(text).body
    return [ast.dump(one) for one in found if getattr(getattr(one, "target", None), "id", "") != "PROVENANCE"]


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
HARMLESS = {name: CHECKS[name](text) for name, text in render(ANSWER, pick="fastest", names=list(EXPORTS)).items()}


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


@given(hostile.filter(lambda text: "\ud83d" not in text))
def test_the_shim_keeps_its_provenance_to_the_letter(text: str) -> None:
    found = with_text(text)
    module = ast.parse(render(found, pick="fastest", names=["shim"])[SHIM])
    table = next(
        one for one in module.body if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "PROVENANCE"
    )
    assert table.value is not None
    assert ast.literal_eval(table.value) == provenance(found, "fastest")
