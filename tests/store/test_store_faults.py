"""The store when processes die: nothing that was written is lost, nothing unneeded stays."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

PRELUDE = """
import gc, os, signal, sys, time
import numpy as np
import taskloom as tl
MB = 1_000_000
def used():
    return tl.memory().used_bytes + tl.memory().granted_bytes
def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, str(tl.memory())
        time.sleep(0.01)
"""


def ok(result) -> None:
    assert result.returncode == 0, result.stderr
    assert "ok" in result.stdout


def test_a_view_outlives_the_session(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
tl.init(num_cpus=1)
array = tl.get(tl.put(np.arange(MB)))
@tl.remote
def make():
    return np.full(MB, 3)
other = tl.get(make.remote())
tl.shutdown()
assert array[-1] == MB - 1 and other.sum() == 3 * MB
tl.init(num_cpus=1)
third = tl.get(tl.put(np.ones(MB)))
assert array[-1] == MB - 1 and other.sum() == 3 * MB and third.sum() == MB
print("ok")
"""
        )
    )


def test_a_worker_killed_while_it_writes_leaves_no_space_behind(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
tl.init(num_cpus=1)
@tl.remote(max_retries=2)
def make(path):
    from taskloom._store.arena import Arena
    write = Arena.write
    def half(self, offset, pieces, *, fresh):
        write(self, offset, [memoryview(p)[:len(p) // 2] for p in pieces], fresh=fresh)
        os.kill(os.getpid(), signal.SIGKILL)
    if not os.path.exists(path):
        open(path, "w").close()
        Arena.write = half
    return np.ones(8 * MB)
assert tl.get(make.remote("died")).sum() == 8 * MB
eventually(lambda: gc.collect() >= 0 and tl.memory().used_bytes == 0)
assert tl.memory().granted_bytes < 1 * MB
print("ok")
"""
        )
    )


def test_what_a_dead_worker_viewed_is_free(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
tl.init(num_cpus=1)
@tl.remote(max_retries=0)
def die(array):
    os.kill(os.getpid(), signal.SIGKILL)
for _ in range(3):
    try:
        tl.get(die.remote(np.ones(MB)))
    except tl.exceptions.WorkerCrashedError:
        pass
    else:
        raise AssertionError
eventually(lambda: gc.collect() >= 0 and used() == 0)
print("ok")
"""
        )
    )


def test_a_worker_killed_at_random_while_values_go_round_loses_none(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import random, threading
tl.init(num_cpus=2)
@tl.remote(max_retries=-1)
def turn(array, number):
    return array + number
@tl.remote
def pid():
    return os.getpid()
stop = threading.Event()
def killer():
    while not stop.wait(0.15):
        try:
            os.kill(tl.get(pid.remote()), signal.SIGKILL)
        except ProcessLookupError:
            pass
thread = threading.Thread(target=killer)
thread.start()
for round in range(8):
    first = tl.put(np.full(200_000, round))
    refs = [turn.remote(turn.remote(first, n), n) for n in range(8)]
    for n, array in enumerate(tl.get(refs)):
        assert (array == round + 2 * n).all()
    del array
stop.set(); thread.join()
del refs, first
eventually(lambda: gc.collect() >= 0 and tl.memory().used_bytes == 0)
print("ok")
"""
        )
    )


def test_a_thousand_large_objects_need_no_descriptor_each(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
tl.init(num_cpus=1, object_store_memory=200 * MB)
tl.get(tl.remote(len).remote("the worker is there"))
before = len(os.listdir("/proc/self/fd"))
refs = [tl.put(np.full(110_000, n % 250, np.uint8)) for n in range(1000)]
views = tl.get(refs)
assert all((view == n % 250).all() for n, view in enumerate(views))
assert len(os.listdir("/proc/self/fd")) <= before + 2
print("ok")
"""
        )
    )


def test_refs_dropped_by_many_threads_while_the_collector_runs_do_not_deadlock(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import threading
tl.init(num_cpus=1)
gc.set_threshold(1)
class Node:
    pass
def churn():
    for _ in range(40):
        node = Node()
        node.me, node.ref = node, tl.put(np.ones(20_000))
        node.view = tl.get(node.ref)
threads = [threading.Thread(target=churn) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
gc.set_threshold(700)
# Again and again: it does nothing while another thread collects.
eventually(lambda: gc.collect() >= 0 and used() == 0)
print("ok")
"""
        )
    )


def test_a_killed_session_s_files_are_removed_by_the_next(run_driver, tmp_path):
    spill = (
        PRELUDE
        + """
tl.init(num_cpus=1, object_store_memory=10 * MB, object_spilling_directory=sys.argv[1])
refs = [tl.put(np.ones(2 * MB, np.uint8)) for _ in range(20)]
assert os.listdir(sys.argv[1])
"""
    )
    killed = run_driver(spill + "os.kill(os.getpid(), 9)", args=[str(tmp_path)])
    assert killed.returncode == -9
    assert os.listdir(tmp_path)
    ok(
        run_driver(
            PRELUDE
            + """
tl.init(num_cpus=1, object_spilling_directory=sys.argv[1])
eventually(lambda: not os.listdir(sys.argv[1]))
print("ok")
""",
            args=[str(tmp_path)],
        )
    )


def in_a_namespace(inner: str, command: str) -> str:
    """A program that runs ``inner`` where it may mount file systems of its own."""
    probe = ["unshare", "-Urm", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    return f"""
import subprocess, sys
open("inner.py", "w").write({inner!r})
command = {command!r} + " && exec " + sys.executable + " inner.py"
sys.exit(subprocess.run(["unshare", "-Urm", "sh", "-c", command]).returncode)
"""


def test_a_shared_memory_file_system_of_one_megabyte_is_no_limit(run_driver):
    inner = (
        PRELUDE
        + """
tl.init(num_cpus=1)
@tl.remote
def double(array):
    return array * 2
assert tl.get(double.remote(np.ones(5 * MB))).sum() == 10 * MB
print("ok")
"""
    )
    ok(run_driver(in_a_namespace(inner, "mount -t tmpfs -o size=1m none /dev/shm")))


def test_a_full_file_system_for_spilling_is_an_error_and_no_signal(run_driver):
    inner = (
        PRELUDE
        + """
tl.init(num_cpus=1, object_store_memory=10 * MB, object_spilling_directory="small")
refs = []
try:
    for _ in range(20):
        refs.append(tl.put(np.full(2 * MB, len(refs), np.uint8)))
except tl.exceptions.OutOfDiskError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("there was room")
assert all((tl.get(ref) == n).all() for n, ref in enumerate(refs))
print("ok")
"""
    )
    ok(run_driver(in_a_namespace(inner, "mkdir small && mount -t tmpfs -o size=1m none small")))


def test_a_limit_on_the_size_of_files_makes_a_small_store_and_no_signal(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (30 * MB, 30 * MB))
tl.init(num_cpus=1)
assert tl.memory().capacity_bytes <= 30 * MB
assert tl.get(tl.put(np.ones(MB))).sum() == MB
try:
    tl.put(np.ones(10 * MB))
except tl.exceptions.ObjectStoreFullError:
    print("ok")
"""
        )
    )


def test_an_interrupt_while_a_task_writes_its_result_leaves_no_space_behind(run_driver):
    ok(
        run_driver(
            PRELUDE
            + """
import random
tl.init(num_cpus=2)
@tl.remote
def make():
    ref = tl.put(np.ones(MB))
    return [ref, np.ones(MB)]
for n in range(60):
    refs = [make.remote() for _ in range(4)]
    time.sleep(random.random() * 0.02)
    for ref in refs:
        tl.cancel(ref)
    for ref in refs:
        try:
            tl.get(ref)
        except tl.exceptions.TaskCancelledError:
            pass
del ref, refs
eventually(lambda: gc.collect() >= 0 and tl.memory().used_bytes == 0)
granted = tl.memory().granted_bytes
assert granted <= 10 * 32 * MB, granted  # some for each worker, however many were interrupted
print("ok")
""",
            timeout=60,
        )
    )
