"""A loom by itself: see ``loom_driver``."""

from __future__ import annotations

import pytest
from loom_driver import Core


@pytest.fixture
def core() -> Core:
    """A loom with more of everything than a test needs: only the graph decides."""
    return Core()
