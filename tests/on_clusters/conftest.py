"""Tests on real clusters: skipped where the library of the cluster is not installed.

What both must do alike is tested once, on the cluster that ``cluster`` names.  Ray needs some
seconds to start, so there is one session of each for all tests that ask for it.  They are clusters
of our own: nobody attaches to what else runs on the machine.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import pytest
from tests.gates import eventually

LIBRARIES: Final = {"ray": "ray", "dask": "distributed"}
_MISSING: Final = [name for name, library in LIBRARIES.items() if not find_spec(library)]
collect_ignore_glob = [f"test_{name}_*" for name in _MISSING]
if len(_MISSING) == len(LIBRARIES):
    collect_ignore_glob.append("test_cluster_*")

RAY = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
SETTLE_S = 30.0
LONG_S: Final = 180
"""Nothing takes that long; a cluster on a busy machine may take a good part of it: Dask alone
spends half a minute on a worker that has died while somebody asked it for a value."""
LINGER_S: Final = 30.0
"""How long the processes of a cluster may take to notice that their program has ended."""

os.environ["RAY_ADDRESS"] = "local"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DEDUP_LOGS"] = "0"


ON_RAY: Final = pytest.mark.parametrize("_session_on", ["ray"], indirect=True)
"""For what Dask refuses, or does not tell."""


@pytest.fixture(scope="session", params=LIBRARIES)
def _session_on(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    if not find_spec(LIBRARIES[name]):
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    taskloom = import_module("taskloom")
    taskloom.init(name, num_cpus=2, resources={"slot": 4}, **(RAY if name == "ray" else {}))
    yield name
    taskloom.shutdown()


@pytest.fixture
def cluster(_session_on: str) -> Iterator[str]:
    """The name of the cluster that the test runs on, with the session that all tests share."""
    yield _session_on
    running: Any = import_module("taskloom._current").peek().calls.running
    is_over = eventually(lambda: gc.collect() >= 0 and not running, SETTLE_S)
    assert is_over, f"calls that are not over: {list(running.values())}"


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Not here: the library of a cluster keeps threads and descriptors until it ends."""
