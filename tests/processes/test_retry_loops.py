"""Tasks that fail for ever, and GILs that are never given back."""

from __future__ import annotations

HEAD = """
import ctypes, os, sys, time, threading
import taskloom as ray
from taskloom.exceptions import *

def outcome(ref):
    try:
        return ray.get(ref, timeout=25)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
"""


def drive(run_driver, body: str) -> list[str]:
    done = run_driver(HEAD + body)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_task_that_holds_the_gil_is_killed_when_its_time_and_its_grace_are_over(run_driver):
    lines = drive(
        run_driver,
        """
ray.init(num_cpus=1, cancel_grace=0.3)

@ray.remote(timeout=0.3, max_retries=0)
def hold():
    ctypes.PyDLL(None).sleep(1000)

print(outcome(hold.remote()))
print(ray.get(ray.remote(lambda: "the slot is back").remote()))
""",
    )
    assert lines == [
        "TaskTimeoutError: The task hold ran longer than its timeout of 0.3 s (attempt 1)",
        "the slot is back",
    ]


def test_a_coroutine_that_blocks_its_loop_does_not_take_others_along(run_driver):
    lines = drive(
        run_driver,
        """
ray.init(num_cpus=1, cancel_grace=0.5)

@ray.remote(max_retries=0)
async def block(gil):
    (ctypes.PyDLL(None) if gil else time).sleep(1000)

@ray.remote(max_retries=0)
async def good():
    return os.getpid()

for gil in (False, True):
    pid = ray.get(good.remote())
    ref = block.options(timeout=0.5).remote(gil)
    print(outcome(ref).partition(":")[0])
    # An interrupt ends the sleep; who holds the GIL does not hear it, and is killed.
    print((ray.get(good.remote()) != pid) == gil)
""",
    )
    assert lines == ["TaskTimeoutError", "True"] * 2


def test_a_thousand_tasks_that_fail_for_ever_leave_the_driver_at_rest_FAULTS_67(run_driver):
    lines = drive(
        run_driver,
        """
path = sys.argv[0] + ".count"
open(path, "w").close()

@ray.remote(max_retries=-1, retry_exceptions=True)
def fail():
    with open(path, "a") as file: file.write("x")
    raise ValueError

ray.init(num_cpus=2)
refs = [fail.remote() for _ in range(100)]
while os.path.getsize(path) < 100 * 10: time.sleep(0.01)   # the pauses are long by now
time.sleep(2)
before = os.path.getsize(path)
time.sleep(3)
print((os.path.getsize(path) - before) / 100 / 3 < 4)    # attempts of one task in a second
for ref in refs: ray.cancel(ref)
print(set(outcome(ref).partition(":")[0] for ref in refs))
""",
    )
    assert lines == ["True", "{'TaskCancelledError'}"]


def test_a_task_that_always_kills_its_worker_starts_no_storm(run_driver):
    lines = drive(
        run_driver,
        """
path = sys.argv[0] + ".count"
open(path, "w").close()

@ray.remote(max_retries=-1)
def die():
    with open(path, "a") as file: file.write("x")
    os._exit(1)

ray.init(num_cpus=2)
ref = die.remote()
while os.path.getsize(path) < 10: time.sleep(0.01)
before = os.path.getsize(path)
time.sleep(3)
print(os.path.getsize(path) - before < 12)
ray.cancel(ref)
print(outcome(ref).partition(":")[0])
print(ray.get(ray.remote(max_retries=0)(lambda: "good").remote()))
""",
    )
    assert lines == ["True", "TaskCancelledError", "good"]


def test_an_engine_with_a_far_deadline_sleeps_like_any_other(run_driver):
    lines = drive(
        run_driver,
        """
ray.init(num_cpus=1)
f = ray.remote(timeout=1000)(lambda: 1)
ray.get([f.remote() for _ in range(100)])
time.sleep(0.5)

def switches():
    total = 0
    for task in os.listdir("/proc/self/task"):
        if int(task) == os.getpid(): continue
        for line in open(f"/proc/self/task/{task}/status"):
            if line.startswith("voluntary_ctxt_switches"): total += int(line.split()[1])
    return total

before = switches()
time.sleep(2)
print(switches() - before)
""",
    )
    assert int(lines[0]) <= 2


def test_the_error_of_a_crash_says_all_that_is_known(run_driver):
    lines = drive(
        run_driver,
        """
ray.init(num_cpus=1)

@ray.remote(max_retries=1, name="load images")
def die():
    print(os.getpid())
    for n in range(30): print(f"line {n}", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), 11)

print(outcome(die.remote()))
""",
    )
    pids = [line.split()[-1] for line in lines if line.startswith("(load images pid=")]
    text = "\n".join(line for line in lines if not line.startswith("(load images pid="))
    assert text.startswith(
        f"WorkerCrashedError: worker {pids[-1]} was killed by SIGSEGV while it ran load images "
        "(attempt 2 of 2); the last lines of its stderr:"
    )
    assert "line 29" in text
    assert "line 3\n" not in text


def test_an_exception_is_matched_where_it_was_raised_FAULTS_68(run_driver):
    lines = drive(
        run_driver,
        """
path = sys.argv[0] + ".count"
open(path, "w").close()

class Base(Exception): pass

class Stubborn(Base):
    def __reduce__(self): raise RuntimeError("never travels")

@ray.remote(max_retries=2, retry_exceptions=[Base])
def fail():
    with open(path, "a") as file: file.write("x")
    raise Stubborn("no")

ray.init(num_cpus=1)
print(outcome(fail.remote()).partition(":")[0], os.path.getsize(path))
""",
    )
    assert lines[0].endswith(" 3")


def test_a_session_that_ends_in_a_grace_period_leaves_nothing(run_driver):
    lines = drive(
        run_driver,
        """
path = sys.argv[0] + ".in"

@ray.remote(timeout=1000)
def stubborn():
    open(path, "w").close()
    while True:
        try: time.sleep(1000)
        except BaseException: pass

ray.init(num_cpus=1, cancel_grace=1000)
ref = stubborn.remote()
while not os.path.exists(path): time.sleep(0.01)
ray.cancel(ref)
print(outcome(ref).partition(":")[0])
ray.shutdown()
""",
    )
    assert lines == ["TaskCancelledError"]
