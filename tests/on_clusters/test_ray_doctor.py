"""``python -m taskloom doctor --address`` on a Ray that runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tests.on_clusters.conftest import LONG_S


@pytest.mark.parametrize("_session_on", ["ray"], indirect=True)
def test_the_doctor_asks_a_cluster_for_its_nodes_resources_and_versions(cluster):
    import ray

    address = f"ray+gcs://{ray.get_runtime_context().gcs_address}"
    done = subprocess.run(
        [sys.executable, "-m", "taskloom", "doctor", "--address", address],
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"ok +cluster +ray\+gcs://\S+ answered in \d+ ms, 1 nodes",
        r"ok +its resources +CPU 2, .*slot 4",
        r"ok +ray there +\S+, as here",
        r"ok +taskloom there +\S+, as here",
        r"ok +tasks +holds: a coroutine awaits tasks \(\d+ ms\)",
        r"ok +context +refused: memory lists the values of the session \(memory\(\) is not",
        r"ok +rows of the matrix +26 holds, 1 refused; docs/backends.md",
    ):
        assert re.search(rf"^{line}", done.stdout, re.MULTILINE), done.stdout
    assert "Unhandled" not in done.stderr
