"""Memory runs out while tasks run: who is ended, what the caller hears, what is tried again.

Most programs here have a source of figures of their own: what ``usage`` says is in use.  Those in
a control group really run out of memory; they need root and a hierarchy that can be written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAD = """
import os, signal, sys, time
import taskloom as ray
from taskloom._current import peek
from taskloom._core import memory_victims
from taskloom._engine.memory_usage import MemoryUsage, Process, Usage
from taskloom.exceptions import *

GIB = 1 << 30
memory_victims.RETRY_DELAY_S = 0.01

class Source(MemoryUsage):
    '''What is in use is what the test says; who holds what is what each worker is said to.'''
    share = 0.5
    looks = kills = 0
    held = {}  # by pid

    def read(self):
        self.looks += 1
        share = self.share() if callable(self.share) else self.share
        return Usage(int(share * 100 * GIB), 100 * GIB, "this machine")

    def kernel_kills(self):
        return self.kills

    def rss_bytes(self, pid):
        workers = peek()._engine._pool.by_number.values()
        default = 10 * GIB if any(worker.pid == pid for worker in workers) else 1
        return self.held.get(pid, default)

    def processes(self):
        found = [p._replace(held_bytes=self.rss_bytes(p.pid)) for p in super().processes()]
        found = [p._replace(rss_bytes=p.held_bytes) for p in found]
        return sorted(found, key=lambda p: -p.rss_bytes)

def init(**options):
    config = {"memory_monitor_refresh_ms": 10, **options.pop("config", {})}
    ray.init(**{"num_cpus": 2, **options}, _system_config=config)
    engine = peek()._engine
    peek()._portal.call(lambda: setattr(engine._memory, "source", source))

def outcome(ref):
    try:
        return ray.get(ref, timeout=25)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def wait_for_file(name):
    while not attempts(name): time.sleep(0.005)

@ray.remote
def stay(name):
    with open(name, "a") as file: file.write(f"{os.getpid()}\\n")
    while not os.path.exists("open"): time.sleep(0.005)
    return name

def attempts(name):
    return len(open(name).read().split()) if os.path.exists(name) else 0

def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

def run_out_until_one_is_ended(*names):
    '''Memory is short until one of the tasks' processes is gone.'''
    pids = [int(open(name).read().split()[0]) for name in names]
    source.share = lambda: 0.97 if all(map(alive, pids)) else 0.5
    while all(map(alive, pids)): time.sleep(0.005)

def wait_for_looks(count):
    looks = source.looks
    while source.looks < looks + count: time.sleep(0.005)

source = Source()
"""


@pytest.fixture
def drive(run_driver):
    """Run a program that begins with HEAD; what it prints, by line."""

    def drive(body: str, **options: object) -> list[str]:
        done = run_driver(HEAD + body, **options)
        assert done.returncode == 0, done.stderr
        drive.stderr = done.stderr
        return done.stdout.splitlines()

    return drive


def test_the_youngest_task_is_ended_and_tried_again(drive):
    lines = drive("""
init()
old = stay.remote("old")
wait_for_file("old")
wait_for_looks(3)
young = stay.remote("young")
wait_for_file("young")
run_out_until_one_is_ended("old", "young")
while attempts("young") < 2: time.sleep(0.005)
open("open", "w").close()
print(ray.get([old, young]), attempts("old"), attempts("young"))
""")
    assert lines == ["['old', 'young'] 1 2"]
    assert "97.0%" in drive.stderr
    assert "a worker, runs stay" in drive.stderr


def test_the_error_names_task_process_sizes_limit_and_the_largest_processes(drive):
    lines = drive("""
init(num_cpus=1, config={"task_oom_retries": 1}, log_to_driver=False)
ref = stay.remote("big")
source.share = lambda: 0.96 if attempts("big") else 0.5
text = outcome(ref)
print(open("big").read().split()[-1])
print(text)
""")
    pid, text = lines[0], "\n".join(lines[1:])
    assert text.startswith("OutOfMemoryError: the task stay was ended for memory 2 times")
    assert "task_oom_retries=1" in text
    assert f"worker {pid} was ended because memory was running out" in text
    assert "it held 10.00 GiB" in text
    assert "96.00 GiB of 100.00 GiB (96.0%) were in use in this machine" in text
    assert "memory_usage_threshold=0.95" in text
    assert "a worker, runs stay" in text
    assert not drive.stderr


def test_a_task_is_tried_again_three_times_apart_from_crashes(drive):
    lines = drive("""
@ray.remote(max_retries=1)
def unlucky():
    with open("tries", "a") as file: file.write("x\\n")
    if attempts("tries") == 1: os._exit(1)
    time.sleep(100)

init(num_cpus=1, log_to_driver=False)
source.share = lambda: 0.99 if attempts("tries") > 1 else 0.5
print(outcome(unlucky.remote()).splitlines()[0][:63])
print(attempts("tries"))
""")
    assert lines[0].startswith("OutOfMemoryError: the task unlucky was ended for memory 4 times")
    assert lines[1] == "5", "a crash, and four attempts that ended for memory"


def test_a_task_that_must_not_run_twice_goes_last_and_once(drive):
    lines = drive("""
init(log_to_driver=False)
cheap = stay.remote("cheap")
wait_for_file("cheap")
wait_for_looks(3)
dear = stay.options(max_retries=0).remote("dear")
wait_for_file("dear")
run_out_until_one_is_ended("cheap", "dear")
while attempts("cheap") < 2: time.sleep(0.005)
print(attempts("dear"), dear.done())
source.share = 0.99
text = outcome(dear)
print(text.splitlines()[0][:95], attempts("dear"))
""")
    assert lines[0] == "1 False"
    assert "OutOfMemoryError: the task stay was ended for memory once (max_retries=0" in lines[1]
    assert lines[1].endswith(" 1")


def test_one_worker_is_ended_and_no_other_before_it_is_gone(drive):
    lines = drive("""
init(num_cpus=4, log_to_driver=False)
from taskloom._pool.process import WorkerProcess
refs = [stay.remote(f"t{n}") for n in range(4)]
for n in range(4): wait_for_file(f"t{n}")
killed = []
real = WorkerProcess.kill
def lame(worker):
    killed.append(worker.pid)
    if len(killed) > 1 or released: real(worker)
released = []
WorkerProcess.kill = lame
source.share = 0.99
while not killed: time.sleep(0.005)
wait_for_looks(20)
print(len(killed))
released.append(1)
source.share = 0.5
os.kill(killed[0], signal.SIGKILL)
open("open", "w").close()
print(ray.get(refs))
""")
    assert lines == ["1", "['t0', 't1', 't2', 't3']"]


def test_the_driver_is_never_the_victim_and_nobody_is_when_it_would_not_help(drive):
    lines = drive("""
init(log_to_driver=False)
ref = stay.remote("a")
wait_for_file("a")
source.held = {os.getpid(): 90 * GIB, int(open("a").read()): GIB // 2}
source.rss_bytes = lambda pid: source.held.get(pid, 1)
source.share = 0.99  # 4 GiB too much, and the workers hold less
wait_for_looks(3)
open("open", "w").close()
print(ray.get(ref), attempts("a"))
""")
    assert lines == ["a 1"]


def test_an_idle_worker_that_holds_much_goes_first(drive):
    lines = drive("""
init(log_to_driver=False)
pids = ray.get([ray.remote(lambda: (time.sleep(0.2), os.getpid())[1]).remote() for _ in "ab"])
ref = stay.remote("a")
wait_for_file("a")
(busy,) = map(int, open("a").read().split())
(idle,) = set(pids) - {busy}
source.held = {idle: 12 * GIB}
source.share = lambda: 0.99 if alive(idle) else 0.5
while alive(idle): time.sleep(0.005)
open("open", "w").close()
print(ray.get(ref), attempts("a"))
""")
    assert lines == ["a 1"]


def test_the_kernel_s_own_kill_is_called_by_its_name(drive):
    lines = drive("""
init(config={"task_oom_retries": 0}, log_to_driver=False)
ref = stay.remote("a")
wait_for_file("a")
source.kills = 1
os.kill(int(open("a").read()), signal.SIGKILL)
print(outcome(ref).splitlines()[0])
""")
    assert lines[0].startswith("OutOfMemoryError: the task stay was ended for memory once")
    assert "was killed by the kernel because memory had run out" in lines[0]


def test_each_kill_of_the_kernel_explains_one_death(drive):
    lines = drive("""
init(config={"task_oom_retries": 0}, log_to_driver=False)
refs = [stay.options(max_retries=0).remote(name) for name in "ab"]
wait_for_file("a"), wait_for_file("b")
source.kills = 1
for name in "ab": os.kill(int(open(name).read()), signal.SIGKILL)
print(sorted(outcome(ref).partition(":")[0] for ref in refs))
""")
    assert lines == ["['OutOfMemoryError', 'WorkerCrashedError']"]


def test_a_kill_by_nobody_knows_whom_is_a_crash_with_a_remark(drive):
    lines = drive("""
init(log_to_driver=False)
ref = stay.options(max_retries=0).remote("a")
wait_for_file("a")
source.share = 0.9
wait_for_looks(3)
os.kill(int(open("a").read()), signal.SIGKILL)
print(outcome(ref).splitlines()[0])
""")
    assert lines[0].startswith("WorkerCrashedError")
    assert "shortly before, it held 10.00 GiB, and 90.00 GiB of 100.00 GiB (90.0%)" in lines[0]
    assert "memory may be the reason" in lines[0]


def test_coroutines_are_tried_again_as_well(drive):
    lines = drive("""
@ray.remote
async def snooze(n):
    import asyncio
    with open(f"s{n}", "a") as file: file.write("x\\n")
    while not os.path.exists("open"): await asyncio.sleep(0.005)
    return n

init(log_to_driver=False)
refs = [snooze.remote(n) for n in range(3)]
for n in range(3): wait_for_file(f"s{n}")
source.share = lambda: 0.99 if attempts("s0") == 1 else 0.5
while attempts("s0") < 2: time.sleep(0.005)
open("open", "w").close()
print(ray.get(refs))
""")
    assert lines == ["[0, 1, 2]"]


def test_nobody_looks_while_nothing_runs(drive):
    lines = drive("""
init()
ray.get([ray.remote(lambda: time.sleep(0.1)).remote() for _ in range(2)])
monitor = peek()._engine._memory
call = peek()._portal.call
while not call(lambda: monitor.idle): time.sleep(0.005)
looks = source.looks
assert looks
time.sleep(0.2)  # twenty times the interval
print(source.looks - looks, call(lambda: monitor.idle))
ray.get(stay.remote("a")) if open("open", "w").close() else None
ref = ray.remote(lambda: time.sleep(0.2)).remote()
ray.get(ref)
print(source.looks > looks)
""")
    assert lines == ["0 True", "True"]


def test_a_task_that_was_sent_and_has_not_begun_keeps_the_monitor_awake(drive):
    lines = drive("""
from taskloom._pool.pool import Pool
init(num_cpus=1)
monitor, call = peek()._engine._memory, peek()._portal.call
while not call(lambda: monitor.idle): time.sleep(0.005)
begun = Pool.started_seq
Pool.started_seq = lambda pool, worker: 0  # as seen from here, nothing ever begins
ref = stay.remote("a")
wait_for_file("a")
wait_for_looks(5)
Pool.started_seq = begun
print(call(lambda: monitor.idle))
open("open", "w").close()
print(ray.get(ref))
""")
    assert lines == ["False", "a"]


def test_zero_milliseconds_turn_the_monitor_off(drive):
    lines = drive("""
init(config={"memory_monitor_refresh_ms": 0})
source.share = 0.99
ray.get(ray.remote(lambda: time.sleep(0.5)).remote())
print(source.looks)
""")
    assert lines == ["0"]


def test_workers_volunteer_when_the_kernel_looks_for_a_victim(drive):
    lines = drive("""
init()
read = lambda: open("/proc/self/oom_score_adj").read().strip()
print(ray.get(ray.remote(read).remote()), read() == sys.argv[1])
""", args=[Path("/proc/self/oom_score_adj").read_text().strip()])  # fmt: skip
    assert lines == ["1000 True"]


# -- really -------------------------------------------------------------------------------------

MIB = 1 << 20
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Path]:
    """A control group with 400 MiB; the program moves itself into it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a control group")
    if (V1 / "memory.limit_in_bytes").exists() or (V1 / "cgroup.procs").exists():
        parent, limit = V1, "memory.limit_in_bytes"
    elif "memory" in (V2 / "cgroup.subtree_control").read_text().split():
        parent, limit = V2, "memory.max"
    else:
        pytest.skip("there is no control group for memory here")
    try:
        group = Path(tempfile.mkdtemp(prefix="taskloom-test-", dir=parent))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / limit).write_text(str(400 * MIB))
        if parent == V2:
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        group.rmdir()
        pytest.skip(f"the limit of a control group cannot be set: {error}")
    yield group
    # Emptied by the end of the program; the kernel may need a moment to notice.
    for process in (group / "cgroup.procs").read_text().split():
        (parent / "cgroup.procs").write_text(process)
    group.rmdir()


HOG = """
@ray.remote
def hog(pause_s):
    with open("tries", "a") as file: file.write("x\\n")
    kept = []
    for _ in range(100):
        kept.append(bytearray(b"x") * (10 << 20))
        time.sleep(pause_s)
    return len(kept)

def work():
    ray.get([ray.remote(lambda n: n).remote(n) for n in range(20)])

with open(sys.argv[1] + "/cgroup.procs", "w") as file: file.write(str(os.getpid()))
"""


def test_a_task_that_eats_the_memory_of_its_container_is_ended_before_the_kernel_does(
    drive, container
):
    lines = drive(
        HOG
        + """
ray.init(num_cpus=2, _system_config={"memory_usage_threshold": 0.7, "task_oom_retries": 1})
ref = hog.remote(0.02)
work()
print(outcome(ref))
print(attempts("tries"))
work()
print(MemoryUsage().kernel_kills())
""",
        args=[str(container)],
    )
    assert lines[0].startswith("OutOfMemoryError: the task hog was ended for memory 2 times")
    assert "was ended because memory was running out" in lines[0]
    assert str(container) in lines[0]
    assert lines[-2:] == ["2", "0"]


def test_when_the_kernel_is_faster_the_error_says_so_and_the_driver_lives_FAULTS_17(
    drive, container
):
    lines = drive(
        HOG
        + """
ray.init(num_cpus=2, _system_config={"memory_monitor_refresh_ms": 0, "task_oom_retries": 1})
ref = hog.remote(0)
work()
print(outcome(ref).splitlines()[0])
print(attempts("tries"))
work()
print("alive", MemoryUsage().kernel_kills())
""",
        args=[str(container)],
    )
    assert lines[0].startswith("OutOfMemoryError: the task hog was ended for memory 2 times")
    assert "was killed by the kernel because memory had run out" in lines[0]
    assert lines[1:] == ["2", "alive 2"]
