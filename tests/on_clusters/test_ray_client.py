"""A program outside of the cluster: ``ray://``, against a client server that is really there."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Ray starts the server that its client talks to as a process; here it is one of our own, so that
# it is gone with the test.
PROGRAM = """
    import asyncio, socket, subprocess, sys, time
    import numpy, ray, taskloom

    @taskloom.remote
    def add(a, b=1):
        return a + b

    @taskloom.remote
    def total(count):
        return sum(taskloom.get([add.remote(n) for n in range(count)]))

    @taskloom.remote
    async def later(value):
        await asyncio.sleep(0.01)
        return value

    @taskloom.remote
    def fail():
        raise KeyError("gone")

    @taskloom.remote
    def items():
        yield 1

    @taskloom.remote
    class Counter:
        def __init__(self):
            self.count = 0

        def up(self):
            self.count += 1
            return self.count

    async def awaited():
        return await add.remote(1), await asyncio.gather(*[later.remote(n) for n in range(5)])

    def main(gcs):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "ray.util.client.server", "--host", "127.0.0.1",
             "--port", str(port), "--mode", "specific-server", "--address", gcs],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
                time.sleep(0.1)
            taskloom.init(f"ray://127.0.0.1:{port}", connect_timeout=60)
            print("sum", taskloom.get(add.remote(add.remote(1), add.remote(2))))
            print("nested", taskloom.get(total.remote(10)))
            print("awaited", asyncio.run(awaited()))
            counter = Counter.remote()
            print("actor", [taskloom.get(counter.up.remote()) for _ in range(3)])
            large = taskloom.put(numpy.arange(10**6))
            print("large", int(taskloom.get(add.remote(large)).sum()))
            print("many", sum(taskloom.get([add.remote(n) for n in range(1000)])))
            try:
                taskloom.get(fail.remote())
            except KeyError as error:
                print("error", "gone" in str(error))
            try:
                items.remote()
            except NotImplementedError as error:
                print("refused", "ray+gcs://" in str(error))
            slow = taskloom.remote(time.sleep).remote(1000)
            taskloom.cancel(slow)
            try:
                taskloom.get(slow, timeout=180)
            except taskloom.exceptions.TaskCancelledError:
                print("cancelled")
            taskloom.shutdown()
        finally:
            server.terminate()
            server.wait()

    if __name__ == "__main__":
        from ray.cluster_utils import Cluster
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **small})
        try:
            main(cluster.address)
        finally:
            cluster.shutdown()
"""


def test_a_program_of_all_kinds_of_calls_runs_through_the_client(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("\x1b")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines == [
        "sum 5",
        "nested 55",
        "awaited (2, [0, 1, 2, 3, 4])",
        "actor [1, 2, 3]",
        "large 500000500000",
        "many 500500",
        "error True",
        "refused True",
        "cancelled",
    ]
