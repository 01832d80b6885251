"""The shim that replaces the library's static configs."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from hypothesis import given

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.records import Op
from launcher.deploy import tuned
from launcher.deploy.formats import SHIM, render
from launcher.deploy.tuned import provenance
from tests.builders import ROOT, facts
from tests.deploy.exported import COMBINE, DISPATCH, RESULTS, Document, holds, hostile, python, with_text, written


def test_importing_the_shim_replaces_the_configs_for_the_measured_ranks(exports: Path) -> None:
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


def test_the_shim_keeps_the_library_s_configs_for_other_numbers_of_ranks(exports: Path) -> None:
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


def test_apply_adds_the_results_of_another_sweep_to_the_embedded_ones(
    exports: Path, document: Document, tmp_path: Path
) -> None:
    file = written(document | {"ep": 4}, tmp_path, "RESULTS_EP4.json")
    pair = tuned.read(RESULTS).pair("overlapped")
    expected = {name: tuple(operation.knobs.values()) for name, operation in pair.operations.items()}
    holds(
        "import deepep_shim\n"
        f"active = deepep_shim.apply({str(file)!r}, pick='overlapped')\n"
        "from deep_ep import Buffer, Config\n"
        f"assert Buffer(4).dispatch() == Config{expected['dispatch']}\n"
        f"assert Buffer(4).combine() == Config{expected['combine']}\n"
        f"assert Buffer(2).dispatch() == Config{DISPATCH}\n"
        f"assert Buffer.num_sms == {expected['dispatch'][0]}\n"
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
def test_apply_refuses_the_results_that_export_refuses(
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
        expected = [
            tuple(BACKENDS["deepep"].defaults(op, facts(num_ranks=num_ranks))[LIBRARY_DEFAULT].values())
            for op in (Op.DISPATCH, Op.COMBINE)
        ]
        holds(
            "from deep_ep import Buffer, Config\n"
            f"assert Buffer.get_dispatch_config({num_ranks}) == Config(*{expected[0]}, 6, 128)\n"
            f"assert Buffer.get_combine_config({num_ranks}) == Config(*{expected[1]}, 6, 128)\n"
        )


@given(hostile.filter(lambda text: "\ud83d" not in text))
def test_the_shim_keeps_its_provenance_to_the_letter(text: str) -> None:
    tuned_results = with_text(text)
    module = ast.parse(render(tuned_results, pick="fastest", names=["shim"])[SHIM])
    table = next(
        statement
        for statement in module.body
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "PROVENANCE"
    )
    assert table.value is not None
    assert ast.literal_eval(table.value) == provenance(tuned_results, "fastest")
