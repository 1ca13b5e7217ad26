"""Ways to wait for a ref that belong to somebody else's loop: asyncio, trio, threads.

Everything here stands on the backend's ``subscribe``.  Nothing of the user's runs on an engine
thread: done-callbacks run in the loop that asked for them, callbacks of futures on a thread of
their own.

Who is awaiting is asked of trio first: in its guest mode a trio task runs inside an asyncio
loop, and only trio knows which of the two has the word.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from types import ModuleType
from typing import TYPE_CHECKING, Any

from taskloom._interruptible import nap_s

if TYPE_CHECKING:
    from taskloom.backends.base import Backend, Group
    from taskloom.ref import ObjectRef


def not_ready() -> asyncio.InvalidStateError:
    return asyncio.InvalidStateError("the result is not ready: await the ref or get() it")


def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# -- waiting in a coroutine -------------------------------------------------------------------


def running_trio() -> ModuleType | None:
    """The module trio when the caller runs in a trio task, else None.

    trio is an optional guest: it is never imported from here, and when nobody else has
    imported it, nobody can be running in it.
    """
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    # getattr: some other thread may be in the middle of importing trio.
    lowlevel = getattr(trio, "lowlevel", None)
    in_trio_task = getattr(lowlevel, "in_trio_task", None)
    return trio if in_trio_task is not None and in_trio_task() else None


def has_running_loop() -> bool:
    """True in a coroutine or callback of asyncio or trio."""
    return asyncio._get_running_loop() is not None or running_trio() is not None


def async_waiter() -> Waiter:
    """A new waiter for the async library that runs the caller.

    Raises:
        RuntimeError: none does.
    """
    trio = running_trio()
    return _AsyncioWaiter() if trio is None else _TrioWaiter(trio)


class Waiter:
    """One wait of one coroutine: anybody on any thread may end it, once or more often."""

    __slots__ = ()

    def wake(self) -> None:
        """End the wait.  Never blocks; a loop that has ended is passed over."""
        raise NotImplementedError

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return after :meth:`wake` (also an earlier one), or when time is up."""
        raise NotImplementedError


class _AsyncioWaiter(Waiter):
    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to tell

    def _end(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        if timeout_s is None:
            await self._future
            return
        timer = self._loop.call_later(timeout_s, self._end)
        try:
            await self._future
        finally:
            timer.cancel()


class _TrioWaiter(Waiter):
    __slots__ = ("_event", "_token", "_trio")

    def __init__(self, trio: ModuleType) -> None:
        self._trio = trio
        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def wake(self) -> None:
        try:
            self._token.run_sync_soon(self._event.set)
        except self._trio.RunFinishedError:
            pass  # the program that waited has ended: nobody is left to tell

    async def wait(self, timeout_s: float | None = None) -> None:
        if timeout_s is None:
            await self._event.wait()
            return
        with self._trio.move_on_after(timeout_s):
            await self._event.wait()


def asyncio_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "awaiting an ObjectRef needs a running asyncio or trio event loop"
        ) from None


async def wait_for_some(
    refs: Sequence[ObjectRef[Any]], home: Backend, count: int, timeout_s: float | None
) -> None:
    """Return when ``count`` of ``refs`` are done, or when time is up."""
    waiter = async_waiter()
    arrivals = itertools.count(1)  # next() is atomic: calls may come from more than one thread

    def on_done(_key: int) -> None:
        if next(arrivals) == count:
            waiter.wake()

    stop = home.subscribe(refs, on_done)
    try:
        await waiter.wait(timeout_s)
    finally:
        stop()


def on_alarm_here(group: Group, callback: Callable[[], None]) -> None:
    """Have ``callback()`` called in the running loop, of asyncio or trio, by the group's alarm."""
    trio = running_trio()
    if trio is None:
        group.on_alarm(lambda _key: callback(), asyncio_loop())
        return
    token = trio.lowlevel.current_trio_token()

    def ring(_key: int) -> None:
        try:
            token.run_sync_soon(callback)
        except trio.RunFinishedError:
            pass  # the program that waited has ended: nobody is left to tell

    group.on_alarm(ring, None)


async def let_others_run() -> None:
    """Give the loop one turn."""
    await async_waiter().wait(0)


# -- a coroutine that runs beside its caller --------------------------------------------------


def run_beside(work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Waiter]:
    """Start ``work()`` as a task of the running async library.

    ``work`` must not raise anything but its own cancellation.

    Returns:
        A function, callable from any thread, that cancels the task; the waiter it returns
        ends when the task has ended.  It must be called from the task's own loop when that
        waiter is to be waited for.
    """
    trio = running_trio()
    return _beside_in_asyncio(work) if trio is None else _beside_in_trio(work, trio)


def _beside_in_asyncio(work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Waiter]:
    loop = asyncio_loop()
    task = loop.create_task(work())
    ended = _AsyncioWaiter()
    task.add_done_callback(lambda _task: ended._end())

    def stop() -> Waiter:
        try:
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:
            pass  # the loop is closed, and the task with it
        return ended

    return stop


def _beside_in_trio(
    work: Callable[[], Coroutine[Any, Any, None]], trio: ModuleType
) -> Callable[[], Waiter]:
    scope = trio.CancelScope()
    ended = _TrioWaiter(trio)
    token = trio.lowlevel.current_trio_token()

    async def guarded() -> None:
        try:
            with scope:
                await work()
        finally:
            ended._event.set()

    # A system task: a nursery cannot be held open by an iterator that its user may abandon.
    trio.lowlevel.spawn_system_task(guarded, context=copy_context())

    def stop() -> Waiter:
        try:
            token.run_sync_soon(scope.cancel)
        except trio.RunFinishedError:
            pass  # the program has ended, and the task with it
        return ended

    return stop


# -- callbacks in an asyncio loop -------------------------------------------------------------
# They are rare, so refs carry no slot for them.  The table of a loop is touched by that loop's
# thread alone; tables of loops that were closed with callbacks pending go when a new loop comes.

_Entries = list[tuple[Callable[..., object], Callable[[], None]]]
_tables: dict[asyncio.AbstractEventLoop, dict[Any, _Entries]] = {}
_tables_lock = threading.Lock()


def add_done_callback(
    ref: ObjectRef[Any],
    home: Backend,
    callback: Callable[[ObjectRef[Any]], object],
    context: Context | None,
) -> None:
    loop = asyncio.get_running_loop()
    context = copy_context() if context is None else context
    entry: list[tuple[Callable[..., object], Callable[[], None]]] = []

    def run(_key: int) -> None:
        # Through the loop once more, so that an error of the callback is the loop's to report.
        loop.call_soon(callback, ref, context=context)
        if entry:
            _forget_entry(loop, ref, entry[0])

    pending = not home.is_done(ref)
    stop = home.subscribe((ref,), run, loop)
    if pending:  # else: nothing to remove any more, as with a Future that is done
        entry.append((callback, stop))
        _table_of(loop).setdefault(ref, []).append(entry[0])


def remove_done_callback(ref: ObjectRef[Any], callback: Callable[[ObjectRef[Any]], object]) -> int:
    running = asyncio._get_running_loop()
    loops = list(_tables) if running is None else [running]
    removed = 0
    for loop in loops:
        for entry in list(_tables.get(loop, {}).get(ref, ())):
            if entry[0] == callback:
                entry[1]()
                _forget_entry(loop, ref, entry)
                removed += 1
    return removed


def _table_of(loop: asyncio.AbstractEventLoop) -> dict[Any, _Entries]:
    table = _tables.get(loop)
    if table is None:
        with _tables_lock:
            for known in [known for known in _tables if known.is_closed()]:
                del _tables[known]
            table = _tables[loop] = {}
    return table


def _forget_entry(
    loop: asyncio.AbstractEventLoop,
    ref: ObjectRef[Any],
    entry: tuple[Callable[..., object], Callable[[], None]],
) -> None:
    table = _tables.get(loop, {})
    entries = table.get(ref, [])
    if entry in entries:
        entries.remove(entry)
        if not entries:
            del table[ref]


# -- concurrent.futures -----------------------------------------------------------------------


class RefFuture(concurrent.futures.Future[Any]):
    """A future that takes the outcome of a ref: attached once, settled when the ref is done."""

    def __init__(self) -> None:
        super().__init__()
        self._attached: tuple[ObjectRef[Any], Backend] | None = None
        self._stop: Callable[[], None] | None = None
        # Whoever pops it tells those who wait that the future runs or is cancelled: the
        # standard library wants that said exactly once.
        self._announcement = [True]

    def attach(self, ref: ObjectRef[Any], home: Backend) -> None:
        """Settle with the outcome of ``ref`` as soon as there is one."""
        self._attached = ref, home
        if home.is_done(ref):
            self._settle()
            return
        # Setting a result runs the user's callbacks, so it must not happen on an engine thread.
        # That thread is started now: once the interpreter ends, none can be started any more.
        callback_thread.start()
        self._stop = home.subscribe((ref,), lambda _key: callback_thread.run(self._settle))
        if not self._announcement:  # settled before it was known how to stop
            self._stop = None

    def running(self) -> bool:
        """Always False: a ref does not tell (REF-5)."""
        return False

    def cancel(self) -> bool:
        """Cancel the future; the task goes on (REF-5)."""
        if not super().cancel():
            return False
        stop = self._stop
        self._detach()
        if stop is not None:
            stop()
        self._announce()
        return True

    def result(self, timeout: float | None = None) -> Any:
        return super().result(self._sleep(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._sleep(timeout))

    def _sleep(self, timeout: float | None) -> float | None:
        """Wait where Ctrl-C is heard; how many seconds the standard library may wait after it."""
        left_s = self._yield_cpus(timeout)
        until = None if left_s is None else time.monotonic() + left_s
        while (nap := nap_s(left_s)) != left_s and not self.done():
            try:
                super().exception(nap)
            except concurrent.futures.CancelledError:
                break
            except TimeoutError:
                if until is not None:
                    left_s = until - time.monotonic()
        return left_s

    def _yield_cpus(self, timeout: float | None) -> float | None:
        """In a task, wait where the engine sees it: it lends the task's CPUs meanwhile."""
        attached = self._attached
        if attached is None or not attached[1].is_worker or self.done():
            return timeout
        ref, home = attached
        done, _ = home.wait((ref,), 1, timeout)
        return timeout if done else 0

    def _settle(self) -> None:
        attached = self._attached
        if attached is None:
            return  # cancelled meanwhile
        ref, home = attached
        value: object = None
        failure: BaseException | None = None
        try:
            value = home.result(ref)
        except BaseException as error:
            failure = error
        self._detach()
        self._finish(value, failure)
        failure = None  # its traceback holds this frame: a circle

    def _announce(self) -> bool:
        """True for the one who is to set the outcome now."""
        try:
            self._announcement.pop()
        except IndexError:
            return False
        return self.set_running_or_notify_cancel()

    def _finish(self, value: object, failure: BaseException | None) -> None:
        if self.done() and not self.cancelled():
            return  # the user has set his future himself: his is the last word
        if not self._announce():
            return
        if failure is None:
            self.set_result(value)
        else:
            self.set_exception(failure)

    def _detach(self) -> None:
        # The value lives in the future from now on; the object and the subscription may go.
        self._attached = None
        self._stop = None


def ref_future(ref: ObjectRef[Any], home: Backend) -> RefFuture:
    future = RefFuture()
    future.attach(ref, home)
    return future


class _CallbackThread:
    """One daemon thread, started for the first future, that runs what users attached to them."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, function: Callable[[], None]) -> None:
        """Call ``function`` soon, after those handed in before it.  Never blocks for long."""
        self._queue.put(function)
        self.start()

    def start(self) -> None:
        """Start the thread unless it runs.  Python has none left for a program that is ending."""
        if self._thread is None or not self._thread.is_alive():  # a fork leaves the thread behind
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(
                        target=self._serve, name="taskloom-callbacks", daemon=True
                    )
                    self._thread.start()

    def _serve(self) -> None:
        while True:
            function = self._queue.get()
            try:
                function()
            except concurrent.futures.InvalidStateError:
                pass  # the user set or cancelled his future himself: his is the last word
            except BaseException as error:
                # A callback's SystemExit, say.  The thread serves other people's futures too.
                threading.excepthook(
                    threading.ExceptHookArgs(
                        (type(error), error, error.__traceback__, threading.current_thread())
                    )
                )
            del function  # keep no object alive while idle


callback_thread = _CallbackThread()
