"""The groups grid and backend: every library declares its grids, and the command line changes them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import BACKENDS, GRIDS
from bench.records import Op
from launcher import api
from launcher.config import compose, groups, planning, schema
from launcher.config.schema import Spec
from launcher.errors import UserError
from tests.builders import spec

LIBRARIES = "backend=[deepep,deepep_v2,nccl_ep]"


def values(given_spec: Spec, library: str, knob: str) -> dict[str, list[int]]:
    """What the plan of a spec takes for a knob, for each operation, from the grid alone."""
    plan = planning.make(msgspec.structs.replace(given_spec, backend=library))
    cells = [cell.point for cell in [*plan.anchors, *plan.cells]]
    return {op: sorted({cell.knobs[knob] for cell in cells if cell.op is op}) for op in (Op.DISPATCH, Op.COMBINE)}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=lambda backend: backend.name)
def test_every_library_declares_every_grid_with_all_of_its_knobs(backend: Any) -> None:
    names = [knob.name for knob in backend.knobs]
    assert backend.grids.keys() == GRIDS.keys()
    assert [list(axes) for axes in backend.grids.values()] == [names] * len(GRIDS)
    assert backend.meaning
    assert backend.title


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_grid_makes_a_plan_of_every_library(grid: str, backend: str) -> None:
    plan = planning.make(spec("workload=small", "workload.num_tokens=256", f"grid={grid}", f"backend={backend}"))
    assert plan.anchors
    assert plan.cells or math.prod(map(len, BACKENDS[backend].grids[grid].values())) == 1  # the default


def test_the_names_of_knobs_libraries_and_operations_differ() -> None:
    assert groups.owners().keys().isdisjoint({*BACKENDS, *Op, groups.OWN})


def test_a_list_holds_for_every_library_that_has_the_knob() -> None:
    changed = spec(LIBRARIES, "grid.num_sms=[8,16]", "search.own_tuning=false")
    assert changed.grid["num_sms"] == [8, 16]
    assert {library: values(changed, library, "num_sms")["combine"] for library in changed.backends} == {
        "deepep": [8, 16, 20],
        "deepep_v2": [8, 16, 64],
        "nccl_ep": [8, 16],
    }


@pytest.mark.parametrize("override", ["grid.num_sms.nccl_ep=[8]", "grid.num_sms={nccl_ep:[8]}"])
def test_a_library_by_name_changes_that_library_only(override: str) -> None:
    changed, standard = spec(LIBRARIES, override), spec(LIBRARIES)
    assert changed.grid["num_sms"] == standard.grid["num_sms"] | {"nccl_ep": [8]}
    assert changed.grid | {"num_sms": None} == standard.grid | {"num_sms": None}


@pytest.mark.parametrize("key", ["grid.nvl_chunk", "grid.nvl_chunk.deepep"])
def test_each_operation_may_have_its_own_values(key: str) -> None:
    changed = spec(f"{key}={{dispatch:[8],combine:[16]}}", "search.own_tuning=false")
    assert values(changed, "deepep", "nvl_chunk") == {"dispatch": [6, 8], "combine": [9, 16]}


def test_null_brings_the_library_s_own_values_back() -> None:
    assert spec(LIBRARIES, "grid.num_sms=[8]", "grid.num_sms=null") == spec(LIBRARIES)
    after = spec(LIBRARIES, "grid.num_sms=[8]", "grid.num_sms=null", "grid.num_sms.nccl_ep=[8]")
    assert after == spec(LIBRARIES, "grid.num_sms.nccl_ep=[8]")


def test_a_knob_of_one_library_has_no_dict_by_library() -> None:
    assert spec().grid["nvl_chunk"] == BACKENDS["deepep"].grids["standard"]["nvl_chunk"]


@pytest.mark.parametrize(
    ("override", "libraries", "got"),
    [
        ("grid.num_sms.deepep_v3=[8]", "deepep, deepep_v2, nccl_ep", "deepep_v3"),
        ("grid.num_sms={deepep:[8],dispatch:[8]}", "deepep, deepep_v2, nccl_ep", "deepep, dispatch"),
        ("grid.num_sms.deepep={nvl_chunk:[8]}", "deepep, deepep_v2, nccl_ep", "nvl_chunk"),
        ("grid.nvl_chunk.nccl_ep=[8]", "deepep", "deepep, nccl_ep"),
    ],
)
def test_a_dict_that_names_neither_operations_nor_libraries_with_the_knob_is_refused(
    override: str, libraries: str, got: str
) -> None:
    with pytest.raises(UserError) as caught:
        api.plan("hardware=h200", "backend=deepep", override)
    knob = override.split(".")[1].partition("=")[0]
    assert (str(caught.value), caught.value.hint) == (
        f"a dict of grid.{knob} must name operations (dispatch, combine) or libraries ({libraries}), got {got}",
        f"grid.{knob}=[8,16] is for all of them",
    )


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (
            ["grid.own.nccl_ep.nvl_chunk=[8]"],
            "grid.own.nccl_ep.nvl_chunk is not a knob",
            "grid.KNOB.LIBRARY=[8,16] sets one",
        ),
        (
            ["grid.num_smss=[8]"],
            "grid.num_smss is not a knob",
            "knobs of this sweep: num_sms, nvl_chunk, nvl_buffer",
        ),
        (
            ["grid.num_sms=[8]", "grid.num_sms.nccl_ep=[8]"],
            "a list has no keys to set (invalid literal for int() with base 10: 'nccl_ep')",
            "grid.KNOB=null clears a knob, if it stands before grid.KNOB=[8,16] or grid.KNOB.LIBRARY=[8,16]",
        ),
        (
            ["grid.num_sms.nccl_ep=[8]", "grid.num_sms=[8]"],
            "Error merging override grid.num_sms=[8]: Cannot merge DictConfig with ListConfig",
            "grid.KNOB=null clears a knob, if it stands before grid.KNOB=[8,16] or grid.KNOB.LIBRARY=[8,16]",
        ),
    ],
)
def test_values_for_nothing_that_there_is_are_refused_in_one_line(
    overrides: list[str], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        api.plan("hardware=h200", "backend=deepep", *overrides)
    assert (str(caught.value), caught.value.hint) == (message, hint)


axis = st.lists(st.integers(1, 128), max_size=3)
by_operation = st.fixed_dictionaries({"dispatch": axis, "combine": axis})
anything = axis | by_operation


@given(st.dictionaries(st.sampled_from(["deepep", "deepep_v2", "nccl_ep"]), anything), st.none() | anything)
def test_one_value_replaces_those_of_all_libraries_and_named_ones_only_theirs(
    named: dict[str, Any], value: Any
) -> None:
    own = groups.nodes("grid")["standard"]
    standard = groups.axes(own)
    assert groups.axes(own | {"num_sms": named})["num_sms"] == standard["num_sms"] | named
    assert groups.axes(own | {"num_sms": value})["num_sms"] == (standard["num_sms"] if value is None else value)


def composed(*arguments: str) -> list[Spec]:
    """The specs of a command line, by Hydra's own main."""
    found: list[Spec] = []

    def body(one: compose.Composed) -> int:
        found.append(schema.spec_from(one.config)[0])
        return 0

    compose.run("sweep", [*arguments, "hardware=h200", "ep='4'"], body)
    return found


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hydra reads sys.argv, sets a variable, and makes its folder in the working directory."""
    monkeypatch.setattr(sys, "argv", ["sweep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_restored")
def test_several_grids_and_several_backends_are_as_many_sweeps() -> None:
    found = composed("-m", "grid=smoke,full", "backend=deepep,nccl_ep")
    assert [(one.backend, one.grid["nvl_buffer"]) for one in found] == [
        ("deepep", [256]),
        ("nccl_ep", [256]),
        ("deepep", [128, 256, 512, 1024]),
        ("nccl_ep", [128, 256, 512, 1024]),
    ]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    ("content", "tokens_per_chunk"),
    [("", None), ("defaults: [standard]\n", [32, 64]), ("defaults: [full]\n", [32, 64, 128])],
)
def test_a_site_may_have_grids_of_its_own_with_and_without_those_of_the_libraries(
    content: str, tokens_per_chunk: list[int] | None, tmp_path: Path
) -> None:
    (tmp_path / "site" / "grid").mkdir(parents=True)
    (tmp_path / "site" / "grid" / "ours.yaml").write_text(
        f"{content}num_sms: [8, 16]\nnvl_chunk: {{dispatch: [4], combine: [8]}}\nnvl_buffer: [256]\n"
    )
    (found,) = composed("-m", "--config-dir", str(tmp_path / "site"), "grid=ours", "backend=deepep")
    assert found.grid.get("tokens_per_chunk") == tokens_per_chunk
    assert {knob: found.grid[knob] for knob in ("num_sms", "nvl_chunk", "nvl_buffer")} == {
        "num_sms": [8, 16],
        "nvl_chunk": {"dispatch": [4], "combine": [8]},
        "nvl_buffer": [256],
    }
    assert planning.make(found).cells


@pytest.mark.usefixtures("_restored")
def test_cfg_job_prints_the_values_of_every_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert composed("--cfg", "job", "grid=smoke", "grid.nvl_chunk=[4]") == []
    printed = msgspec.yaml.decode(capsys.readouterr().out)
    assert printed["backend"] == {"name": "all"}
    assert printed["grid"] == groups.nodes("grid")["smoke"] | {"nvl_chunk": [4]}


@pytest.mark.usefixtures("_restored")
def test_the_shell_completes_grids_libraries_and_knobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    completed = {}
    for words in ("grid=", "backend=", "grid.num_s"):
        line = f"deepep-sweep {words}"
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        compose.run("sweep", ["--shell-completion", "query=bash"], lambda _: 0)
        completed[words] = set(capsys.readouterr().out.split())
    assert completed["grid="] == {f"grid={name}" for name in GRIDS}
    assert completed["backend="] == {f"backend={name}" for name in (*groups.EVERY, *BACKENDS)}
    assert completed["grid.num_s"] >= {"grid.num_sms=", "grid.num_slices=", "grid.num_stages="}
