"""Which rows of the matrix hold on a cluster: a few behaviours of each subject, tried for real.

The conformance suite has found what works on which backend (``docs/backends.json``, and the table
in ``docs/backends.md``), but on clusters of its own.  The doctor tries a sample of the same
behaviours, by the same names, on the cluster that it was pointed to.  A probe is a function that
asserts what it expects; where the docs say that a backend refuses it, it must be refused, as the
suite demands, and that is no problem.

A cluster may answer never, so a probe runs in a thread that nobody waits for longer than
``PROBE_S``.  Probes disturb nobody: they ask for one CPU at a time, end no process of others, and
leave nothing behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from taskloom import api, groups
from taskloom.actor import get_actor, kill, method
from taskloom.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    TaskCancelledError,
    TaskTimeoutError,
)
from taskloom.executor import Executor
from taskloom.remote_function import remote
from taskloom.runtime_context import get_runtime_context
from taskloom.task_group import TaskGroup

if TYPE_CHECKING:
    from taskloom.backends._addresses import Address
    from taskloom.ref import ObjectRef

PROBE_S: Final = 20.0
"""How long one probe may take.  On a busy cluster a process for an actor takes seconds."""
ALL_S: Final = 90.0
"""How long all of them may take."""
NAP_S: Final = 60.0
"""How long what is to be cancelled would run."""
LARGE_BYTES: Final = 4 * 2**20

RAY_CLIENT: Final = "ray://"
"""How addresses begin that lead through Ray's client, which can do less than Ray."""

Word = Literal["holds", "refused", "fails", "not tried"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one probe.

    Attributes:
        row: of the matrix.
        word: the verdict.
        text: how long it took, or the words of the error.
        is_problem: it is not what the docs say.
    """

    row: str
    word: Word
    text: str
    is_problem: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """One behaviour that is tried.

    Attributes:
        row: its name in the matrix.
        attempt: shows it, or raises.
        refused_by: the kinds of clusters where ``docs/backends.md`` says that it is refused, and
            ``RAY_CLIENT``.
    """

    row: str
    attempt: Callable[[], None]
    refused_by: frozenset[str]

    def is_refused_at(self, where: Address) -> bool:
        """Whether the docs say so."""
        is_client = where.text.startswith(RAY_CLIENT)
        return where.kind in self.refused_by or (is_client and RAY_CLIENT in self.refused_by)


PROBES: Final[list[Probe]] = []


def probe(
    row: str, *, refused_by: tuple[str, ...] = ()
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Take a function into ``PROBES``."""

    def take(attempt: Callable[[], None]) -> Callable[[], None]:
        PROBES.append(Probe(row, attempt, frozenset(refused_by)))
        return attempt

    return take


def try_all(where: Address) -> Iterator[Verdict]:
    """Try all probes in the session that there is, one after another."""
    until = perf_counter() + ALL_S
    for one in PROBES:
        left_s = min(PROBE_S, until - perf_counter())
        if left_s <= 0:
            text = f"the {ALL_S:g} s for all behaviours are used up"
            yield Verdict(one.row, "not tried", text, is_problem=True)
        else:
            yield try_one(one, left_s, refusal_is_right=one.is_refused_at(where))


def try_one(one: Probe, limit_s: float, *, refusal_is_right: bool) -> Verdict:
    """Try one probe, for so long at most."""
    ends: SimpleQueue[BaseException | None] = SimpleQueue()
    began = perf_counter()
    Thread(target=_attempt, args=(one.attempt, ends), name=f"probe {one.row}", daemon=True).start()
    try:
        error = ends.get(timeout=limit_s)
    except Empty:
        text = f"no answer within {limit_s:.0f} s"
        return Verdict(one.row, "fails", text, is_problem=True)
    if error is None:
        took = f"{(perf_counter() - began) * 1000:.0f} ms"
        return Verdict(one.row, "holds", took, is_problem=False)
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, NotImplementedError):
        return Verdict(one.row, "refused", text, is_problem=not refusal_is_right)
    return Verdict(one.row, "fails", f"{type(error).__name__}: {text}", is_problem=True)


def _attempt(attempt: Callable[[], None], ends: SimpleQueue[BaseException | None]) -> None:
    try:
        attempt()
    except BaseException as error:  # whatever it is, the one who asked is to see it
        ends.put(error)
    else:
        ends.put(None)


def expect(found: object, wanted: object) -> None:
    """Assert it also under ``python -O``."""
    if found != wanted:
        raise AssertionError(f"expected {wanted!r}, found {found!r}")


def expect_error(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    """The error that a call must raise."""
    try:
        found = call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, found {found!r}")


# -- what the probes run there ----------------------------------------------------------------


class Broken(Exception):
    """A user's error, with state of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"it broke with code {code}")
        self.code = code


class Counter:
    """A user's actor."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    @method
    def add(self, more: int = 1) -> int:
        """The new count."""
        self.count += more
        return self.count

    @method
    def fail(self) -> None:
        """Break."""
        raise Broken(3)


class Meeting:
    """A user's actor of coroutines."""

    def __init__(self) -> None:
        self.here = 0
        self.complete = asyncio.Event()

    @method
    async def come(self, wanted: int) -> int:
        """Wait until so many are there at once."""
        self.here += 1
        if self.here == wanted:
            self.complete.set()
        await self.complete.wait()
        return self.here


counters = remote(Counter).options(num_cpus=0)
meetings = remote(Meeting).options(num_cpus=0)


@remote
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@remote
def add_in_a_task(a: int, b: int) -> int:
    """The sum, of a task of this task."""
    total: int = api.get(add.remote(a, b))
    return total


@remote
async def add_in_a_coroutine(a: int, b: int) -> int:
    """The sum, of a task that a coroutine awaits."""
    return await add.remote(a, b)


@remote
def fail(code: int) -> int:
    """Break."""
    raise Broken(code)


@remote(num_cpus=0)
def nap() -> None:
    """Sleep, but come back to Python often: a thread can be interrupted only there.

    Without a CPU: others must run beside it, and the cluster may have one that is free.
    """
    until = time.monotonic() + NAP_S
    while time.monotonic() < until:
        time.sleep(0.02)


@remote
def items(count: int) -> Iterator[int]:
    """A stream that breaks in the end."""
    yield from range(count)
    raise Broken(count)


@remote
async def async_items(count: int) -> AsyncIterator[int]:
    """A stream of a coroutine."""
    for n in range(count):
        yield n


# -- the probes -------------------------------------------------------------------------------


@probe("tasks: a call gives a ref whose value get returns")
def _call() -> None:
    expect(api.get(add.remote(1, 2)), 3)


@probe("tasks: refs as arguments are waited for and arrive as values")
def _refs() -> None:
    expect(api.get(add.remote(add.remote(1, 2), 3)), 6)


@probe("tasks: tasks call tasks and lend their cpu while they wait")
def _nested() -> None:
    expect(api.get(add_in_a_task.remote(1, 2)), 3)


@probe("tasks: a coroutine awaits tasks")
def _coroutine() -> None:
    expect(api.get(add_in_a_coroutine.remote(1, 2)), 3)


@probe("errors: an error is of the users class and keeps its state")
def _error() -> None:
    error = expect_error(Broken, lambda: api.get(fail.remote(7)))
    assert isinstance(error, Broken)
    expect(error.code, 7)


@probe("errors: dependents of a failed task fail with its error and do not run")
def _dependent() -> None:
    failed = fail.remote(7)
    expect_error(Broken, lambda: api.get(add.remote(failed, 1)))
    expect_error(Broken, lambda: api.get(failed))  # or it would be told on stderr


@probe("cancelling: a cancelled ref says so")
def _cancel() -> None:
    ref = nap.remote()
    expect(api.wait([ref], timeout=0.1), ([], [ref]))
    api.cancel(ref)
    expect_error(TaskCancelledError, lambda: api.get(ref))


@probe("options: a task holds the resources that it asks for")
def _resources() -> None:
    held = remote(num_cpus=0.5)(lambda: get_runtime_context().get_assigned_resources())
    expect(api.get(held.remote()), {"CPU": 0.5})


@probe("options: an exception is retried when it was asked for")
def _retries() -> None:
    tried = counters.remote()

    def third_time() -> int:
        count: int = api.get(tried.add.remote())
        if count < 3:
            raise Broken(count)
        return count

    stubborn = remote(max_retries=2, retry_exceptions=[Broken])(third_time)
    expect(api.get(stubborn.remote()), 3)


@probe("options: a time limit interrupts a function that sleeps")
def _time_limit() -> None:
    expect_error(TaskTimeoutError, lambda: api.get(nap.options(timeout=0.2).remote()))


@probe("values: a value of many megabytes travels")
def _large() -> None:
    there = remote(lambda content: content + b"!")
    back = api.get(there.remote(api.put(bytes(LARGE_BYTES))))
    expect(len(back), LARGE_BYTES + 1)


@probe("values: closures lambdas and partials travel")
def _closure() -> None:
    n = 5
    expect(api.get(remote(lambda: n).remote()), 5)


@probe("values: context variables of the caller reach the task")
def _context_variable() -> None:
    # A variable of the module would not travel: those of taskloom's own modules stay at home.
    colour: ContextVar[str] = ContextVar("colour", default="none")
    colour.set("blue")  # for this thread alone

    def look() -> str:
        return colour.get()

    expect(api.get(remote(look).remote()), "blue")


@probe("waiting: wait tells what is done and what is not")
def _wait() -> None:
    sleeping, done = nap.remote(), api.put(1)
    expect(api.wait([sleeping, done], num_returns=1), ([done], [sleeping]))
    expect_error(GetTimeoutError, lambda: api.get(sleeping, timeout=0.1))
    api.cancel(sleeping)


@probe("waiting: as completed raises an error in its place and goes on")
def _as_completed() -> None:
    values = groups.as_completed([fail.remote(7), add.remote(1, 2)])
    found = [_next_of(values) for _ in range(2)]
    expect(sorted(found, key=str), [3, Broken])


def _next_of(values: Iterator[object]) -> object:
    try:
        return next(values)
    except Broken:
        return Broken


@probe("waiting: await gives the value or raises the error")
def _await() -> None:
    async def program() -> int:
        return await add.remote(1, 2)

    expect(asyncio.run(program()), 3)


@probe("groups: a block waits for all its members")
def _group() -> None:
    with TaskGroup() as group:
        refs = [group.remote(add)(n, 1) for n in range(3)]
    expect([ref.done() for ref in refs], [True] * 3)


@probe("groups: the other members are cancelled when one fails")
def _failing_group() -> None:
    def block() -> None:
        with TaskGroup() as group:
            group.remote(nap)()
            group.remote(fail)(7)

    expect_error(ExceptionGroup, block)


@probe("executor: map keeps the order")
def _executor() -> None:
    with Executor() as executor:
        expect(list(executor.map(abs, [-3, -2, -1])), [3, 2, 1])


@probe(
    "streams: an error comes after the items before it and ends the stream",
    refused_by=(RAY_CLIENT,),
)
def _stream() -> None:
    stream: Iterator[Any] = iter(items.remote(2))
    expect([api.get(next(stream)) for _ in range(2)], [0, 1])
    expect_error(Broken, lambda: api.get(next(stream)))


@probe("streams: async generators stream", refused_by=(RAY_CLIENT,))
def _async_stream() -> None:
    expect([api.get(ref) for ref in async_items.remote(3)], [0, 1, 2])


@probe("context: a task knows its name function and id")
def _context() -> None:
    ref = remote(lambda: get_runtime_context().get_task_id()).remote()
    expect(api.get(ref), ref.task_id())


@probe("context: memory lists the values of the session", refused_by=("ray", "dask"))
def _memory() -> None:
    ref = api.put(bytes(LARGE_BYTES))
    expect(ref.hex() in {one.object_id for one in api.memory().objects}, True)


@probe("actors: an actor keeps its state and runs calls in order")
def _actor() -> None:
    counter = counters.remote(10)
    expect(api.get([counter.add.remote() for _ in range(3)]), [11, 12, 13])
    expect_error(Broken, lambda: api.get(counter.fail.remote()))
    expect(api.get(counter.add.remote()), 14)


@probe("actors: an async actor runs calls side by side")
def _async_actor() -> None:
    meeting = meetings.remote()
    expect(api.get([meeting.come.remote(5) for _ in range(5)]), [5] * 5)


@probe("actors: a killed actor answers no more and its name is free")
def _kill() -> None:
    name = f"taskloom doctor {time.time_ns()}"
    counter = counters.options(name=name).remote()
    expect(api.get(get_actor(name).add.remote()), 1)
    kill(counter)
    expect_error(ActorDiedError, lambda: api.get(counter.add.remote()))


@probe("actors: kill may restart", refused_by=("dask",))
def _restart() -> None:
    counter = counters.options(max_restarts=1).remote()
    expect(api.get(counter.add.remote()), 1)
    kill(counter, no_restart=False)
    # Nobody waits for a kill to arrive: the old actor may answer once more.
    while _answer(counter.add.remote) != 1:
        time.sleep(0.05)


def _answer(call: Callable[[], ObjectRef[Any]]) -> object:
    """What an actor answers; None while it is not there."""
    try:
        return api.get(call())
    except ActorUnavailableError:
        return None
