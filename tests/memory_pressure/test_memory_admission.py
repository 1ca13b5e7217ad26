"""``memory=`` as admission: tasks that together ask for more than there is do not run together."""

from __future__ import annotations

import os

import pytest
from tests.gates import Gate, eventually

MIB = 1 << 20
SESSION = {"num_cpus": 4, "_memory": 100 * MIB}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_tasks_that_together_ask_for_too_much_run_one_after_the_other(tl, gate):
    enter = tl.remote(memory=60 * MIB)(gate.enter)
    refs = [enter.remote() for _ in range(3)]
    small = tl.remote(memory=40 * MIB)(lambda: "small").remote()
    gate.wait_for()
    assert tl.get(small) == "small", "what is left is enough for it"
    assert gate.count() == 1
    assert tl.available_resources()["memory"] == 40 * MIB
    gate.open()
    tl.get(refs)
    assert eventually(lambda: tl.available_resources()["memory"] == 100 * MIB)


@pytest.mark.parametrize("memory", [100 * MIB + 1, 10**15])
def test_what_can_never_fit_fails_at_once_and_says_what_there_is(tl, memory):
    ref = tl.remote(memory=memory)(lambda: None).remote()
    with pytest.raises(tl.exceptions.TaskUnschedulableError) as caught:
        tl.get(ref, timeout=20)
    assert "'memory'" in str(caught.value)
    assert str(float(100 * MIB)) in str(caught.value)


def test_all_of_it_fits(tl):
    assert tl.get(tl.remote(memory=100 * MIB)(lambda: "ran").remote()) == "ran"


def test_a_task_that_waits_for_another_keeps_its_memory(tl, gate):
    @tl.remote(memory=70 * MIB)
    def outer():
        import taskloom

        return taskloom.get(taskloom.remote(num_cpus=1)(gate.enter).remote())

    ref = outer.remote()
    gate.wait_for()
    assert tl.available_resources()["memory"] == 30 * MIB, "it is still in use"
    gate.open()
    tl.get(ref)


def test_the_memory_of_a_dead_worker_comes_back(tl):
    die = tl.remote(memory=90 * MIB, max_retries=1)(os._exit)
    with pytest.raises(tl.exceptions.WorkerCrashedError):
        tl.get(die.remote(3), timeout=20)
    assert eventually(lambda: tl.available_resources()["memory"] == 100 * MIB)


def test_coroutines_may_ask_for_memory_too(tl):
    async def f():
        return "coroutine"

    assert tl.get(tl.remote(memory=60 * MIB)(f).remote()) == "coroutine"
    with pytest.raises(tl.exceptions.TaskUnschedulableError):
        tl.get(tl.remote(memory=200 * MIB)(f).remote(), timeout=20)


def test_a_memory_error_is_the_error_of_its_task_alone_FAULTS_18(tl):
    @tl.remote
    def greedy():
        import resource

        limits = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 200 * MIB, limits[1]))
        try:
            return len(bytearray(1 << 30))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    with pytest.raises(MemoryError):
        tl.get(greedy.remote(), timeout=20)
    assert tl.get([tl.remote(abs).remote(-n) for n in range(10)]) == list(range(10))


def test_what_a_task_does_to_its_process_does_not_stop_the_next_ones_FAULTS_19(tl):
    @tl.remote
    def spoil(how):
        import os
        import signal
        import sys
        import tempfile

        if how == "directory":
            with tempfile.TemporaryDirectory() as name:
                os.chdir(name)
        elif how == "environment":
            os.environ.clear()
        elif how == "signals":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        elif how == "handlers":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
        elif how == "streams":
            sys.stdout = sys.stderr = None
        elif how == "recursion":
            sys.setrecursionlimit(150)
        elif how == "path":
            sys.path.clear()
        elif how == "umask":
            os.umask(0o777)
        return how

    ways = ("directory", "environment", "signals", "handlers", "streams", "recursion", "path")
    for how in (*ways, "umask"):
        assert tl.get([spoil.remote(how) for _ in range(4)], timeout=20) == [how] * 4
        values = tl.get([tl.remote(abs).remote(-n) for n in range(20)], timeout=20)
        assert values == list(range(20)), how
    tl.shutdown()  # the workers are spoilt: the next test gets others
