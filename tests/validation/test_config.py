"""Keys of earlier versions are constants now; a validation measures one library."""

from __future__ import annotations

import pytest

from bench.backends import BACKENDS
from launcher.config.arguments import REMOVED, check_keys
from launcher.config.compose import compose
from launcher.errors import UserError
from launcher.validation import config
from launcher.validation.judge import outliers, physics, reference
from launcher.validation.measure import tokens
from launcher.validation.run import resolve

CONSTANTS = {
    "block_iterations": tokens.BLOCK_ITERATIONS,
    "thresholds.dip": physics.DIP,
    "thresholds.fleet_floor": outliers.FLEET_FLOOR,
    "thresholds.fleet_z": outliers.FLEET_Z,
    "thresholds.shape": list(reference.TAIL),
}


@pytest.mark.parametrize("key", CONSTANTS)
def test_a_removed_key_is_refused_with_the_value_of_its_constant(key: str):
    assert REMOVED[key] == f"it is fixed at {CONSTANTS[key]}".replace(", ", ",")
    with pytest.raises(UserError) as refusal:
        check_keys([f"++{key}=1"])
    assert str(refusal.value) == f"{key} is no longer a key ({REMOVED[key]})"


def test_every_removed_threshold_is_tested():
    assert {key for key in REMOVED if key.startswith("thresholds.")} <= set(CONSTANTS)


def spec_of(*overrides: str) -> config.Spec:
    """The Spec of other nodes."""
    config.register()
    values, _ = config.from_config(compose("validate", ["hardware=h200", *overrides]))
    return resolve.for_jobs(values)


@pytest.mark.parametrize("name", ["auto", "all"])
def test_a_validation_takes_the_first_library_that_is_installed_here_or_else_deepep_v1(name: str):
    libraries = [one for one in BACKENDS.values() if not one.is_baseline]
    installed = [one.name for one in libraries if not any(problem.absent for problem in one.problems())]
    assert spec_of(f"backend={name}").backend == [*installed, "deepep"][0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_validation_can_name_any_library_and_takes_its_default(backend: str):
    configs = spec_of(f"backend={backend}").configs
    assert {len(config) for config in configs.values()} == {len(BACKENDS[backend].knobs)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["backend.name=[deepep,nccl_ep]"],
            "backend must be one of all, auto, deepep, deepep_v2, nccl_ep, alltoall, allgather, "
            "got ['deepep', 'nccl_ep']",
        ),
        (
            ["backend.name=deepeq"],
            "backend must be one of all, auto, deepep, deepep_v2, nccl_ep, alltoall, allgather, got deepeq",
        ),
        (
            ["backend=deepep_v2", "workload.num_topk=300"],
            "workload.num_topk must lie in 1..256 (workload.num_experts), got 300",
        ),
        (
            ["backend=deepep_v2", "workload=gpt_oss_120b"],
            "workload.hidden must be a multiple of 256 (DeepEP V2's combine), got 2880",
        ),
    ],
)
def test_several_libraries_and_what_the_library_cannot_run_are_refused_in_one_line(overrides: list[str], message: str):
    with pytest.raises(UserError) as caught:
        spec_of(*overrides)
    assert str(caught.value) == message
