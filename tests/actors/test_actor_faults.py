"""Actors under real kills, in programs of their own: FAULTS rows 95 to 100."""

from __future__ import annotations

import pytest

START = """
import asyncio, os, random, signal, sys, threading, time
import taskloom as ray
from taskloom.exceptions import *
ray.init(num_cpus=2)

def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)
"""


def drive(run_driver, text, **options):
    done = run_driver(START + text, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_a_constructor_that_raises_crashes_or_hangs_95(run_driver):
    drive(
        run_driver,
        """
@ray.remote
class Bad:
    def __init__(self, how):
        if how == "raise": raise RuntimeError("the constructor")
        if how == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hang": time.sleep(3600)
    def hello(self): ...

for how, text in (("raise", "the constructor"), ("crash", "SIGSEGV")):
    bad = Bad.options(name=how).remote(how)
    for ref in (bad.hello.remote(), bad.hello.remote()):
        try: ray.get(ref, timeout=20)
        except ActorDiedError as error: assert text in str(error), error
        else: raise AssertionError
    Bad.options(name=how).remote("fine")
hanging = Bad.remote("hang")
ref = hanging.hello.remote()
try: ray.get(ref, timeout=0.2)
except GetTimeoutError: pass
ray.kill(hanging)
try: ray.get(ref, timeout=20)
except ActorDiedError as error: assert "kill()" in str(error)
""",
    )


REPORTS = """
@ray.remote
class Ledger:
    def __init__(self): self.seen = []
    def report(self, number): self.seen.append(number)
    def all(self): return self.seen

@ray.remote
class Reporter:
    def __init__(self, ledger, path): self.ledger, self.path = ledger, path
    def report(self, number):
        with open(self.path, "a") as file: file.write(f"{number}\\n")
        ray.get(self.ledger.report.remote(number))
        return number
    def pid(self): return os.getpid()

restarts, retries = map(int, sys.argv[1:])
ledger = Ledger.remote()
reporter = Reporter.options(max_restarts=restarts, max_task_retries=retries).remote(ledger, "runs")
pid = ray.get(reporter.pid.remote())
refs = [reporter.report.remote(number) for number in range(1000)]
eventually(lambda: len(ray.get(ledger.all.remote())) > 100)
os.kill(pid, signal.SIGKILL)
outcomes = []
for number, ref in enumerate(refs):
    try: outcomes.append(ray.get(ref, timeout=30))
    except RayActorError as error: outcomes.append(type(error).__name__)
seen = ray.get(ledger.all.remote())
runs = [int(line) for line in open("runs")]
"""


@pytest.mark.parametrize("retries", ["0", "-1"])
def test_reports_of_an_actor_that_is_killed_without_restarts_96(run_driver, retries):
    drive(
        run_driver,
        REPORTS
        + """
assert outcomes.count("ActorDiedError") + sum(isinstance(o, int) for o in outcomes) == 1000
done = [o for o in outcomes if isinstance(o, int)]
assert done == list(range(len(done))) and len(done) < 1000
assert set(done) <= set(seen) and len(seen) == len(set(seen)), "none doubled"
assert runs == sorted(set(runs))
try: ray.get(reporter.pid.remote())
except ActorDiedError as error: assert "SIGKILL" in str(error)
else: raise AssertionError
""",
        args=["0", retries],
    )


@pytest.mark.parametrize("restarts", ["1", "-1"])
def test_reports_of_an_actor_that_is_restarted_without_retries_96(run_driver, restarts):
    drive(
        run_driver,
        REPORTS
        + """
lost = [number for number, o in enumerate(outcomes) if o == "ActorUnavailableError"]
assert len(lost) <= 64
assert all(o in (number, "ActorUnavailableError") for number, o in enumerate(outcomes))
assert runs == sorted(set(runs)), "at most once, in order"
assert len(seen) == len(set(seen))
assert set(range(1000)) - set(lost) <= set(seen), "what was not lost was reported"
""",
        args=[restarts, "0"],
    )


@pytest.mark.parametrize("restarts", ["1", "-1"])
def test_reports_of_an_actor_that_is_restarted_with_retries_96(run_driver, restarts):
    drive(
        run_driver,
        REPORTS
        + """
assert outcomes == list(range(1000)), "all numbers are there"
assert set(seen) == set(range(1000))
firsts = list(dict.fromkeys(runs))
assert firsts == list(range(1000)), "in order, also across the restart"
""",
        args=[restarts, "-1"],
    )


def test_an_actor_that_is_killed_again_and_again_loses_no_report_96(run_driver):
    drive(
        run_driver,
        """
@ray.remote(max_restarts=-1, max_task_retries=-1)
class Reporter:
    def report(self, number):
        with open("runs", "a") as file: file.write(f"{number} {os.getpid()}\\n")
        time.sleep(0.001)
        return number

reporter = Reporter.remote()
refs = [reporter.report.remote(number) for number in range(400)]
killed = set()
def last_pid():
    try: return int(open("runs").read().split()[-1])
    except (FileNotFoundError, IndexError, ValueError): return 0
while len(killed) < 8:
    eventually(lambda: last_pid() not in {0, *killed} or ray.wait([refs[-1]], timeout=0)[0])
    pid = last_pid()
    if pid in killed: break
    killed.add(pid)
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: pass
assert len(killed) == 8
assert ray.get(refs, timeout=60) == list(range(400))
runs = [int(line.split()[0]) for line in open("runs")]
assert list(dict.fromkeys(runs)) == list(range(400))
""",
    )


def test_handles_in_many_places_97(run_driver):
    drive(
        run_driver,
        """
@ray.remote
class Quiet:
    def pid(self): return os.getpid()
    def slow(self, path):
        open(path, "w").close()
        eventually(lambda: os.path.exists("go"))
        return "slow"

@ray.remote
def use(box): return ray.get(box[0].pid.remote())

before = ray.available_resources()
one = Quiet.remote()
two = one
pid = ray.get(use.remote([one]))
del one
assert ray.get(two.pid.remote()) == pid
ref = two.slow.remote("begun")
eventually(lambda: os.path.exists("begun"))
del two
assert os.path.exists(f"/proc/{pid}")
open("go", "w").close()
assert ray.get(ref) == "slow"
eventually(lambda: not os.path.exists(f"/proc/{pid}"))

cycle = {"handle": Quiet.remote()}
cycle["self"] = cycle
pid = ray.get(cycle["handle"].pid.remote())
del cycle
import gc; gc.collect()
eventually(lambda: not os.path.exists(f"/proc/{pid}"))
eventually(lambda: ray.available_resources() == before)
""",
    )


def test_an_async_actor_under_pressure_98(run_driver):
    drive(
        run_driver,
        """
@ray.remote(max_concurrency=10000)
class Async:
    def __init__(self): self.count, self.all_here = 0, asyncio.Event()
    async def come(self, number):
        self.count += 1
        if self.count == 10000: self.all_here.set()
        await self.all_here.wait()
        return number
    async def block(self): time.sleep(0.3); return "blocked"
    async def ping(self): return "pong"
    async def background(self):
        async def fail(): raise ValueError("in the background")
        asyncio.create_task(fail())
    async def cancelled(self):
        try: await asyncio.sleep(3600)
        except asyncio.CancelledError: self.count = -1; raise
    async def get_count(self): return self.count

actor = Async.remote()
refs = [actor.come.remote(number) for number in range(10000)]
assert ray.get(refs, timeout=50) == list(range(10000))
assert ray.get([actor.block.remote(), actor.ping.remote()], timeout=20) == ["blocked", "pong"]
ray.get(actor.background.remote())
assert ray.get(actor.ping.remote(), timeout=20) == "pong"
ref = actor.cancelled.remote()
ray.get(actor.ping.remote())
ray.cancel(ref)
try: ray.get(ref)
except TaskCancelledError: pass
eventually(lambda: ray.get(actor.get_count.remote()) == -1)
""",
    )


def test_a_call_of_itself_is_an_error_at_once_99(run_driver):
    drive(
        run_driver,
        """
@ray.remote
class Self:
    def outer(self, me): return ray.get(me[0].inner.remote())
    def inner(self): ...
actor = Self.remote()
begin = time.monotonic()
try: ray.get(actor.outer.remote([actor]), timeout=20)
except DeadlockError as error: assert "Self.inner" in str(error)
else: raise AssertionError
assert time.monotonic() - begin < 10
""",
    )


def test_the_errors_at_the_edges_100(run_driver):
    drive(
        run_driver,
        """
@ray.remote(max_pending_calls=1)
class Named:
    def stay(self): time.sleep(3600)

def raises(error, call):
    try: call()
    except error as found: return found
    raise AssertionError(error)

named = Named.options(name="n").remote()
ref = named.stay.remote()
raises(PendingCallsLimitExceeded, named.stay.remote)
assert isinstance(raises(ActorAlreadyExistsError, Named.options(name="n").remote), ValueError)
raises(ValueError, lambda: ray.get_actor("unknown"))
ray.kill(named); ray.kill(named)
raises(ActorDiedError, lambda: ray.get(ref, timeout=20))
raises(ActorDiedError, lambda: ray.get(named.stay.remote(), timeout=20))
raises(ValueError, lambda: ray.get_actor("n"))
""",
    )


@pytest.mark.parametrize(
    "end", ["pass", "ray.shutdown()", "os._exit(0)", "os.kill(os.getpid(), 9)"]
)
def test_nothing_of_an_actor_is_left_when_its_driver_ends_P5(run_driver, end):
    done = run_driver(
        START
        + f"""
@ray.remote
class Busy:
    def work(self): time.sleep(3600)
    async def wait(self): await asyncio.sleep(3600)
@ray.remote(max_concurrency=2, lifetime="detached", name="d")
class Threads:
    def work(self): time.sleep(3600)
    def ready(self): return True
busy, threads = Busy.remote(), Threads.remote()
refs = [busy.work.remote(), busy.wait.remote(), threads.work.remote()]
ray.get(threads.ready.remote())
{end}
""",
        timeout=60,
    )
    assert done.returncode in (0, -9), done.stderr


def test_the_parent_of_an_actor_dies_and_the_actor_with_its_last_handle(run_driver):
    drive(
        run_driver,
        """
@ray.remote
class Child:
    def pid(self): return os.getpid()

@ray.remote
class Parent:
    def __init__(self): self.child = Child.remote()
    def pids(self): return os.getpid(), ray.get(self.child.pid.remote())

parent = Parent.remote()
mine, child = ray.get(parent.pids.remote())
os.kill(mine, signal.SIGKILL)
eventually(lambda: not os.path.exists(f"/proc/{child}"))
""",
    )


def test_actors_for_which_there_are_no_descriptors_wait_for_others_to_end(run_driver):
    drive(
        run_driver,
        """
import resource
@ray.remote
class Small:
    def number(self, n): return n

ray.get(Small.remote().number.remote(0))
used = len(os.listdir("/proc/self/fd"))
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
actors = [Small.remote() for _ in range(20)]
refs = {actor.number.remote(n): n for n, actor in enumerate(actors)}
done = 0
first, _ = ray.wait(list(refs), num_returns=3, timeout=30)
_, waiting = ray.wait(list(refs), num_returns=20, timeout=2)
assert waiting, "the limit was not met"
del first, waiting
while refs:
    (ref,), _ = ray.wait(list(refs), timeout=30)
    n = refs.pop(ref)
    assert ray.get(ref) == n
    actors[n] = None
    del ref
    done += 1
assert done == 20
""",
    )


def test_actors_outlive_nothing_when_the_zygote_dies(run_driver):
    drive(
        run_driver,
        """
@ray.remote(max_restarts=1)
class Small:
    def pids(self): return os.getpid(), os.getppid()

actor = Small.remote()
pid, zygote = ray.get(actor.pids.remote())
os.kill(zygote, signal.SIGKILL)
eventually(lambda: not os.path.exists(f"/proc/{pid}"))
again, other = ray.get(actor.pids.options(max_task_retries=-1).remote(), timeout=40)
assert again != pid and other != zygote
""",
    )


def test_actors_that_wait_for_one_another_are_told_so_99(run_driver):
    drive(
        run_driver,
        """
@ray.remote
class Party:
    def meet(self, other, me):
        return ray.get(other[0].answer.remote(me, ray.put(None)))
    def answer(self, asker, _):
        return ray.get(asker[0].idle.remote())
    def idle(self): return "idle"

a, b = Party.remote(), Party.remote()
begin = time.monotonic()
try: ray.get(a.meet.remote([b], [a]), timeout=30)
except DeadlockError as error: assert "stands behind" in str(error), error
else: raise AssertionError
assert time.monotonic() - begin < 20
assert ray.get([a.idle.remote(), b.idle.remote()], timeout=20) == ["idle", "idle"]
""",
    )
