"""Fixtures for the tests of node validation."""

from __future__ import annotations

import pytest

from launcher.validation.config import Spec
from tests import nodes


@pytest.fixture(scope="session")
def spec() -> Spec:
    """Four H200s, DeepEP, the thresholds as they stand in the configuration."""
    return nodes.spec()
