"""Loading a config from a library of tuned configs."""

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
from tests.deploy.tuned_results import DEEP_EP, LIBRARY, LOOKUP, TUNED, changed, replace, routed


def with_tokens(num_tokens: int, *, deep_ep: str = DEEP_EP) -> TunedResults:
    """The tuned results for another number of tokens or another deep_ep."""
    return changed(results={"workload": replace(TUNED.workload, num_tokens=num_tokens)}, version=deep_ep)


def test_the_exact_key_is_found_and_the_match_is_reported(tmp_path: Path) -> None:
    publishing.publish(TUNED, tmp_path)
    loaded = load_tuned_config(tmp_path, **LOOKUP)
    assert loaded.match == "exact"
    assert list(loaded.dispatch.values()) == [128, 8, 128, 6, 128]
    assert list(loaded.combine.values()) == [128, 14, 256, 6, 128]
    assert loaded.entry.key == Key(**LOOKUP)
    assert loaded.file.parent == tmp_path


def test_each_pick_of_a_run_can_be_loaded(tmp_path: Path) -> None:
    publishing.publish(TUNED, tmp_path)
    for name, pair in TUNED.picks.items():
        loaded = load_tuned_config(tmp_path, **LOOKUP, pick=name)
        assert {"dispatch": loaded.dispatch, "combine": loaded.combine} == tuned.configs(pair)
    with pytest.raises(NotTunedError):
        load_tuned_config(tmp_path, **LOOKUP, pick="slowest")


@given(st.sets(st.integers(1, 20_000), min_size=1, max_size=6), st.integers(1, 20_000))
@example({4096, 1024}, 3000)
def test_the_nearest_tokens_by_ratio_are_found_and_reported(
    tmp_path_factory: pytest.TempPathFactory, filed: set[int], asked: int
) -> None:
    folder = tmp_path_factory.mktemp("library")
    for num_tokens in filed:
        publishing.publish(with_tokens(num_tokens), folder)
    loaded = load_tuned_config(folder, **LOOKUP | {"num_tokens": asked})
    tokens = loaded.entry.key.num_tokens
    assert abs(math.log(asked / tokens)) == min(abs(math.log(asked / one)) for one in filed)
    assert loaded.match == ("exact" if asked == tokens else f"nearest tokens: requested {asked}, entry has {tokens}")


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
def test_only_tokens_and_the_version_may_differ_from_the_key(other: dict[str, Any], tmp_path: Path) -> None:
    publishing.publish(TUNED, tmp_path)
    with pytest.raises(
        NotTunedError, match=f"; {tmp_path} has NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tok"
    ):
        load_tuned_config(tmp_path, **LOOKUP | other)


def test_an_empty_or_absent_library_is_reported(tmp_path: Path) -> None:
    message = "no tuned config for NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tokens, bf16 (fastest)"
    for folder, reason in (
        (tmp_path, f"; {tmp_path} has nothing"),
        (tmp_path / "no", f": there is no folder {tmp_path}/no"),
    ):
        with pytest.raises(NotTunedError) as caught:
            load_tuned_config(folder, **LOOKUP)
        assert str(caught.value) == message + reason


def test_the_same_deep_ep_outranks_nearer_tokens_and_another_deep_ep_is_reported(tmp_path: Path) -> None:
    publishing.publish(with_tokens(4096, deep_ep="deep_ep 1.1"), tmp_path)
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **LOOKUP).match == "nearest tokens: requested 4096, entry has 1024"
    other = load_tuned_config(tmp_path, **LOOKUP | {"deep_ep": "deep_ep 1.3"})
    assert other.match == "deep_ep: requested deep_ep 1.3, entry has deep_ep 1.1"
    unasked = load_tuned_config(tmp_path, **LOOKUP | {"deep_ep": None, "num_tokens": 1000})
    assert unasked.match == "nearest tokens: requested 1000, entry has 1024"


@pytest.mark.parametrize("deep_ep", [None, DEEP_EP, "1.2.1.post20251110"])
def test_no_version_and_a_version_without_its_distribution_match_exactly(deep_ep: str | None, tmp_path: Path) -> None:
    publishing.publish(TUNED, tmp_path)
    assert load_tuned_config(tmp_path, **LOOKUP | {"deep_ep": deep_ep}).match == "exact"
    for other in ("1.2.1", "tokenspeed-deepep"):
        loaded = load_tuned_config(tmp_path, **LOOKUP | {"deep_ep": other})
        assert loaded.match == f"deep_ep: requested {other}, entry has {DEEP_EP}"


def installed(folder: Path, *lines: str) -> str:
    """The output of a process with an installed distribution that provides deep_ep."""
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


def test_the_documented_example_finds_the_published_config_with_an_exact_match(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "APPLY.md").read_text()
    (example,) = [part for part in re.findall("```python\n(.*?)```", text, re.DOTALL) if "load_tuned_config" in part]
    code = example.replace("/shared/deepep-library", str(LIBRARY))
    configs = installed(tmp_path, code, "print(dispatch == deep_ep.Config(128, 4, 256, 6, 128), combine)")
    assert configs.splitlines()[0] == "exact"
    assert configs.splitlines()[1].startswith("True ")


def test_another_routing_is_preferred_to_no_config_and_reported(tmp_path: Path) -> None:
    publishing.publish(routed("zipf"), tmp_path)
    assert load_tuned_config(tmp_path, **LOOKUP).match == "routing: requested uniform, entry has zipf"
    assert load_tuned_config(tmp_path, **LOOKUP, routing="zipf").match == "exact"
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **LOOKUP).match == "nearest tokens: requested 4096, entry has 1024"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"schema": "deepep-sweep/library/2"}', "has schema 'deepep-sweep/library/2', this program reads"),
        (b'{"schema": "deepep-sweep/library/1"}', "missing required field `key`"),
    ],
)
def test_a_file_that_is_not_an_entry_is_left_out_and_named_even_where_nothing_else_matches(
    content: bytes, why: str, tmp_path: Path
) -> None:
    publishing.publish(TUNED, tmp_path)
    (tmp_path / "other.json").write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"other\.json .*; it is left out$") as warned:
        assert load_tuned_config(tmp_path, **LOOKUP).match == "exact"
    assert why in str(warned[0].message)
    with pytest.warns(RuntimeWarning), pytest.raises(NotTunedError) as caught:
        load_tuned_config(tmp_path, **LOOKUP | {"ep": 8})
    assert f"; left out: {tmp_path}/other.json " in str(caught.value)
    assert why in str(caught.value)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {library.__name__}\n"
        "heavy = {'torch', 'deep_ep', 'hydra', 'omegaconf', 'numpy', 'scipy', 'yaml', 'rich', 'bench'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
