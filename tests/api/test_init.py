"""A session from ``init`` to ``shutdown`` (rows INIT of the reference), with real processes."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from types import ModuleType

import psutil
import pytest
from packaging.version import Version
from tests.gates import Gate, eventually

from taskloom.exceptions import RaySystemError, SessionClosedError


def one() -> int:
    return 1


def workers_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


# -- arguments ----------------------------------------------------------------------------------


def test_a_session_starts_with_every_argument_of_ray_for_clusters_INIT_1(fresh: ModuleType):
    fresh.init(
        num_cpus=1,
        labels={"zone": "a"},
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        dashboard_port=None,
        job_config=None,
        configure_logging=True,
        logging_level="info",
        logging_format=None,
        namespace="n",
        enable_resource_isolation=False,
        cgroup_path=None,
        system_reserved_cpu=None,
        system_reserved_memory=None,
        proxy_server_url=None,
        _system_config={},
        _temp_dir=None,
    )

    assert fresh.get(fresh.remote(one).remote()) == 1
    assert (
        inspect.signature(fresh.init).parameters["num_cpus"].kind is inspect.Parameter.KEYWORD_ONLY
    )


def test_an_unknown_argument_is_named_and_starts_nothing_INIT_2(fresh):
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\).*num_cpu\b"):
        fresh.init(num_cpu=2)

    assert not fresh.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"num_cpus": "2"}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_gpus": -1}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"db": -1}}, ValueError),
        ({"resources": [1]}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"preload": "numpy"}, TypeError),
        ({"idle_worker_timeout": -1}, ValueError),
        ({"max_extra_workers": -1}, ValueError),
        ({"local_mode": 1}, TypeError),
    ],
    ids=str,
)
def test_a_wrong_argument_starts_nothing(fresh, arguments, error):
    with pytest.raises(error):
        fresh.init(**arguments)

    assert not fresh.is_initialized()


@pytest.mark.parametrize("address", [None, "local"])
def test_the_engine_is_always_embedded_whatever_lies_in_tmp_INIT_3(run_driver, address, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    done = run_driver(
        f"""
import taskloom as ray
ray.init({address!r}, num_cpus=1)
print(ray.get(ray.remote(lambda: 1).remote()))
""",
        env={"TMPDIR": str(tmp_path)},
    )
    assert done.stdout == "1\n", done.stderr


# -- twice --------------------------------------------------------------------------------------


def test_a_second_init_raises_or_changes_nothing_INIT_4(fresh):
    fresh.init(num_cpus=1)
    with pytest.raises(RuntimeError, match=r"Maybe you called ray\.init twice by accident\?"):
        fresh.init()
    context = fresh.init(num_cpus=8, ignore_reinit_error=True)

    assert context.address_info is not None
    assert fresh.cluster_resources()["CPU"] == 1


# -- the first call starts it -------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        "ray.get(f.remote())",
        "ray.get(ray.put(1))",
        "ray.wait([f.remote()])",
        "ray.get_runtime_context().get_job_id()",
        "ray.get_gpu_ids()",
    ],
)
def test_a_program_without_init_runs_INIT_5(run_driver, first):
    done = run_driver(
        f"""
import taskloom as ray

@ray.remote
def f(): return 1

assert not ray.is_initialized()
{first}
print(ray.is_initialized())
"""
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("name", ["cluster_resources", "available_resources", "nodes"])
def test_questions_about_the_machine_need_a_session_INIT_5(fresh, name):
    with pytest.raises(RaySystemError):
        getattr(fresh, name)()

    assert not fresh.is_initialized()


def test_starting_by_the_first_call_can_be_turned_off_INIT_5(run_driver):
    done = run_driver(
        """
import taskloom as ray
try:
    ray.remote(lambda: 1).remote()
except ray.exceptions.RaySystemError as error:
    print("refused", ray.is_initialized())
""",
        env={"RAY_ENABLE_AUTO_CONNECT": "0"},
    )
    assert done.stdout == "refused False\n", done.stderr


def test_first_calls_of_many_threads_share_one_session_INIT_5(fresh):
    f = fresh.remote(one)
    values: list[int] = []
    threads = [
        threading.Thread(target=lambda: values.append(fresh.get(f.remote()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert values == [1] * 8


# -- the context --------------------------------------------------------------------------------


def test_the_context_ends_the_session_INIT_6(fresh):
    with fresh.init(num_cpus=1) as context:
        assert fresh.get(fresh.remote(one).remote()) == 1
        assert context.python_version == sys.version.split()[0]
        assert Version(context.ray_version)
        assert isinstance(context.ray_commit, str)
        assert context.dashboard_url in (None, "")
        assert set(context) == set(context.address_info)
        with pytest.warns(DeprecationWarning, match="address_info"):
            context["node_id"]
        assert "<" in context._repr_html_()
    assert not fresh.is_initialized()


async def test_the_context_ends_the_session_in_a_coroutine_INIT_6(fresh):
    async with fresh.init(num_cpus=1):
        assert await fresh.remote(one).remote() == 1
    assert not fresh.is_initialized()


def test_disconnect_ends_the_session_INIT_6(fresh):
    context = fresh.init(num_cpus=1)
    context.disconnect()

    assert not fresh.is_initialized()


def test_the_context_ends_the_session_after_an_error_too_INIT_6(fresh):
    with pytest.raises(KeyError):
        with fresh.init(num_cpus=1):
            raise KeyError
    assert not fresh.is_initialized()


# -- the end ------------------------------------------------------------------------------------


def test_a_function_works_in_one_session_after_the_other_INIT_7(fresh):
    f = fresh.remote(lambda x: x + 1)
    for n in range(3):
        fresh.init(num_cpus=1)
        assert fresh.get(f.remote(n)) == n + 1
        fresh.shutdown()
        fresh.shutdown()


def test_no_process_is_left_when_shutdown_returns_INIT_7(fresh):
    fresh.init(num_cpus=2)
    fresh.get([fresh.remote(one).remote() for _ in range(4)])
    processes = workers_of(os.getpid())
    assert len(processes) >= 2
    fresh.shutdown()

    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_shutdown_ends_tasks_that_run_and_fails_those_that_wait_INIT_7(fresh, tmp_path):
    gate = Gate(tmp_path)
    fresh.init(num_cpus=1)
    running = fresh.remote(gate.enter).remote()
    waiting = fresh.remote(one).remote()
    gate.wait_for()
    got: list[object] = []

    def get_both() -> None:
        for ref in (running, waiting):
            try:
                got.append(fresh.get(ref))
            except Exception as error:
                got.append(error)

    thread = threading.Thread(target=get_both)
    thread.start()
    assert eventually(lambda: running._home._sleepers.waiting(running._record), 5), (
        "the thread waits"
    )
    fresh.shutdown()
    thread.join(10)

    assert not thread.is_alive()
    assert isinstance(got[0], SessionClosedError)
    assert isinstance(got[1], Exception)


def test_a_ref_of_a_session_that_ended_says_so_INIT_7(fresh):
    fresh.init(num_cpus=1)
    ref = fresh.remote(one).remote()
    fresh.get(ref)
    fresh.shutdown()
    fresh.init(num_cpus=1)
    with pytest.raises(ValueError, match="session"):
        fresh.get(ref)
    with pytest.raises(ValueError, match="session"):
        fresh.remote(lambda x: x).remote(ref)


def test_shutdown_in_another_thread_ends_the_session_INIT_7(fresh):
    fresh.init(num_cpus=1)
    fresh.get(fresh.remote(one).remote())
    thread = threading.Thread(target=fresh.shutdown)
    thread.start()
    thread.join(10)

    assert not fresh.is_initialized()


def test_a_task_cannot_end_the_session_INIT_7(tl):
    def end():
        import taskloom

        taskloom.shutdown()
        return taskloom.is_initialized()

    assert tl.get(tl.remote(end).remote()) is True
    assert tl.get(tl.remote(one).remote()) == 1


def test_is_initialized_is_true_between_init_and_shutdown_INIT_8(fresh):
    assert not fresh.is_initialized()
    fresh.init(num_cpus=1)
    assert fresh.is_initialized()
    fresh.shutdown()
    assert not fresh.is_initialized()


def test_local_mode_runs_tasks_in_this_process_INIT_9(fresh):
    fresh.init(local_mode=True)

    assert fresh.get(fresh.remote(os.getpid).remote()) == os.getpid()
    assert not workers_of(os.getpid())


def test_a_breakpoint_in_a_task_works_in_local_mode_INIT_9(run_driver):
    done = run_driver(
        """
import sys, taskloom as ray
sys.breakpointhook = lambda: print("stopped in", sys._getframe(1).f_code.co_name)
ray.init(local_mode=True)

@ray.remote
def f():
    breakpoint()
    return 1

print(ray.get(f.remote()))
"""
    )
    assert done.stdout == "stopped in f\n1\n", done.stderr


# -- the host program ---------------------------------------------------------------------------


def test_neither_import_nor_session_touches_the_host_program_INIT_11(run_driver):
    done = run_driver(
        """
import asyncio, os, signal, sys, threading
def state():
    return (
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        sys.excepthook, threading.excepthook, dict(os.environ), sys.path[:], os.getcwd(),
        os.getpriority(os.PRIO_PROCESS, 0), sys.stdout, sys.getrecursionlimit(),
        signal.pthread_sigmask(signal.SIG_BLOCK, []), sys.getswitchinterval(),
    )
before = state()
import taskloom as ray
ray.init(num_cpus=2)
assert ray.get(ray.remote(lambda: 1).remote()) == 1
async def sleep(): return 2
assert ray.get(ray.remote(sleep).remote()) == 2
assert state() == before
assert asyncio.events._event_loop_policy is None
ray.shutdown()
assert state() == before
print("untouched")
"""
    )
    assert done.stdout == "untouched\n", done.stderr


def test_workers_are_not_niced(tl):
    assert tl.get(tl.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_init_works_outside_the_main_thread_INIT_11(fresh):
    thread = threading.Thread(target=fresh.init, kwargs={"num_cpus": 1})
    thread.start()
    thread.join()

    assert fresh.get(fresh.remote(one).remote()) == 1


# -- resources ----------------------------------------------------------------------------------


def test_resources_are_told_in_total_and_as_free_INIT_13(fresh, tmp_path):
    gate = Gate(tmp_path)
    fresh.init(num_cpus=1, num_gpus=2, resources={"db": 3})
    total = fresh.cluster_resources()
    assert (total["CPU"], total["GPU"], total["db"]) == (1.0, 2.0, 3.0)
    assert {"memory", "object_store_memory"} <= total.keys()
    assert all(type(value) is float for value in total.values())
    assert any(name.startswith("node:") for name in total)
    assert fresh.available_resources() == total

    ref = fresh.remote(num_cpus=1, resources={"db": 1})(gate.enter).remote()
    gate.wait_for()
    free = fresh.available_resources()
    assert "CPU" not in free
    assert free["db"] == 2.0
    gate.open()
    fresh.get(ref)
    assert eventually(lambda: fresh.available_resources() == total)


def test_nodes_is_one_row_INIT_13(tl):
    (row,) = tl.nodes()

    assert {"NodeID", "Alive", "Resources"} <= row.keys()
    assert row["Alive"]
    assert row["Resources"]["CPU"] == 2.0


def test_without_arguments_there_are_as_many_cpus_as_may_be_used_INIT_14(run_driver):
    done = run_driver(
        """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import taskloom as ray
ray.init()
print(ray.cluster_resources()["CPU"], ray.get(ray.remote(lambda: 1).remote()))
"""
    )
    assert done.stdout == "1.0 1\n", done.stderr


def test_the_version_can_be_read_INIT_16(tl):
    assert Version(tl.__version__) > Version("0")
    assert isinstance(tl.__commit__, str)


# -- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_is_refused_and_its_parent_goes_on_INIT_17(run_driver):
    done = run_driver(
        """
import os, sys, time
import warnings; warnings.simplefilter("ignore")
import taskloom as ray

ray.init(num_cpus=1)
f = ray.remote(lambda: 1)
ref = f.remote()
ray.get(ref)
read, write = os.pipe()
pid = os.fork()
if not pid:
    import traceback
    told = []
    start = time.monotonic()
    for call in (lambda: ray.get(ref), lambda: f.remote(), lambda: ray.put(1),
                 lambda: ray.wait([ref], timeout=5), lambda: ray.available_resources()):
        try:
            told.append(call())
        except RuntimeError as error:
            told.append("fork is not supported" in str(error))
        except Exception as error:
            told.append(repr(error))
    os.write(write, repr((told, time.monotonic() - start < 1)).encode())
    sys.exit(0)
os.close(write)
answer = b""
while part := os.read(read, 1000): answer += part
print(answer.decode())
print(os.waitpid(pid, 0)[1], ray.get(f.remote()))
"""
    )
    assert done.returncode == 0, done.stderr
    told, rest = done.stdout.splitlines()
    assert told == "([True, True, True, True, True], True)"
    assert rest == "0 1"


def test_a_forked_child_may_start_a_session_of_its_own_INIT_17(run_driver):
    done = run_driver(
        """
import os
import warnings; warnings.simplefilter("ignore")
import taskloom as ray

ray.init(num_cpus=1)
f = ray.remote(lambda: os.getppid())
ray.get(f.remote())
pid = os.fork()
if not pid:
    ray.shutdown()
    ray.init(num_cpus=1)
    ok = ray.get(ray.remote(lambda: 5).remote()) == 5
    ray.shutdown()
    os._exit(0 if ok else 1)
print(os.waitpid(pid, 0)[1])
ray.get(f.remote())
"""
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


# -- starting over and over ---------------------------------------------------------------------


def test_many_sessions_leave_nothing_behind(fresh):
    def count() -> tuple[int, int]:
        gc.collect()  # the inbox of a session goes with the last who might post into it
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    fresh.init(num_cpus=1)
    fresh.get(fresh.remote(one).remote())
    fresh.shutdown()
    before = count()
    for _ in range(5):
        fresh.init(num_cpus=1)
        fresh.get(fresh.remote(one).remote())
        fresh.shutdown()

    assert count() == before


def test_init_and_shutdown_at_once_leave_nothing_behind(fresh):
    for _ in range(4):
        fresh.init(num_cpus=1)
        fresh.shutdown()

    assert not workers_of(os.getpid())


def test_sigterm_ends_the_program_as_it_would_without_a_session_INIT_11(run_driver):
    done = run_driver(
        """
import os, signal, taskloom as ray
ray.init(num_cpus=2)
ray.get(ray.remote(lambda: 1).remote())
os.kill(os.getpid(), signal.SIGTERM)
"""
    )
    assert done.returncode == -signal.SIGTERM


def test_a_program_in_a_program_has_its_own_session(tl):
    code = "import taskloom as t; t.init(num_cpus=1); print(t.get(t.remote(lambda: 6).remote()))"

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert tl.get(tl.remote(run).remote()) == "6\n"
