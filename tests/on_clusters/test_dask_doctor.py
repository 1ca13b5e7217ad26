"""``python -m taskloom doctor --address`` on a Dask that runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from taskloom import _current


@pytest.mark.parametrize("_session_on", ["dask"], indirect=True)
def test_the_doctor_tries_the_rows_of_the_matrix_and_leaves_nothing_behind(cluster):
    address = _current.peek().driver.client.scheduler.address.replace("tcp://", "dask://")
    done = subprocess.run(
        [sys.executable, "-m", "taskloom", "doctor", "--address", address],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"ok +streams +holds: async generators stream \(\d+ ms\)",
        r"ok +actors +refused: kill may restart \(.*max_restarts",
        r"ok +rows of the matrix +25 holds, 2 refused; docs/backends.md",
    ):
        assert re.search(rf"^{line}", done.stdout, re.MULTILINE), done.stdout
    assert done.stderr == ""
