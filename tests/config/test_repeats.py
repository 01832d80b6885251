"""repeat=N on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import api, resume
from launcher.config.planning import make
from launcher.store.run_folder import RunFolder
from tests.builders import spec

ON_H200 = ("hardware=h200", "backend=deepep")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["repeat=0"], "repeat must be at least 1, got 0"),
        (["repeat=-1"], "repeat must be at least 1, got -1"),
        (["repeat=abc"], "repeat=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        (
            ["repeat=2", "search.final_groups=0"],
            "repeat=2 needs a final to repeat, and this sweep has none: search.final_groups is 0",
        ),
        (
            ["repeat=2", "ep.share_gpus=true"],
            "repeat=2 needs a final to repeat, and this sweep has none: ranks share a GPU",
        ),
        (["repeat=2", "shard.index=0"], "repeat=2 needs the final, which shard.index=0 leaves out"),
    ],
)
def test_repeats_that_cannot_be_are_refused_in_one_line_with_a_hint(overrides: list[str], message: str) -> None:
    with pytest.raises(api.Error) as error:
        api.plan(*ON_H200, *overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint


def test_repeats_are_planned_and_are_no_part_of_the_plan_s_id() -> None:
    with_repeats, without = api.plan(*ON_H200, "repeat=12"), api.plan(*ON_H200)
    assert (with_repeats.repeats, without.repeats) == (12, 0)
    assert with_repeats.id == without.id
    assert with_repeats.expected_s(-1) > without.expected_s(-1)


def test_a_run_is_not_resumed_on_another_kind_of_machine(
    no_gpus: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in no_gpus.items():
        monkeypatch.setenv(name, value)
    command = ["deepep-sweep", "-m", *ON_H200]
    folder = RunFolder.create(make(spec()), outputs=tmp_path, path=tmp_path / "run", command=command)
    before = folder.plan_file.read_bytes()
    assert resume.main([str(folder.path), "repeat=2"]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder.path} was measured on h200, and this machine is cpu: their times do not mix\n"
        "hint: resume it on a machine of that kind; hydra/launcher=submitit_slurm gets one from Slurm\n"
    )
    assert folder.plan_file.read_bytes() == before
