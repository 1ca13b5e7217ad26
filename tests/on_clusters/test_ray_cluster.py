"""A cluster of two nodes, on one machine: both are used, and one may die in the middle."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: the session that the other tests share is Ray's only one in this one.
PROGRAM = """
    import os, sys, time
    import ray
    from ray.cluster_utils import Cluster
    import taskloom

    SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}

    @taskloom.remote(num_cpus=1, max_retries=5)
    def work(n, directory):
        path = os.path.join(directory, str(n))
        open(path, "a").close()
        node = taskloom.get_runtime_context().get_node_id()
        until = time.monotonic() + 100
        while len(os.listdir(directory)) < 2 and time.monotonic() < until:
            time.sleep(0.01)  # two run side by side, so both nodes have one
        time.sleep(0.05)
        return n, node

    @taskloom.remote(num_cpus=0)
    def total(*pairs):
        return sum(n for n, _ in pairs), sorted({node for _, node in pairs})

    @taskloom.remote(num_cpus=1, max_retries=5, resources={"away": 0.1})
    def block():
        return bytes(10**6)

    def main(directory):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
        away = cluster.add_node(num_cpus=1, resources={"away": 1}, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        taskloom.init("ray+gcs://" + cluster.address, connect_timeout=60)
        try:
            assert len([n for n in taskloom.nodes() if n["Alive"]]) == 2, taskloom.nodes()
            first = [work.remote(n, directory) for n in range(8)]
            found, nodes = taskloom.get(total.remote(*first), timeout=120)
            print("first", found, len(nodes))
            lost = block.remote()
            taskloom.wait([lost], timeout=180)
            second = [work.remote(n, directory) for n in range(40)]
            taskloom.wait(second, num_returns=4, timeout=180)
            cluster.remove_node(away, allow_graceful=False)
            cluster.add_node(num_cpus=1, resources={"away": 1}, object_store_memory=100 * 2**20)
            found, nodes = taskloom.get(total.remote(*second), timeout=240)
            print("second", found)
            print("made again", len(taskloom.get(lost, timeout=120)))
        finally:
            taskloom.shutdown()
            cluster.shutdown()

    if __name__ == "__main__":
        main(sys.argv[1])
"""


def test_a_node_that_dies_in_the_middle_changes_no_answer(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    marks = tmp_path / "marks"
    marks.mkdir()
    done = subprocess.run(
        [sys.executable, str(program), str(marks)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("\x1b")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first 28 2" in lines
    assert "second 780" in lines
    assert "made again 1000000" in lines
