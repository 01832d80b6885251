"""Fixtures for the tests of node validation."""

from __future__ import annotations

import pytest

from launcher.validation.config import Spec
from tests import nodes


@pytest.fixture(scope="session")
def spec() -> Spec:
    """The Spec of four H200s with DeepEP and the configured thresholds."""
    return nodes.spec()
