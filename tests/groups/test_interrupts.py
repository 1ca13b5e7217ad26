"""Ctrl-C while the driver waits: the wait ends, the session does not (rows 27 and 28)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

START = """
import asyncio, os, signal, sys, threading
sys.path.insert(0, sys.argv[2])
import taskloom
from tests.gates import Gate

gate = Gate(sys.argv[1])

@taskloom.remote
def stay():
    gate.enter("stay")
    return "went on"

def press():
    gate.wait_for("stay")
    for _ in range(50):     # give the main thread time to fall asleep; what it waits for is held
        os.sched_yield()
    threading.Event().wait(0.2)
    os.killpg(0, signal.SIGINT)

taskloom.init(num_cpus=2)
ref = stay.remote()
threading.Thread(target=press).start()
"""

END = """
print(taskloom.get(taskloom.remote(lambda: "usable").remote()))
gate.open()
print(taskloom.get(ref))
taskloom.shutdown()
"""

WAITS = {
    "get": "taskloom.get(ref)",
    "get of many": "taskloom.get([ref, taskloom.put(1)])",
    "get with a time limit": "taskloom.get(ref, timeout=60)",
    "wait": "taskloom.wait([ref])",
    "as_completed": "list(taskloom.as_completed([ref]))",
    "future": "ref.future().result()",
}


@pytest.mark.parametrize("waiting", WAITS.values(), ids=WAITS)
def test_ctrl_c_ends_a_blocking_wait_and_nothing_else(waiting, run_driver, tmp_path):
    script = f"""{START}
try:
    {waiting}
except KeyboardInterrupt:
    print("interrupted")
{END}"""
    done = run_driver(script, args=[str(tmp_path), os.getcwd()])
    assert done.stdout.split() == ["interrupted", "usable", "went", "on"], done.stderr
    assert "Traceback" not in done.stderr  # no worker has anything to say about it


def test_ctrl_c_under_asyncio_run_cancels_the_main_task(run_driver, tmp_path):
    script = f"""{START}
async def main():
    try:
        await ref
    except asyncio.CancelledError:
        print("cancelled")
        raise

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
{END}"""
    done = run_driver(script, args=[str(tmp_path), os.getcwd()])
    assert done.stdout.split() == ["cancelled", "interrupted", "usable", "went", "on"], done.stderr


def test_ctrl_c_twice(run_driver, tmp_path):
    script = f"""{START}
for _ in range(2):
    try:
        taskloom.get(ref)
    except KeyboardInterrupt:
        print("interrupted")
        threading.Thread(target=press).start() if _ == 0 else None
{END}"""
    done = run_driver(script, args=[str(tmp_path), os.getcwd()])
    assert done.stdout.split() == ["interrupted"] * 2 + ["usable", "went", "on"], done.stderr


def test_the_interrupt_leaves_no_waiter_behind(run_driver, tmp_path):
    script = f"""{START}
try:
    taskloom.get(ref)
except KeyboardInterrupt:
    backend = taskloom._current.peek()
    print(backend._portal.call(lambda: len(ref._record.waiters or ())))
{END}"""
    done = run_driver(script, args=[str(tmp_path), os.getcwd()])
    assert done.stdout.split() == ["0", "usable", "went", "on"], done.stderr
    assert Path(tmp_path, "open").exists()
