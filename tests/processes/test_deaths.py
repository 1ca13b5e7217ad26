"""Processes that die, are killed or misbehave: workers, drivers, and the programs around them.

Each program runs in a process of its own with a time limit, so that a hang is a failed test.
``run_driver`` also fails a test whose program leaves a process behind for two seconds.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.gates import Gate, eventually

ROOT = Path(__file__).resolve().parent.parent.parent

HEAD = """
import ctypes, faulthandler, os, signal, sys, threading, time
import taskloom as ray
from taskloom.exceptions import *

def outcome(ref):
    try:
        return ray.get(ref, timeout=25)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

good = ray.remote(lambda x: x)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def drive(run_driver):
    """Run a program that begins with HEAD; the lines it prints."""

    def drive(body: str, *, returncode: int = 0, **options: object) -> list[str]:
        done = run_driver(HEAD + body, **options)
        assert done.returncode == returncode, done.stderr
        return done.stdout.splitlines()

    return drive


# -- a worker dies (rows 1-9) -------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_its_task_an_attempt_and_nobody_else_FAULTS_1(
    drive, tmp_path
):
    lines = drive(
        """
path = sys.argv[1]

@ray.remote(max_retries=1)
def victim():
    with open(path, "a") as file: file.write(f"{os.getpid()}\\n")
    time.sleep(1000)

def kill(n):
    while len(open(path).read().split()) < n: time.sleep(0.005)
    os.kill(int(open(path).read().split()[n - 1]), signal.SIGKILL)

open(path, "w").close()
ray.init(num_cpus=2)
ref = victim.remote()
others = [good.remote(n) for n in range(100)]
kill(1)
kill(2)
print(outcome(ref))
print(ray.get(others) == list(range(100)), ray.get(good.remote("still here")))
""",
        args=[str(tmp_path / "pids")],
    )
    assert lines[0].startswith("WorkerCrashedError")
    assert "SIGKILL" in lines[0]
    assert "attempt 2 of 2" in lines[0]
    assert lines[-1] == "True still here"


def test_a_worker_that_is_killed_while_idle_is_replaced_FAULTS_2(drive):
    lines = drive("""
ray.init(num_cpus=1)
pid = ray.get(ray.remote(os.getpid).remote())
os.kill(pid, signal.SIGKILL)
print(ray.get([ray.remote(max_retries=0)(lambda: 1).remote() for _ in range(20)]) == [1] * 20)
""")
    assert lines == ["True"]


def test_a_segfault_is_named_and_shows_where_it_was_FAULTS_3(drive):
    lines = drive("""
@ray.remote(max_retries=0)
def read_nothing():
    ctypes.string_at(0)

ray.init(num_cpus=1)
print(outcome(read_nothing.remote()))
print(ray.get(good.remote(1)))
""")
    text = "\n".join(lines)
    assert "WorkerCrashedError" in text
    assert "SIGSEGV" in text
    assert "read_nothing" in text
    assert "Segmentation fault" in text, "what faulthandler wrote is in the error"
    assert lines[-1] == "1"


@pytest.mark.parametrize("name", ["SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTERM", "SIGKILL"])
def test_the_signal_that_ended_a_worker_is_named_FAULTS_4(drive, name):
    lines = drive(
        """
@ray.remote(max_retries=0)
def end(number):
    os.kill(os.getpid(), number)
    time.sleep(10)

ray.init(num_cpus=1, log_to_driver=False)
print(outcome(end.remote(getattr(signal, sys.argv[1]))).splitlines()[0])
print(ray.get(good.remote(1)))
""",
        args=[name],
    )
    assert lines[0].startswith("WorkerCrashedError")
    assert name in lines[0]
    assert lines[1] == "1"


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "ctypes.CDLL(None).exit(0)", "ctypes.CDLL(None)._exit(0)"]
)
def test_a_worker_that_ends_well_in_the_middle_of_a_task_is_no_success_FAULTS_5_7(drive, end):
    lines = drive(f"""
@ray.remote(max_retries=0)
def leave():
    {end}

ray.init(num_cpus=1)
print(outcome(leave.remote()).splitlines()[0])
print(ray.get(good.remote(1)))
""")
    assert lines[0].startswith("WorkerCrashedError")
    assert "exited with code 0" in lines[0]
    assert lines[1] == "1"


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "raise KeyboardInterrupt"])
def test_an_exit_or_interrupt_in_a_task_is_its_error_and_ends_nothing_FAULTS_6_8(drive, end):
    lines = drive(f"""
@ray.remote
def leave():
    print(os.getpid(), file=open("pids", "a"), flush=True)
    {end}

ray.init(num_cpus=1)
pid = ray.get(ray.remote(os.getpid).remote())
print(outcome(leave.remote()).splitlines()[0])
print(open("pids").read().split() == [str(pid)], ray.get(ray.remote(os.getpid).remote()) == pid)
""")
    assert lines[0].startswith("RayTaskError: ")
    assert lines[1] == "True True", "one attempt, and the worker lives"


def test_a_poison_task_takes_no_innocent_with_it_FAULTS_9(drive):
    lines = drive("""
@ray.remote(max_retries=2)
def poison():
    print(os.getpid(), file=open("deaths", "a"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

@ray.remote(max_retries=0)
def innocent(n):
    return n

ray.init(num_cpus=2)
ray.get([innocent.remote(n) for n in range(300)])  # they are known to be short: they queue up
refs = [innocent.remote(n) for n in range(50)]
ref = poison.remote()
refs += [innocent.remote(n) for n in range(50, 100)]
print(outcome(ref).splitlines()[0])
print(ray.get(refs) == list(range(100)), len(open("deaths").read().split()))
""")
    assert lines[0].startswith("WorkerCrashedError")
    assert lines[1] == "True 3"


def test_a_short_function_that_turns_deadly_takes_no_innocent_with_it_FAULTS_9(drive):
    lines = drive("""
@ray.remote(max_retries=0)
def f(n):
    if n < 0: os._exit(9)
    return n

ray.init(num_cpus=1)
ray.get([f.remote(n) for n in range(300)])
refs = [f.remote(-1 if n == 30 else n) for n in range(60)]
print([outcome(ref) for ref in refs[:30] + refs[31:]] == [n for n in range(60) if n != 30])
print(outcome(refs[30]).splitlines()[0])
""")
    assert lines[0] == "True"
    assert lines[1].startswith("WorkerCrashedError")


def test_a_task_that_closes_what_it_does_not_own_fails_alone_FAULTS_20(drive):
    lines = drive("""
@ray.remote(max_retries=0)
def close():
    os.closerange(3, 256)
    time.sleep(0.2)
    return "never"

ray.init(num_cpus=1)
print(outcome(close.remote()).splitlines()[0])
print(ray.get(good.remote(1)))
""")
    assert lines[0].startswith("WorkerCrashedError")
    assert lines[-1] == "1"


def test_a_zygote_that_is_killed_is_replaced(drive):
    lines = drive("""
import psutil
ray.init(num_cpus=1)
ray.get(good.remote(1))
(zygote,) = psutil.Process().children()
zygote.kill()
print(ray.get([good.remote(n) for n in range(5)], timeout=20))
""")
    assert lines == ["[0, 1, 2, 3, 4]"]


def test_workers_that_die_at_their_start_are_an_error_not_a_hang(drive, tmp_path):
    (tmp_path / "deadly_module.py").write_text("import os\nos._exit(5)\n")
    lines = drive(f"""
sys.path.insert(0, {str(tmp_path)!r})
ray.init(num_cpus=1, preload=["deadly_module"])
print(outcome(good.remote(1)).splitlines()[0])
""")
    assert lines[0].startswith("WorkerStartupError")


# -- the driver dies (rows 21-26) ---------------------------------------------------------------

WORK = {
    "idle": "ray.get(good.remote(1))",
    "busy": "refs = [ray.remote(spin).remote() for _ in range(2)]",
    "asleep": "refs = [ray.remote(time.sleep).remote(1000) for _ in range(2)]",
    "in C": "refs = [ray.remote(hold_the_gil).remote() for _ in range(2)]",
    "coroutines": "refs = [ray.remote(snooze).remote() for _ in range(20)]",
    "just started": "",
}


@pytest.fixture
def driver(tmp_path):
    """Start a program that stays; (the process, its workers) once it has said that it is ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(body: str, count: int = 2) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        script = tmp_path / "driver.py"
        script.write_text(HEAD + body)
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        with (tmp_path / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(script)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", (tmp_path / "stderr").read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        return process, children

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def all_gone(children: list[psutil.Process]) -> bool:
    return eventually(lambda: not any(alive(child.pid) for child in children), 5)


@pytest.mark.parametrize("work", WORK)
def test_no_worker_outlives_a_driver_that_is_killed_FAULTS_21(driver, work):
    process, children = driver(f"""
def spin():
    while True: pass

def hold_the_gil():
    ctypes.PyDLL(None).sleep(1000)

async def snooze():
    import asyncio
    await asyncio.sleep(1000)

ray.init(num_cpus=2)
{WORK[work]}
if {work!r} not in ("idle", "just started"):
    deadline = time.monotonic() + 20
    while "CPU" in ray.available_resources() and {work!r} != "coroutines": time.sleep(0.01)
print("ready", flush=True)
time.sleep(1000)
""")
    assert children or work == "just started"
    process.kill()
    process.wait()

    assert all_gone(children)


def test_workers_do_not_die_with_the_thread_that_called_init_FAULTS_22(driver):
    process, children = driver("""
thread = threading.Thread(target=ray.init, kwargs={"num_cpus": 1})
thread.start()
thread.join()
pid = ray.get(ray.remote(os.getpid).remote())
assert ray.get(ray.remote(os.getpid).remote()) == pid
print("ready", flush=True)
time.sleep(1000)
""")
    assert children
    process.kill()
    process.wait()

    assert all_gone(children)


@pytest.mark.parametrize(
    "end", ["faulthandler._sigsegv()", "os._exit(1)", "os.abort()", "os.kill(os.getpid(), 15)"]
)
def test_no_worker_outlives_a_driver_that_crashes_FAULTS_23(run_driver, end):
    done = run_driver(
        HEAD
        + f"""
ray.init(num_cpus=2)
refs = [ray.remote(time.sleep).remote(1000) for _ in range(2)]
ray.get(ray.remote(num_cpus=0)(lambda: 1).remote())
{end}
"""
    )
    assert done.returncode != 0


def test_a_program_that_ends_with_pending_tasks_ends_at_once_FAULTS_24(run_driver):
    start = time.monotonic()
    done = run_driver(
        HEAD
        + """
ray.init(num_cpus=2)
refs = [ray.remote(time.sleep).remote(100) for _ in range(100)]
ray.get(ray.remote(num_cpus=0)(lambda: 1).remote())
"""
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert time.monotonic() - start < 25


def test_a_program_that_ends_with_an_error_leaves_nothing_FAULTS_25(run_driver):
    done = run_driver(
        HEAD
        + """
ray.init(num_cpus=2)
refs = [ray.remote(time.sleep).remote(100) for _ in range(10)]
raise RuntimeError("the program's own")
"""
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: the program's own"


@pytest.mark.parametrize(
    "hook",
    [
        "import atexit; atexit.register(last)",
        "import weakref; keep = type('K', (), {})(); weakref.finalize(keep, last)",
        "keep = type('K', (), {'__del__': lambda self, last=last: last()})()",
    ],
    ids=["atexit", "finalize", "del"],
)
def test_calls_at_the_very_end_do_not_hang_FAULTS_26(run_driver, hook):
    done = run_driver(
        HEAD
        + f"""
ray.init(num_cpus=1)
ref = good.remote(1)
ray.get(ref)
def last(write=os.write):
    for call in (lambda: ray.get(ref, timeout=5), lambda: ray.get(good.remote(2), timeout=5)):
        try:
            call()
            write(1, b"value ")
        except BaseException as error:
            write(1, type(error).__name__.encode() + b" ")
{hook}
"""
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2


# -- signals and terminals (rows 27, 33, 35) ----------------------------------------------------


def test_ctrl_c_on_a_terminal_reaches_the_driver_only_FAULTS_27(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        HEAD
        + """
ray.init(num_cpus=2)
ray.get(good.remote(1))
ref = ray.remote(time.sleep).remote(1000)
try:
    print("ready", flush=True)
    ray.get(ref)
except KeyboardInterrupt:
    print("interrupted", ray.get(good.remote("and going on")), flush=True)
"""
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    begin = f"import os; os.login_tty(0); exec(open({str(script)!r}).read())"
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", begin],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=False,
    )
    os.close(theirs)
    said = b""
    try:
        for part in _read_terminal(ours, process):
            said += part
            if b"ready" in part:  # written at once
                os.write(ours, b"\x03")
        assert process.wait(20) == 0, said.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)

    assert b"interrupted and going on" in said, said
    assert b"Traceback" not in said


def _read_terminal(terminal: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What comes until nobody holds the other end; a program that hangs says where it does."""
    deadline = time.monotonic() + 30
    while True:
        if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread is
            deadline += 30
            continue
        try:
            part = os.read(terminal, 10_000)
        except OSError:  # the terminal has nobody any more
            return
        if not part:
            return
        yield part


@pytest.mark.parametrize(
    "wait",
    [
        "ray.get(ref)",
        "ray.get(ref, timeout=1000)",
        "ray.get([ref, ref])",
        "ray.get([ref, good.remote(ref)])",
        "ray.wait([ref])",
        "ray.wait([ref], timeout=1000)",
        "next(ray.as_completed([ref]))",
        "ref.future().result()",
        "ref.future().exception(1000)",
        "next(iter(ray.remote(endless).remote()))",
    ],
)
def test_an_interrupt_that_does_not_wake_the_main_thread_is_heard_FAULTS_27(drive, wait):
    # A signal that comes just before a thread is asleep, or that the kernel gives to another
    # thread, wakes nobody, and Python's lock.acquire() sleeps on.
    assert drive(f"""
ray.init(num_cpus=1)
ref = ray.remote(time.sleep).remote(1000)
main = threading.get_ident()

def endless():
    time.sleep(1000)
    yield

def interrupt():
    while time.monotonic() < begin + 0.1 or sys._current_frames()[main].f_code is here:
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

here = sys._getframe().f_code
begin = time.monotonic()
other = threading.Thread(target=interrupt)
other.start()
try:
    {wait}
except KeyboardInterrupt:
    print("heard")
other.join()
ray.cancel(ref)
print(ray.get(good.remote(1)))
""") == ["heard", "1"]


def test_an_interrupt_of_the_whole_process_group_hits_no_worker_FAULTS_27(driver):
    process, children = driver("""
ray.init(num_cpus=1)
pid = ray.get(ray.remote(os.getpid).remote())
try:
    print("ready", flush=True)
    while True: time.sleep(0.05)  # one long sleep may miss a signal that comes as it begins
except KeyboardInterrupt:
    print(ray.get(ray.remote(os.getpid).remote()) == pid, flush=True)
""")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None

    assert process.stdout.readline() == b"True\n"
    assert process.wait(20) == 0
    assert all_gone(children)


@pytest.mark.parametrize(
    "host",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        """
def reap():
    while True:
        try: os.waitpid(-1, 0)
        except ChildProcessError: time.sleep(0.002)
threading.Thread(target=reap, daemon=True).start()
""",
    ],
    ids=["ignored", "reaped by another"],
)
def test_a_host_that_takes_away_exit_codes_does_not_hide_a_death_FAULTS_33(drive, host):
    lines = drive(f"""
{host}
ray.init(num_cpus=1)
@ray.remote(max_retries=0)
def die():
    os._exit(7)
print(outcome(die.remote()).splitlines()[0])
print(ray.get(good.remote(1)))
ray.shutdown()
""")
    assert lines[0].startswith("WorkerCrashedError")
    assert lines[1] == "1"


@pytest.mark.parametrize(
    "child",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
        "outcome(ref), outcome2(good), os._exit(0)",
        "ref.__del__(), os._exit(0)",
    ],
    ids=["exit at once", "exit with hooks", "exec", "use it", "drop a ref"],
)
def test_a_fork_of_the_driver_leaves_the_parent_unharmed_FAULTS_35(drive, child):
    lines = drive(f"""
import warnings
warnings.simplefilter("ignore")

def outcome2(function):
    try:
        function.remote(1)
    except BaseException:
        pass

ray.init(num_cpus=1)
ref = good.remote(1)
ray.get(ref)
pid = os.fork()
if not pid:
    {child}
print(os.waitpid(pid, 0)[1], ray.get(ref), ray.get(good.remote(2)))
""")
    assert lines == ["0 1 2"]


def test_a_forked_child_that_lives_on_keeps_no_worker_alive_FAULTS_35(driver, tmp_path):
    process, children = driver("""
import warnings
warnings.simplefilter("ignore")
ray.init(num_cpus=1)
ray.get(good.remote(1))
pid = os.fork()
if not pid:
    open("child", "w").write(str(os.getpid()))
    time.sleep(1000)
    os._exit(0)
while not os.path.exists("child") or not open("child").read(): time.sleep(0.01)
print("ready", flush=True)
time.sleep(1000)
""")
    child = int((tmp_path / "child").read_text())
    workers = [process for process in children if process.pid != child]
    assert workers
    process.kill()
    process.wait()
    try:
        assert all_gone(workers)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_task_that_forks_does_not_hold_up_anybody_FAULTS_35(drive):
    lines = drive("""
import warnings

@ray.remote
def fork():
    warnings.simplefilter("ignore")
    pid = os.fork()
    if not pid:
        os._exit(0)
    return os.waitpid(pid, 0)[1]

@ray.remote
def spawn():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2])

ray.init(num_cpus=1)
print(ray.get(fork.remote()), ray.get(spawn.remote()), ray.get(good.remote(1)))
""")
    assert lines == ["0 [1, 2] 1"]


# -- what does not pickle (rows 39-44) ----------------------------------------------------------

AWKWARD = """
class FailsToLoad:
    def __reduce__(self): return fail, ("cannot be loaded",)

class EndsToLoad:
    def __reduce__(self): return sys.exit, (3,)

class CrashesToLoad:
    def __reduce__(self): return os._exit, (3,)

class FailsToDump:
    def __reduce__(self): raise OSError("cannot be dumped")

class EndsToDump:
    def __reduce__(self): sys.exit(3)

class CrashesToDump:
    def __reduce__(self): os._exit(3)

def fail(text): raise ValueError(text)
"""


def test_an_argument_that_does_not_load_is_the_error_of_its_task_FAULTS_39(drive):
    lines = drive(
        AWKWARD
        + """
ray.init(num_cpus=1)
f = ray.remote(max_retries=0)(lambda x, y=None: "ran")
print(outcome(f.remote(1, FailsToLoad())).splitlines()[0])
print(outcome(f.remote(1, y=[FailsToLoad()])).splitlines()[0])
print(outcome(f.remote(EndsToLoad())).splitlines()[0])
print(outcome(f.remote(CrashesToLoad())).splitlines()[0])
print(ray.get(f.remote(1)))
"""
    )
    assert lines[0].startswith("RayTaskError(ValueError)")
    assert lines[1].startswith("RayTaskError(ValueError)")
    assert lines[2].startswith("RayTaskError")
    assert lines[3].startswith("WorkerCrashedError")
    assert lines[4] == "ran"


def test_an_argument_that_does_not_dump_is_the_error_of_the_call_FAULTS_39(drive):
    lines = drive(
        AWKWARD
        + """
ray.init(num_cpus=1)
for thing in (FailsToDump(), EndsToDump()):
    try:
        good.remote(thing)
    except BaseException as error:
        print(type(error).__name__, error)
print(ray.get(good.remote(1)))
"""
    )
    assert lines[0].startswith("TypeError")
    assert lines[1].startswith(("SystemExit", "TypeError"))
    assert lines[2] == "1"


def test_a_result_that_does_not_dump_is_the_error_of_its_task_FAULTS_40(drive):
    lines = drive(
        AWKWARD
        + """
ray.init(num_cpus=1)
f = ray.remote(max_retries=0)(lambda make: make())
for make in (threading.Lock, FailsToDump, EndsToDump, CrashesToDump):
    print(outcome(f.remote(make)).splitlines()[0])
print(ray.get(f.remote(lambda: 1)))
"""
    )
    assert lines[0].startswith("RayTaskError(TypeError)")
    assert lines[1].startswith("RayTaskError(")
    assert lines[2].startswith("RayTaskError")
    assert lines[3].startswith("WorkerCrashedError")
    assert lines[4] == "1"


def test_a_result_that_does_not_load_fails_only_those_who_ask_for_it_FAULTS_41(drive):
    lines = drive(
        AWKWARD
        + """
import asyncio
ray.init(num_cpus=1)
ref = ray.remote(FailsToLoad.__new__).remote(FailsToLoad)
other = good.remote("fine")
print(outcome(ref).splitlines()[0])
print(outcome(ref).splitlines()[0])

async def ask():
    return type((await asyncio.gather(ref, return_exceptions=True))[0]).__name__

async def main():
    print(await asyncio.gather(ask(), ask()))

asyncio.run(main())
print(outcome(good.remote(ref)).splitlines()[0])
print(ray.get(other), ray.wait([ref, other], num_returns=2)[1])
"""
    )
    assert lines[0] == lines[1] == "ValueError: cannot be loaded"
    assert lines[2] == "['ValueError', 'ValueError']"
    assert lines[3].startswith("RayTaskError(ValueError)")
    assert lines[4] == "fine []"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_exceptions_that_are_hard_to_send_never_end_a_worker_FAULTS_42_43_44(drive, kind):
    lines = drive(
        f"""
import asyncio

class Two(Exception):
    def __init__(self, a, b): super().__init__(a)

class Keyword(Exception):
    def __init__(self, *, code): self.code = code

class Locked(Exception):
    def __init__(self): self.lock = threading.Lock()

class Loud(Exception):
    def __str__(self): raise RuntimeError
    __repr__ = __str__

class Own(BaseException): pass

def circle():
    a, b = KeyError(1), KeyError(2)
    a.__cause__, b.__cause__ = b, a
    return a

def chain():
    last = KeyError(0)
    for n in range(10_000):
        new = KeyError(n)
        new.__context__ = last
        last = new
    return last

makes = [
    lambda: Two(1, 2), lambda: Keyword(code=1), Locked, Loud, circle, chain,
    lambda: ValueError("x" * 50_000_000),
    lambda: ExceptionGroup("many", [KeyError(n) for n in range(10_000)]),
    GeneratorExit, asyncio.CancelledError, lambda: StopIteration(1), StopAsyncIteration, Own,
    MemoryError, RecursionError, lambda: OSError(2, "x"),
]

@ray.remote
{kind} f(n):
    raise makes[n]()

{kind} pid():
    return os.getpid()

ray.init(num_cpus=1)
before = ray.get(ray.remote(pid).remote())
for n in range(len(makes)):
    text = outcome(f.remote(n))
    print(n, text.partition(":")[0], len(text) < 600_000)
print(ray.get(ray.remote(pid).remote()) == before)
""",
        timeout=60,
    )
    assert all("RayTaskError" in line and line.endswith("True") for line in lines[:-1]), lines
    assert lines[-1] == "True"


# -- where a session may live (rows 81, 85) -----------------------------------------------------


def test_a_session_may_start_inside_a_running_loop_FAULTS_81(drive):
    lines = drive("""
import asyncio
async def main():
    ray.init(num_cpus=1)
    print(await good.remote(1))
    ray.shutdown()
    print(await good.remote(2))
asyncio.run(main())
async def again():
    return await good.remote(3)
print(asyncio.run(again()))
""")
    assert lines == ["1", "2", "3"]


def test_a_session_may_live_in_a_thread_with_its_own_loop_FAULTS_81(drive):
    lines = drive("""
import asyncio
async def main(n):
    return await asyncio.gather(*(good.remote(k) for k in range(n)))
def run():
    ray.init(num_cpus=1)
    print(asyncio.run(main(5)))
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(asyncio.run(main(3)))
""")
    assert lines == ["[0, 1, 2, 3, 4]", "[0, 1, 2]"]


def test_code_from_standard_input_can_use_tasks_FAULTS_81(tmp_path):
    program = "import taskloom as t\nf = t.remote(lambda x: x + 1)\nprint(t.get(f.remote(1)))\n"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    for arguments, text in ((["-"], program), (["-c", program], ""), (["-i"], program)):
        done = subprocess.run(
            [sys.executable, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        assert "2" in done.stdout.split()


def test_a_program_without_a_guard_for_main_does_not_start_itself_again(drive):
    lines = drive("""
print("top")
ray.init(num_cpus=1)
print(ray.get(good.remote(1)))
""")
    assert lines == ["top", "1"]


def test_a_get_that_blocks_ends_when_the_session_does_FAULTS_85(drive):
    lines = drive("""
ray.init(num_cpus=1)
ref = ray.remote(time.sleep).remote(1000)
told = []
thread = threading.Thread(target=lambda: told.append(outcome(ref)))
thread.start()
while not ref._home._sleepers.waiting(ref._record): time.sleep(0.001)
start = time.monotonic()
ray.shutdown()
thread.join(10)
print(told[0].partition(":")[0], time.monotonic() - start < 8)
ray.init(num_cpus=1)
print(ray.get(good.remote(1)))
""")
    assert lines == ["SessionClosedError True", "1"]


async def test_an_await_ends_when_the_session_does_FAULTS_85(fresh, tmp_path):
    import asyncio

    gate = Gate(tmp_path)
    fresh.init(num_cpus=1)
    ref = fresh.remote(gate.enter).remote()
    waiting = asyncio.ensure_future(ref)
    await asyncio.sleep(0.01)
    await asyncio.to_thread(fresh.shutdown)

    with pytest.raises(fresh.exceptions.SessionClosedError):
        await asyncio.wait_for(waiting, 10)


def test_shutdown_in_a_callback_of_a_future_does_not_hang_FAULTS_85(drive):
    lines = drive("""
ray.init(num_cpus=1)
done = threading.Event()
def end(future):
    ray.shutdown()
    done.set()
future = good.remote(1).future()
future.add_done_callback(end)
print(done.wait(20), ray.is_initialized())
""")
    assert lines == ["True False"]


def test_two_programs_at_once_do_not_disturb_each_other(drive):
    lines = drive("""
import subprocess
ray.init(num_cpus=1)
code = "import taskloom as r; r.init(num_cpus=1); print(r.get(r.remote(lambda: 5).remote()))"
others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
print(ray.get(good.remote(1)), [other.communicate()[0] for other in others])
""")
    assert lines == ["1 [b'5\\n', b'5\\n']"]
