"""A library of tuned configs, asked at start-up."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher import library
from launcher.deploy import publishing, tuned
from launcher.deploy.tuned import TunedResults
from launcher.library import Key, NotTunedError, load_tuned_config
from tests.builders import ROOT
from tests.deploy.answers import ANSWER, ASKED, DEEP_EP, LIBRARY, changed, replace, routed


def with_tokens(num_tokens: int, *, deep_ep: str = DEEP_EP) -> TunedResults:
    """The answer for another number of tokens, or another deep_ep."""
    return changed(results={"workload": replace(ANSWER.workload, num_tokens=num_tokens)}, version=deep_ep)


def test_the_exact_key_is_found_and_said(tmp_path: Path) -> None:
    publishing.publish(ANSWER, tmp_path)
    found = load_tuned_config(tmp_path, **ASKED)
    assert found.match == "exact"
    assert list(found.dispatch.values()) == [128, 8, 128, 6, 128]
    assert list(found.combine.values()) == [128, 14, 256, 6, 128]
    assert found.entry.key == Key(**ASKED)
    assert found.file.parent == tmp_path


def test_each_pick_of_a_run_can_be_loaded(tmp_path: Path) -> None:
    publishing.publish(ANSWER, tmp_path)
    for name, pair in ANSWER.picks.items():
        found = load_tuned_config(tmp_path, **ASKED, pick=name)
        assert {"dispatch": found.dispatch, "combine": found.combine} == tuned.configs(pair)
    with pytest.raises(NotTunedError):
        load_tuned_config(tmp_path, **ASKED, pick="slowest")


@given(st.sets(st.integers(1, 20_000), min_size=1, max_size=6), st.integers(1, 20_000))
@example({4096, 1024}, 3000)
def test_the_nearest_tokens_by_ratio_are_found_and_said(
    tmp_path_factory: pytest.TempPathFactory, filed: set[int], asked: int
) -> None:
    folder = tmp_path_factory.mktemp("library")
    for num_tokens in filed:
        publishing.publish(with_tokens(num_tokens), folder)
    found = load_tuned_config(folder, **ASKED | {"num_tokens": asked})
    tokens = found.entry.key.num_tokens
    assert abs(math.log(asked / tokens)) == min(abs(math.log(asked / one)) for one in filed)
    assert found.match == ("exact" if asked == tokens else f"nearest tokens: requested {asked}, entry has {tokens}")


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H100 80GB HBM3"},
        {"ep": 4},
        {"hidden": 7169},
        {"num_experts": 128},
        {"num_topk": 6},
        {"dtype": "fp8"},
    ],
)
def test_nothing_but_tokens_and_the_version_is_ever_waived(other: dict[str, Any], tmp_path: Path) -> None:
    publishing.publish(ANSWER, tmp_path)
    with pytest.raises(
        NotTunedError, match=f"; {tmp_path} has NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tok"
    ):
        load_tuned_config(tmp_path, **ASKED | other)


def test_an_empty_or_absent_library_is_said(tmp_path: Path) -> None:
    asked = "no tuned config for NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tokens, bf16 (fastest)"
    for folder, said in (
        (tmp_path, f"; {tmp_path} has nothing"),
        (tmp_path / "no", f": there is no folder {tmp_path}/no"),
    ):
        with pytest.raises(NotTunedError) as caught:
            load_tuned_config(folder, **ASKED)
        assert str(caught.value) == asked + said


def test_the_same_deep_ep_goes_before_nearer_tokens_and_another_is_said(tmp_path: Path) -> None:
    publishing.publish(with_tokens(4096, deep_ep="deep_ep 1.1"), tmp_path)
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "nearest tokens: requested 4096, entry has 1024"
    other = load_tuned_config(tmp_path, **ASKED | {"deep_ep": "deep_ep 1.3"})
    assert other.match == "deep_ep: requested deep_ep 1.3, entry has deep_ep 1.1"
    unasked = load_tuned_config(tmp_path, **ASKED | {"deep_ep": None, "num_tokens": 1000})
    assert unasked.match == "nearest tokens: requested 1000, entry has 1024"


@pytest.mark.parametrize("deep_ep", [None, DEEP_EP, "1.2.1.post20251110"])
def test_no_version_and_the_version_alone_are_exact_like_the_distribution_with_it(
    deep_ep: str | None, tmp_path: Path
) -> None:
    publishing.publish(ANSWER, tmp_path)
    assert load_tuned_config(tmp_path, **ASKED | {"deep_ep": deep_ep}).match == "exact"
    for other in ("1.2.1", "tokenspeed-deepep"):
        found = load_tuned_config(tmp_path, **ASKED | {"deep_ep": other})
        assert found.match == f"deep_ep: requested {other}, entry has {DEEP_EP}"


def installed(folder: Path, *lines: str) -> str:
    """What a process prints in whose path a distribution with a deep_ep is installed."""
    metadata = folder / "tokenspeed_deepep-1.2.1.post20251110.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenspeed-deepep\nVersion: 1.2.1.post20251110\n")
    (metadata / "top_level.txt").write_text("deep_ep\n")
    (metadata / "RECORD").write_text("deep_ep/__init__.py,,\n")
    (folder / "torch.py").write_text(
        "import types\ncuda = types.SimpleNamespace(get_device_name=lambda: 'NVIDIA H200')\n"
    )
    path = os.pathsep.join(map(str, [folder, ROOT / "tests" / "stand_ins"]))
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def test_the_installed_deep_ep_is_given_as_a_sweep_writes_it(tmp_path: Path) -> None:
    assert library.installed_deep_ep() is None
    asks = (f"from {library.__name__} import installed_deep_ep", "print(installed_deep_ep())")
    assert installed(tmp_path, *asks) == f"{DEEP_EP}\n"


def test_the_documented_example_finds_the_published_config_and_says_exact(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "APPLY.md").read_text()
    (example,) = [part for part in re.findall("```python\n(.*?)```", text, re.DOTALL) if "load_tuned_config" in part]
    code = example.replace("/shared/deepep-library", str(LIBRARY))
    configs = installed(tmp_path, code, "print(dispatch == deep_ep.Config(128, 4, 1024, 6, 128), combine)")
    assert configs.splitlines()[0] == "exact"
    assert configs.splitlines()[1].startswith("True ")


def test_another_routing_is_taken_rather_than_none_and_said(tmp_path: Path) -> None:
    publishing.publish(routed("zipf"), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "routing: requested uniform, entry has zipf"
    assert load_tuned_config(tmp_path, **ASKED, routing="zipf").match == "exact"
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "nearest tokens: requested 4096, entry has 1024"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"schema": "deepep-sweep/library/2"}', "has schema 'deepep-sweep/library/2', this program reads"),
        (b'{"schema": "deepep-sweep/library/1"}', "missing required field `key`"),
    ],
)
def test_a_file_that_is_no_entry_is_left_out_and_named_also_where_nothing_else_fits(
    content: bytes, why: str, tmp_path: Path
) -> None:
    publishing.publish(ANSWER, tmp_path)
    (tmp_path / "other.json").write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"other\.json .*; it is left out$") as warned:
        assert load_tuned_config(tmp_path, **ASKED).match == "exact"
    assert why in str(warned[0].message)
    with pytest.warns(RuntimeWarning), pytest.raises(NotTunedError) as caught:
        load_tuned_config(tmp_path, **ASKED | {"ep": 8})
    assert f"; left out: {tmp_path}/other.json " in str(caught.value)
    assert why in str(caught.value)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {library.__name__}\n"
        "heavy = {'torch', 'deep_ep', 'hydra', 'omegaconf', 'numpy', 'scipy', 'yaml', 'rich', 'bench'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
