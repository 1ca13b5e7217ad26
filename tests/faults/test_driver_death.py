"""However a driver ends, nothing is left: no process, no file (FAULTS.md rows 21-32, P5).

One program per way to end has a worker in each state; a test fails for the states whose
processes are left.  ``make chaos`` does the same two hundred times, one state at a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.faults.deaths import PATH
from tests.faults.drivers import CODES, ENDS, STATES, is_alive, start
from tests.gates import eventually

LIMIT_S = 20.0
"""The promise is 2 s, which a test can only ask for on a machine that does nothing else."""


KILLED_AT_ITS_START = """
import taskloom as tl
print("up", flush=True)
tl.init(num_cpus=2)
tl.get([tl.remote(abs).remote(1) for _ in range(99)])
"""


@pytest.fixture(scope="module")
def endings(tmp_path_factory) -> Callable[[str], tuple[int, float]]:
    @cache
    def run(end: str) -> tuple[int, float]:
        driver = start(tmp_path_factory.mktemp("driver"), STATES, end)
        try:
            seconds = driver.end(LIMIT_S)
        finally:
            driver.close()
        return driver.process.returncode, seconds

    return run


@pytest.mark.parametrize("end", ENDS)
def test_nothing_outlives_a_driver_whatever_its_workers_do_FAULTS_21_to_30(endings, end):
    code, _seconds = endings(end)

    assert code == CODES[end], "the program ends as it would without us"


def test_a_driver_that_ends_while_a_module_is_preloaded_leaves_nothing(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nos.rename('pid', 'there')\n"
        "time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c",
         "import taskloom as tl, time; tl.init(preload=['slow']); time.sleep(1000)"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"},
        cwd=tmp_path,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert eventually((tmp_path / "there").exists)
        zygote = int((tmp_path / "there").read_text())
        assert is_alive(zygote)
    finally:
        process.kill()
        process.wait()

    assert eventually(lambda: not is_alive(zygote), LIMIT_S)


@pytest.mark.parametrize("when", range(6))
def test_a_driver_that_is_killed_while_it_starts_leaves_nothing(tmp_path, when):
    """At some moment of ``init``, the start of the zygote and the first workers."""
    from tests.conftest import RUN_TAG, TAG, tagged_processes

    tag = f"{RUN_TAG}/start-{tmp_path.name}-{when}"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_AT_ITS_START],
        env={**os.environ, "PYTHONPATH": PATH, TAG: tag},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(when * 0.03)  # not to wait for something: to be in the middle of it
    process.kill()
    process.wait()
    process.stdout.close()

    assert eventually(lambda: not tagged_processes(tag), LIMIT_S)


def test_a_process_forked_in_c_keeps_no_worker_alive(tmp_path):
    """It has copies of all descriptors, and no hook of ours has run in it."""
    driver_py = tmp_path / "driver.py"
    driver_py.write_text("""
import ctypes, os, signal, sys, time
import taskloom as ray
from tests.gates import Gate
gate = Gate(os.getcwd())

@ray.remote
def stay():
    gate.note("worker")
    time.sleep(1000)

ray.init(num_cpus=1)
ref = stay.remote()
gate.wait_for("worker")
libc = ctypes.CDLL(None)
pid = libc.fork()  # not os.fork: Python does not hear of it
if not pid:
    libc.sleep(1000)
    libc._exit(0)
gate.note(f"fork-{pid}")
os.kill(os.getpid(), signal.SIGKILL)
""")
    subprocess.run(
        [sys.executable, str(driver_py)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": PATH}
    )
    (mark,) = tmp_path.glob("fork-*.marks")
    child = int(mark.name.removeprefix("fork-").removesuffix(".marks"))
    worker = int((tmp_path / "worker.marks").read_text())
    try:
        assert eventually(lambda: not is_alive(worker), LIMIT_S)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "os._exit"])
def test_a_driver_whose_own_output_is_blocked_leaves_nothing(tmp_path, end):
    (tmp_path / "driver.py").write_text(f"""
import faulthandler, os, signal, sys, time
import taskloom as ray
from tests.faults.drivers import ENDS
from tests.gates import Gate
gate = Gate(os.getcwd())

@ray.remote(max_retries=0)
def flood():
    gate.note("worker")
    for n in range(100):
        print("x" * 60_000)
    gate.note("flooded")
    time.sleep(1000)

ray.init(num_cpus=1)
ref = flood.remote()
gate.wait_for("worker")
time.sleep(0.3)
exec(ENDS[{end!r}])
""")
    ours, theirs = os.pipe()  # nobody reads it
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")],
        stdout=theirs,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        process.wait(60)
        worker = int((Path(tmp_path) / "worker.marks").read_text())
        assert eventually(lambda: not is_alive(worker), LIMIT_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("count", [2, 10])
def test_many_interrupts_during_shutdown_end_the_program_FAULTS_29(tmp_path, count):
    (tmp_path / "driver.py").write_text("""
import os, sys, time
import taskloom as ray
from tests.gates import Gate
gate = Gate(os.getcwd())

@ray.remote
def stay():
    gate.note("worker")
    while True:
        try: time.sleep(1000)
        except BaseException: pass

ray.init(num_cpus=1)
ref = stay.remote()
gate.wait_for("worker")
gate.note("ready")
ray.shutdown()
""")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")],
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
        start_new_session=True,
    )
    try:
        assert eventually((tmp_path / "ready.marks").exists)
        for _ in range(count):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        process.wait(LIMIT_S)
        worker = int((tmp_path / "worker.marks").read_text())
        assert eventually(lambda: not is_alive(worker), LIMIT_S)
    finally:
        process.kill()
        process.wait()
