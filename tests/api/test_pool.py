"""How many workers there are: growth with demand, the end of idle ones, preloading."""

from __future__ import annotations

import os
import signal
from types import ModuleType

import psutil
import pytest
from tests.gates import Gate, eventually


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes() -> int:
    return len(psutil.Process().children(recursive=True))


def test_the_pool_grows_with_demand_up_to_the_cpus(fresh: ModuleType, gate):
    fresh.init(num_cpus=4)
    refs = [fresh.remote(gate.enter).remote() for _ in range(6)]
    first = gate.wait_for(count=4)
    assert fresh.get(fresh.remote(num_cpus=0)(lambda: 1).remote()) == 1
    assert gate.count() == 4
    gate.open()
    fresh.get(refs)

    assert len(set(first)) == 4


def test_a_session_with_many_cpus_does_not_start_workers_nobody_needs(fresh):
    fresh.init(num_cpus=64)
    f = fresh.remote(lambda x: x)
    for n in range(20):
        assert fresh.get(f.remote(n)) == n

    assert processes() <= 1 + 2  # the zygote and the first workers


def test_idle_workers_end_and_come_back_with_demand(fresh, gate):
    fresh.init(num_cpus=3, idle_worker_timeout=0.1)
    refs = [fresh.remote(gate.enter).remote() for _ in range(3)]
    pids = gate.wait_for(count=3)
    gate.open()
    fresh.get(refs)
    assert eventually(lambda: not any(map(is_alive, pids)))
    pid = fresh.get(fresh.remote(os.getpid).remote())

    assert pid not in pids


def test_a_worker_that_is_about_to_end_is_not_retired_again(fresh):
    fresh.init(num_cpus=1, idle_worker_timeout=1000)
    pid = fresh.get(fresh.remote(os.getpid).remote())
    backend = fresh._current._backend
    pool = backend._engine._pool

    def retire_twice():  # before the end of the process can be noticed
        for worker in pool.by_number.values():
            worker.idle_since = float("-inf")
        pool._retire_idle()
        pool._retire_idle()

    backend._portal.call(retire_twice)
    assert fresh.get(fresh.remote(os.getpid).remote(), timeout=30) != pid


def test_idle_workers_for_coroutines_end_and_come_back(fresh):
    fresh.init(num_cpus=1, idle_worker_timeout=0.1)

    async def pid():
        return os.getpid()

    first = fresh.get(fresh.remote(pid).remote())
    assert eventually(lambda: not is_alive(first))

    assert fresh.get(fresh.remote(pid).remote()) != first


def test_a_worker_that_holds_an_object_does_not_take_it_to_the_grave(fresh):
    fresh.init(num_cpus=1, idle_worker_timeout=0.1)

    @fresh.remote
    def make():
        import taskloom

        return os.getpid(), [taskloom.put("kept")]

    pid, refs = fresh.get(make.remote())
    eventually(lambda: not is_alive(pid), 2)

    assert fresh.get(refs) == ["kept"]


def test_extra_workers_of_nested_tasks_end_when_idle(fresh):
    fresh.init(num_cpus=1, idle_worker_timeout=0.2)

    @fresh.remote
    def down(n):
        import taskloom

        return 0 if not n else 1 + taskloom.get(down.remote(n - 1))

    assert fresh.get(down.remote(8)) == 8
    assert eventually(lambda: processes() <= 3)
    assert fresh.get(down.remote(2)) == 2


def test_preloaded_modules_are_there_when_a_worker_starts(run_driver, tmp_path):
    (tmp_path / "heavy_module.py").write_text("import os\nLOADED_IN = os.getpid()\n")
    done = run_driver(
        f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import taskloom as ray

def look():
    import os, sys
    return "heavy_module" in sys.modules, sys.modules["heavy_module"].LOADED_IN != os.getpid()

ray.init(num_cpus=2, preload=["heavy_module"])
print(ray.get([ray.remote(look).remote() for _ in range(4)]))
"""
    )
    assert done.stdout == f"{[(True, True)] * 4}\n", done.stderr


@pytest.mark.parametrize("module", ["no_such_module_anywhere", "fails_at_import"])
def test_a_module_that_cannot_be_preloaded_is_named(run_driver, tmp_path, module):
    (tmp_path / "fails_at_import.py").write_text("raise OSError('broken module')\n")
    done = run_driver(
        f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import taskloom as ray
try:
    ray.init(num_cpus=1, preload=[{module!r}])
    ray.get(ray.remote(lambda: 1).remote(), timeout=20)
except Exception as error:
    print(type(error).__name__, {module!r} in str(error))
"""
    )
    assert done.stdout == "WorkerStartupError True\n", (done.stdout, done.stderr)


def test_a_worker_that_dies_while_idle_is_replaced_silently(tl, gate, capsys):
    pids = set(tl.get([tl.remote(os.getpid).remote() for _ in range(8)]))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    again = tl.get([tl.remote(max_retries=0)(os.getpid).remote() for _ in range(8)], timeout=30)

    assert not pids & set(again)
    assert "rror" not in capsys.readouterr().err


def test_two_tasks_run_at_once_on_two_cpus(tl, gate):
    @tl.remote
    def meet(name, other):
        gate.note(name)
        assert eventually(lambda: gate.count(other)), "the other one does not run"
        return True

    assert tl.get([meet.remote("a", "b"), meet.remote("b", "a")]) == [True, True]


def test_a_short_task_does_not_wait_behind_a_long_one(tl, gate):
    f = tl.remote(lambda x: x and gate.stay())
    tl.get([f.remote(0) for _ in range(200)])  # it is known to be short now
    long = f.remote(1)
    refs = [f.remote(0) for _ in range(100)]

    assert tl.get(refs, timeout=20) == [0] * 100
    gate.open()
    tl.get(long)


def test_code_that_runs_in_the_engine_s_thread_may_look_and_change_nothing(fresh, gate):
    # A garbage collection may run a __del__ there, in the middle of anything.
    fresh.init(num_cpus=1)
    refs = [fresh.remote(gate.enter).remote("held")]
    gate.wait_for("held")
    refs += [fresh.remote(lambda n: n).remote(n) for n in range(3)]
    backend = fresh._current._backend

    def look():
        return refs[2].why(), backend.withdraw(refs[2])

    text, is_withdrawn = backend._portal.call(look)
    assert "queued" in text
    assert not is_withdrawn
    gate.open()
    assert fresh.get(refs[1:], timeout=60) == [0, 1, 2]
