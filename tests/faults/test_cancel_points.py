"""``cancel`` at every point of a task's life has one answer (FAULTS.md rows 60-62, P10).

Each point is a function that brings a task there and returns its ref.  The table says, for a
plain and for a forced cancel: what the ref becomes, how often the body saw an interrupt, and
whether the worker lives on.  Afterwards all CPUs are back and the pool works.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import psutil
import pytest
from tests.gates import Gate, eventually

import taskloom
from taskloom.exceptions import TaskCancelledError

CANCELLED = "TaskCancelledError"


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@pytest.fixture(autouse=True)
def everything_is_given_back(tl):
    yield
    assert eventually(lambda: tl.available_resources().get("CPU") == 2.0)
    assert tl.get([tl.remote(abs).remote(-n) for n in range(20)]) == list(range(20))


def outcome(tl: ModuleType, ref: Any) -> object:
    try:
        return tl.get(ref, timeout=20)
    except BaseException as error:
        return type(error).__name__.partition("(")[0]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- the points ---------------------------------------------------------------------------------


def waiting_for_a_dependency(tl, gate):
    held = tl.remote(gate.enter).remote("held")
    gate.wait_for("held")
    return tl.remote(lambda _: gate.note("started")).remote(held)


def waiting_for_a_cpu(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote("held")
    gate.wait_for("held")
    ref = tl.remote(gate.note).remote("started")
    del held
    return ref


def handed_out_but_not_started(tl, gate):
    """It stands behind another one on the same worker, which cannot hear that it is long."""

    fifo = os.path.join(gate._directory, "fifo")
    os.mkfifo(fifo)

    @tl.remote(num_cpus=2)
    def short(n):
        if n == "long":
            gate.note("held")
            # C code that holds the GIL, until somebody opens the other end.
            ctypes.PyDLL(None).open(fifo.encode(), os.O_RDONLY)
        if n == "victim":
            gate.note("started")

    tl.get([short.remote(n) for n in range(100)])
    refs = [short.remote(n) for n in ("long", "victim")]
    gate.wait_for("held")
    return refs[1]


def body_of(gate: Gate, stay: Callable[[], object]) -> Callable[[], object]:
    """A task that notes its start and each interrupt."""

    def body() -> object:
        try:
            gate.note("started")  # in here: once it can be seen, the interrupt may come
            return stay()
        except BaseException as error:
            gate.note(type(error).__name__)
            raise

    return body


def start(tl, gate, stay, **options):
    ref = tl.remote(**options)(body_of(gate, stay)).remote()
    gate.wait_for("started")
    return ref


def spin():
    while True:
        pass


def spin_in_frames():
    def inner(n):
        return n and inner(n - 1)

    while True:
        inner(50)


def in_python_code(tl, gate):
    return start(tl, gate, spin)


def in_calls_of_functions(tl, gate):
    return start(tl, gate, spin_in_frames)


def in_a_sleep(tl, gate):
    return start(tl, gate, lambda: time.sleep(1000))


def in_a_lock(tl, gate):
    return start(tl, gate, lambda: [lock := threading.Lock(), lock.acquire(), lock.acquire()])


def in_join_of_a_thread(tl, gate):
    def stay():
        thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
        thread.start()
        thread.join()

    return start(tl, gate, stay)


def in_get(tl, gate):
    ref = start(tl, gate, lambda: taskloom.get(taskloom.remote(time.sleep).remote(1000)))
    # Else its child may be cancelled before it asks for it, and it ends before it is told.
    assert eventually(lambda: "waits there for sleep" in ref.why())
    return ref


def in_wait(tl, gate):
    ref = start(tl, gate, lambda: taskloom.wait([taskloom.remote(time.sleep).remote(1000)]))
    assert eventually(lambda: "waits there for sleep" in ref.why())
    return ref


def with_retries_left(tl, gate):
    return start(tl, gate, lambda: time.sleep(1000), max_retries=-1, retry_exceptions=True)


def busy():
    deadline = time.monotonic() + 0.005
    while time.monotonic() < deadline:
        pass


class Noisy:
    """Spends its time where Python swallows exceptions."""

    def __del__(self):
        for _ in range(3):
            busy()


def in_finalizers(tl, gate):
    def stay():
        while True:  # only what comes between two of them is heard
            Noisy()
            busy()

    return start(tl, gate, stay)


class Plain:
    pass


def in_callbacks_of_weak_references(tl, gate):
    def stay():
        while True:  # what is raised in the callback is swallowed; what comes between is not
            thing = Plain()
            reference = weakref.ref(thing, lambda _ref: busy())
            del thing, reference
            busy()

    return start(tl, gate, stay)


def while_refs_come_and_go(tl, gate):
    def stay():
        f = taskloom.remote(abs)
        while True:
            taskloom.get([f.remote(-1) for _ in range(5)])
            taskloom.put(1)

    return start(tl, gate, stay)


class SlowToLoad:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __reduce__(self):
        return _load_slowly, (self.gate,)


def _load_slowly(gate: Gate) -> None:
    gate.note("started")
    time.sleep(1000)


def while_its_arguments_are_loaded(tl, gate):
    ref = tl.remote(lambda _: gate.note("body")).remote([SlowToLoad(gate)])
    gate.wait_for("started")
    return ref


class SlowToPickle(SlowToLoad):
    def __reduce__(self):
        self.gate.note("started")
        time.sleep(1000)
        return "never"


def while_its_result_is_pickled(tl, gate):
    ref = tl.remote(lambda: [SlowToPickle(gate)]).remote()
    gate.wait_for("started")
    return ref


@dataclass(frozen=True)
class Point:
    """What a plain cancel does at a point, and a forced one."""

    arrive: Callable[[ModuleType, Gate], Any]
    interrupts: int = 1
    started: int = 1


POINTS = [
    Point(waiting_for_a_dependency, interrupts=0, started=0),
    Point(waiting_for_a_cpu, interrupts=0, started=0),
    Point(handed_out_but_not_started, interrupts=0, started=0),
    Point(while_its_arguments_are_loaded, interrupts=0),
    Point(while_its_result_is_pickled, interrupts=0),
    Point(in_python_code),
    Point(in_calls_of_functions),
    Point(in_a_sleep),
    Point(in_a_lock),
    Point(in_join_of_a_thread),
    Point(in_get),
    Point(in_wait),
    Point(with_retries_left),
    Point(in_finalizers),
    Point(in_callbacks_of_weak_references),
    Point(while_refs_come_and_go),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.arrive.__name__)
@pytest.mark.parametrize("how", ["once", "twice", "force", "then force"])
def test_a_cancel_has_one_answer_wherever_it_meets_the_task_CAN_1(tl, gate, point, how):
    ref = point.arrive(tl, gate)
    pids = gate.pids("started")
    tl.cancel(ref, force=how == "force")
    if how == "twice":
        tl.cancel(ref)
    elif how == "then force":
        tl.cancel(ref, force=True)

    assert outcome(tl, ref) == CANCELLED
    if how in ("once", "twice") and point.interrupts:
        gate.wait_for("KeyboardInterrupt")
    if pids and how == "force":
        assert eventually(lambda: not lives(pids[0]))
    elif pids and how != "then force":  # the plain one may have been enough
        assert lives(pids[0])
    gate.open()
    if os.path.exists(fifo := os.path.join(gate._directory, "fifo")):
        os.close(os.open(fifo, os.O_WRONLY))
    assert eventually(lambda: tl.available_resources().get("CPU") == 2.0)
    assert gate.count("started") == point.started, "one attempt, or none"
    assert gate.count("body") == 0
    if how in ("once", "twice"):
        assert gate.count("KeyboardInterrupt") == point.interrupts
    assert outcome(tl, ref) == CANCELLED, "and it stays so"


# -- what does not listen -----------------------------------------------------------------------


def test_c_code_that_holds_the_gil_is_not_interrupted_but_its_ref_is_cancelled(tl, gate):
    def stay():
        ctypes.PyDLL(None).usleep(700_000)
        gate.note("through")
        time.sleep(1000)

    ref = start(tl, gate, stay)
    tl.cancel(ref)
    begin = time.monotonic()
    assert outcome(tl, ref) == CANCELLED
    assert not gate.count("through") or time.monotonic() - begin > 0.5

    gate.wait_for("KeyboardInterrupt")  # when C is through


class Caller:
    """An actor of either kind: a method that holds the GIL, and one that notes its start."""

    def hold(self, gate, fifo):
        gate.note("held")
        ctypes.PyDLL(None).open(fifo.encode(), os.O_RDONLY)

    def note(self, gate):
        gate.note("started")


class AsyncCaller:
    async def hold(self, gate, fifo):
        gate.note("held")
        ctypes.PyDLL(None).open(fifo.encode(), os.O_RDONLY)

    async def note(self, gate):
        gate.note("started")


async def hold_the_loop(gate, fifo):
    gate.note("held")
    ctypes.PyDLL(None).open(fifo.encode(), os.O_RDONLY)


async def note_the_start(gate):
    gate.note("started")


@pytest.mark.parametrize("kind", ["coroutine", "serial", "threaded", "async"])
def test_what_was_handed_to_somebody_who_hears_nothing_does_not_start_once_it_is_cancelled(
    tl, gate, tmp_path, kind
):
    """C code holds the GIL: neither the loop nor the control thread turns before it is through."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    if kind == "coroutine":
        hold, note = tl.remote(hold_the_loop), tl.remote(note_the_start)
    else:
        options = {"max_concurrency": 4} if kind == "threaded" else {}
        actor = tl.remote(AsyncCaller if kind == "async" else Caller).options(**options).remote()
        hold, note = actor.hold, actor.note
    blocker = hold.remote(gate, fifo)
    gate.wait_for("held")
    victims = [note.remote(gate) for _ in range(3)]
    tl.wait(victims, timeout=0.05)  # time to be handed to the worker; none can be done
    for ref in victims:
        tl.cancel(ref)
    assert [outcome(tl, ref) for ref in victims] == [CANCELLED] * 3
    os.close(os.open(fifo, os.O_WRONLY))

    tl.get(blocker, timeout=20)
    last = note.remote(gate)
    tl.get(last, timeout=20)
    assert gate.count("started") == 1, "the last one"


def test_a_task_that_computes_lets_its_worker_listen_each_millisecond(tl):
    assert tl.get(tl.remote(sys.getswitchinterval).remote()) <= 0.001


def test_force_ends_c_code_that_holds_the_gil(tl, gate):
    ref = start(tl, gate, lambda: ctypes.PyDLL(None).sleep(1000))
    (pid,) = gate.pids("started")
    tl.cancel(ref, force=True)

    assert outcome(tl, ref) == CANCELLED
    assert eventually(lambda: not lives(pid))


def test_force_on_a_task_that_is_about_to_hold_the_gil_ends_it(tl, gate):
    """Told to end between two tasks, when the worker's control thread does not get to run."""

    @tl.remote(max_retries=0)
    def hold(n):
        gate.note(str(n))
        ctypes.PyDLL(None).sleep(1000)

    for n in range(20):
        ref = hold.remote(n)
        time.sleep(n / 4000)
        tl.cancel(ref, force=True)
        assert outcome(tl, ref) == CANCELLED
        assert eventually(lambda: tl.available_resources().get("CPU") == 2.0)


def test_what_swallows_the_interrupt_is_cancelled_and_its_worker_comes_back_FAULTS_62(tl, gate):
    def stay():
        for _ in range(2):
            try:
                time.sleep(0.5)
            except BaseException:
                gate.note("swallowed")
        return "value"

    ref = start(tl, gate, stay)
    tl.cancel(ref)

    assert outcome(tl, ref) == CANCELLED
    gate.wait_for("swallowed")
    assert eventually(lambda: tl.available_resources().get("CPU") == 2.0)
    assert gate.count("swallowed") == 1
    assert outcome(tl, ref) == CANCELLED, "a value that comes too late is dropped"


def test_a_task_that_cleans_up_is_not_interrupted_again(tl, gate):
    def stay():
        try:
            time.sleep(1000)
        finally:
            gate.note("cleaning")
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                taskloom.get(taskloom.put(1))
            gate.note("clean")

    ref = start(tl, gate, stay)
    tl.cancel(ref)
    gate.wait_for("cleaning")
    tl.cancel(ref)

    gate.wait_for("clean")
    assert outcome(tl, ref) == CANCELLED


def test_a_task_that_cleans_up_may_be_forced(tl, gate):
    def stay():
        try:
            time.sleep(1000)
        finally:
            gate.note("cleaning")
            time.sleep(1000)

    ref = start(tl, gate, stay)
    tl.cancel(ref)
    (pid,) = gate.wait_for("cleaning")
    tl.cancel(ref, force=True)

    assert eventually(lambda: not lives(pid))


def test_a_refs_last_word_is_the_one_that_came_first(tl):
    """A result and a cancel cross: the ref has the one or the other, the same for all."""
    f = tl.remote(lambda n: n)
    for n in range(200):
        ref = f.remote(n)
        time.sleep(n % 10 / 20_000)
        tl.cancel(ref)
        first = outcome(tl, ref)
        assert first in (n, CANCELLED)
        assert outcome(tl, ref) == first == outcome(tl, ref)


# -- coroutines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sleep", "spin", "time.sleep", "await ref", "finally"])
@pytest.mark.parametrize("force", [False, True])
def test_a_cancelled_coroutine_hears_of_it_wherever_it_is(tl, gate, where, force):
    @tl.remote
    async def coroutine():
        try:
            if where == "finally":
                try:
                    raise KeyError
                finally:
                    gate.note("in")
                    await asyncio.sleep(1000)
            gate.note("in")
            if where == "sleep":
                await asyncio.sleep(1000)
            elif where == "await ref":
                await taskloom.remote(time.sleep).remote(1000)
            elif where == "time.sleep":
                time.sleep(1000)  # no other coroutine moves meanwhile
            else:
                spin()
        except asyncio.CancelledError:
            gate.note("heard")
            raise

    @tl.remote
    async def neighbour():
        gate.note("neighbour")
        while not gate.count("leave"):
            await asyncio.sleep(0.01)
        return "stayed"

    other = neighbour.remote()
    gate.wait_for("neighbour")
    ref = coroutine.remote()
    gate.wait_for("in")
    tl.cancel(ref, force=force)

    assert outcome(tl, ref) == CANCELLED
    gate.wait_for("heard")
    gate.note("leave")
    assert outcome(tl, other) == "stayed"
    assert gate.count("heard") == 1


def test_no_coroutine_hears_of_the_cancel_of_another(tl):
    @tl.remote
    async def short(n):
        for _ in range(n % 4):
            await asyncio.sleep(0)
        return n

    rng = random.Random(1)
    for _ in range(30):
        refs = [short.remote(n) for n in range(30)]
        victims = set(rng.sample(range(30), 10))
        for n in victims:
            tl.cancel(refs[n])
        for n, ref in enumerate(refs):
            assert outcome(tl, ref) in ((n, CANCELLED) if n in victims else (n,))


# -- families -----------------------------------------------------------------------------------


def family(tl: ModuleType, gate: Gate) -> Any:
    """A task, two children, four grandchildren; all of them wait."""

    def node(depth):
        try:
            gate.note(f"level {depth}")
            if depth == 2:
                time.sleep(1000)
            taskloom.get([taskloom.remote(num_cpus=0)(node).remote(depth + 1) for _ in range(2)])
        except KeyboardInterrupt:
            gate.note("interrupted")
            raise

    ref = tl.remote(num_cpus=0)(node).remote(0)
    gate.wait_for("level 2", 4)
    return ref


def test_a_family_is_cancelled_down_to_the_grandchildren_CAN_2(tl, gate):
    ref = family(tl, gate)
    tl.cancel(ref)

    assert outcome(tl, ref) == CANCELLED
    gate.wait_for("interrupted", 7)


def test_a_family_that_is_forced_loses_its_workers_CAN_2(tl, gate):
    ref = family(tl, gate)
    pids = gate.pids("level 2")
    tl.cancel(ref, force=True)

    assert outcome(tl, ref) == CANCELLED
    assert eventually(lambda: not any(map(lives, pids)))
    assert gate.count("interrupted") <= 3, "parents may hear of their children first"


def test_without_recursive_only_the_parent_is_interrupted_CAN_2(tl, gate):
    ref = family(tl, gate)
    tl.cancel(ref, recursive=False)

    assert outcome(tl, ref) == CANCELLED
    gate.wait_for("interrupted")
    left = gate.pids("level 1") + gate.pids("level 2")
    assert all(map(lives, left))
    for pid in left:  # nobody else ends them in this test
        os.kill(pid, 9)


def test_a_task_cancels_its_sibling_CAN_1(tl, gate):
    @tl.remote
    def sleeper():
        gate.note("asleep")
        time.sleep(1000)

    @tl.remote
    def killer(refs):
        gate.wait_for("asleep")
        taskloom.cancel(refs[0])
        try:
            taskloom.get(refs[0])
        except TaskCancelledError:
            return "done"

    ref = sleeper.remote()
    assert outcome(tl, killer.remote([ref])) == "done"
    assert outcome(tl, ref) == CANCELLED


def test_a_task_that_cancels_itself_is_cancelled_CAN_1(tl, gate):
    @tl.remote
    def suicide(refs):
        taskloom.cancel(refs[0])
        time.sleep(1000)

    @tl.remote
    def tell(box):
        while not gate.count("ref"):
            time.sleep(0.001)

    @tl.remote
    def outer():
        import cloudpickle

        def body():
            while not os.path.exists(path):
                time.sleep(0.001)
            with open(path, "rb") as file:
                taskloom.cancel(cloudpickle.load(file))
            time.sleep(1000)

        path = os.path.join(gate._directory, "ref")
        ref = taskloom.remote(num_cpus=0)(body).remote()
        with open(path + "~", "wb") as file:
            cloudpickle.dump(ref, file)
        os.rename(path + "~", path)
        try:
            taskloom.get(ref)
        except TaskCancelledError:
            return "cancelled"

    assert outcome(tl, outer.remote()) == "cancelled"


def test_the_cancel_of_a_value_does_nothing_CAN_1(tl):
    ref = tl.put("kept")
    for force in (False, True):
        tl.cancel(ref, force=force)
    assert tl.get(ref) == "kept"


# -- no other task hears of it (FAULTS 61) ------------------------------------------------------


@pytest.mark.parametrize("force", [False, True], ids=["plain", "forced"])
def test_thousands_of_short_tasks_and_no_stray_interrupt_FAULTS_61(tl, force):
    """Each task that is not cancelled must answer, in one attempt: nothing else may hit it."""

    @tl.remote(max_retries=0)
    def work(n, spins):
        total = 0
        for k in range(spins):
            total += k
        if n % 7 == 0:
            taskloom.get(taskloom.put(n))
        if n % 11 == 0:
            time.sleep(0)
        return n

    rng = random.Random(61)
    rounds, size = (30, 100) if not force else (15, 40)
    cancelled = answered = 0
    for _ in range(rounds):
        refs = [work.remote(n, rng.choice((0, 100, 3000, 30_000))) for n in range(size)]
        victims = rng.sample(range(size), size // 4 if not force else 3)
        for n in victims:
            if rng.random() < 0.3:
                time.sleep(rng.random() / 500)
            tl.cancel(refs[n], force=force)
            if rng.random() < 0.3:
                tl.cancel(refs[n], force=force)
        for n, ref in enumerate(refs):
            found = outcome(tl, ref)
            if n in victims:
                assert found in (n, CANCELLED)
                cancelled += found == CANCELLED
            else:
                assert found == n
                answered += 1
    assert cancelled
    assert answered >= rounds * size // 2
    assert eventually(
        lambda: gc.collect() >= 0 and tl.available_resources() == tl.cluster_resources()
    )


@pytest.mark.parametrize("coroutine", [False, True])
def test_an_import_is_finished_before_the_cancel_strikes(tl, gate, tmp_path, coroutine):
    """A module that is imported halfway may never load again in that worker."""
    module = f"slow_to_import_{coroutine}"
    (tmp_path / f"{module}.py").write_text(
        "import time, taskloom\n"
        "from tests.gates import Gate\n"
        f"gate = Gate({str(gate._directory)!r})\n"
        "gate.note('started')\n"
        "context = taskloom.get_runtime_context()\n"
        "start = time.monotonic()\n"
        "while not context.is_canceled() and time.monotonic() < start + 0.5:\n"
        "    time.sleep(0.001)\n"
        "gate.note('imported')\n",
        encoding="utf-8",
    )

    def load():
        sys.path.insert(0, str(tmp_path))
        try:
            __import__(module)
            while True:
                time.sleep(0.001)
        finally:
            sys.path.remove(str(tmp_path))

    async def load_in_loop():
        load()

    ref = tl.remote(load_in_loop if coroutine else load).remote()
    gate.wait_for("started")
    tl.cancel(ref)
    assert outcome(tl, ref) == CANCELLED
    assert eventually(lambda: gate.count("imported") == 1)
