"""The README's programs as they stand there: only the environment says where they run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from tests.on_clusters.conftest import LIBRARIES, LINGER_S, LONG_S
from tests.test_readme import PYTHON


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line {block.line}")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_program_in_the_readme_runs_unchanged(name, block, run_driver):
    if not find_spec(LIBRARIES[name]):
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    if block.not_run:
        pytest.skip(block.not_run)
    local = run_driver(block.text, timeout=LONG_S)
    env = {"TASKLOOM_ADDRESS": name}
    there = run_driver(block.text, timeout=LONG_S, env=env, linger_s=LINGER_S)
    assert (there.returncode, there.stdout) == (0, local.stdout), there.stderr
