"""Keys of earlier versions are constants now."""

from __future__ import annotations

import pytest

from launcher.config.arguments import REMOVED, check_keys
from launcher.errors import UserError
from launcher.validation.judge import fleet, physics, reference
from launcher.validation.measure import tokens

CONSTANTS = {
    "block_iterations": tokens.BLOCK_ITERATIONS,
    "thresholds.dip": physics.DIP,
    "thresholds.fleet_floor": fleet.FLEET_FLOOR,
    "thresholds.fleet_z": fleet.FLEET_Z,
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
