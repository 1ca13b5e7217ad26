"""Tests on real clusters: skipped where the library of the cluster is not installed.

Ray needs some seconds to start, so there is one session of it for all modules that ask for
``on_ray``.  It is a Ray of our own: nobody attaches to what else runs on the machine.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("ray") else ["test_ray_*"]

RAY = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": False}
SETTLE_S = 10.0

os.environ["RAY_ADDRESS"] = "local"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DEDUP_LOGS"] = "0"


@pytest.fixture(scope="session")
def _ray_session() -> Iterator[ModuleType]:
    taskloom = import_module("taskloom")
    taskloom.init("ray", resources={"slot": 4}, **RAY)
    yield taskloom
    taskloom.shutdown()


@pytest.fixture
def on_ray(_ray_session: ModuleType) -> Iterator[ModuleType]:
    """taskloom, with the session on Ray that all tests share."""
    yield _ray_session
    running: Any = import_module("taskloom._current").peek().calls.running
    deadline = time.monotonic() + SETTLE_S
    gc.collect()
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running, f"calls that are not over: {list(running.values())}"


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Not here: the library of a cluster keeps threads and descriptors until it ends."""
