"""The floor: the least that a graph of tasks over worker processes can cost in Python.

No engine: forked processes on socketpairs, pickled frames of many tasks, one loop on a thread of
its own, a deque as its inbox and an eventfd as its bell.  A task is a node with a ref, nodes
wait for the refs among their arguments, and that is all.  There are no errors (a task that
raises ends its worker, and that ends the floor), no options, no resources, no cancellation, no
large values, nobody is told anything.  taskloom cannot be faster than this, so the distance to
it is what its features cost.

    caller                          loop thread                        worker
    submit: node -> inbox, ring --> drain, count what is missing
                                    ready nodes -> frame ------------> run, one after another
    get: lock <-------------------- wake <- resolve, dependents <----- frame of results
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import Any, NoReturn

from benchmarks.loops import new_event_loop

BATCH = 64
"""Most tasks of one frame."""
WINDOW = 2 * BATCH
"""Most unanswered tasks of one worker: it never runs dry, and work stays to be shared out."""

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16  # more is mapped afresh for every read: 37 us


class Ref:
    """The future value of one task."""

    __slots__ = ("dependents", "done", "value", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.dependents: list[Node] = []
        self.waiters: list[Wait] = []


class Node:
    """One task in the graph."""

    __slots__ = ("args", "function", "missing", "ref")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.missing = 0
        self.ref = Ref()


class Wait:
    """Somebody who waits for ``missing`` refs and is woken by the loop."""

    __slots__ = ("missing", "refs", "wake")

    def __init__(self, refs: Sequence[Ref], wake: Callable[[], object]) -> None:
        self.refs = refs
        self.wake = wake
        self.missing = 0


class Frames:
    """Cuts a stream of bytes into frames: a length, then a pickle of it."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Generator[Any, None, None]:
        """The objects that are complete with ``data``."""
        if self._buffer:
            data = self._buffer + data
        start, size = 0, len(data)
        view = memoryview(data)
        while size - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
            if size < end:
                break
            yield pickle.loads(view[start + _LENGTH.size : end])
            start = end
        self._buffer = data[start:]


class Worker:
    """One forked process, as its parent sees it."""

    __slots__ = ("frames", "known", "pid", "sock", "unanswered")

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self.frames = Frames()
        self.known: set[Callable[..., Any]] = set()  # functions it has been told the key of
        self.unanswered = 0


class Floor:
    """Two (or more) processes and a loop."""

    def __init__(self, workers: int) -> None:
        self._failure: str | None = None
        self._inbox: deque[Node | Wait] = deque()
        self._rung = False
        self._ready: deque[Node] = deque()
        self._nodes: dict[int, Node] = {}
        self._keys: dict[Callable[..., Any], int] = {}
        self._waits: set[Wait] = set()
        self._next_id = count().__next__
        self._workers: list[Worker] = []
        for _ in range(workers):  # before there is a thread or a loop: a fork copies neither
            self._workers.append(self._fork())
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop: asyncio.AbstractEventLoop = new_event_loop()
        self._loop.add_reader(self._bell, self._on_ring)
        for worker in self._workers:
            self._loop.add_reader(worker.sock.fileno(), self._on_readable, worker)
        self._thread = threading.Thread(target=self._loop.run_forever, name="floor", daemon=True)
        self._thread.start()

    # -- the caller's side ---------------------------------------------------------------------

    def submit(self, function: Callable[..., Any], *args: Any) -> Ref:
        node = Node(function, args)
        self._post(node)
        return node.ref

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        pending = [ref for ref in refs if not ref.done]
        if pending:
            lock = threading.Lock()
            lock.acquire()
            self._post(Wait(pending, lock.release))
            lock.acquire()
            self._check()
        return [ref.value for ref in refs]

    def wait(self, ref: Ref) -> FloorAwaitable:
        """Something to await in any asyncio loop."""
        return FloorAwaitable(self, ref)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        os.close(self._bell)
        for worker in self._workers:
            worker.sock.close()
        for worker in self._workers:
            os.waitpid(worker.pid, 0)

    def _post(self, item: Node | Wait) -> None:
        self._inbox.append(item)
        if not self._rung:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(self._failure)

    # -- the loop's side -----------------------------------------------------------------------

    def _on_ring(self) -> None:
        os.eventfd_read(self._bell)
        # Before the drain: what is appended from now on rings again.
        self._rung = False
        for _ in range(len(self._inbox)):
            item = self._inbox.popleft()
            if isinstance(item, Node):
                self._add(item)
            else:
                self._add_wait(item)
        self._hand_out()

    def _add(self, node: Node) -> None:
        for arg in node.args:
            if isinstance(arg, Ref) and not arg.done:
                arg.dependents.append(node)
                node.missing += 1
        if not node.missing:
            self._ready.append(node)

    def _add_wait(self, wait: Wait) -> None:
        for ref in wait.refs:
            if not ref.done:
                ref.waiters.append(wait)
                wait.missing += 1
        if not wait.missing or self._failure is not None:
            wait.wake()
        else:
            self._waits.add(wait)

    def _hand_out(self) -> None:
        ready, workers = self._ready, self._workers
        while ready:
            worker = workers[0]
            for other in workers:
                if other.unanswered < worker.unanswered:
                    worker = other
            share = -(-len(ready) // len(workers))
            size = min(WINDOW - worker.unanswered, share, BATCH)
            if size <= 0:
                return
            news: list[Callable[..., Any]] = []
            tasks = [self._assign(ready.popleft(), worker, news) for _ in range(size)]
            worker.unanswered += size
            _send(worker.sock, ([(self._keys[function], function) for function in news], tasks))

    def _assign(
        self, node: Node, worker: Worker, news: list[Callable[..., Any]]
    ) -> tuple[int, int, tuple[Any, ...]]:
        """What ``worker`` must know of ``node``; a function that is new to it goes to ``news``."""
        args, function = node.args, node.function
        for arg in args:
            if isinstance(arg, Ref):
                args = tuple([a.value if isinstance(a, Ref) else a for a in args])
                node.args = ()  # the graph keeps no refs of the past
                break
        if function not in worker.known:
            worker.known.add(function)
            self._keys.setdefault(function, len(self._keys))
            news.append(function)
        task_id = self._next_id()
        self._nodes[task_id] = node
        return task_id, self._keys[function], args

    def _on_readable(self, worker: Worker) -> None:
        data = worker.sock.recv(_READ_BYTES)
        if not data:
            self._loop.remove_reader(worker.sock.fileno())
            self._fail(f"a worker of the floor ended (pid {worker.pid})")
            return
        for results in worker.frames.feed(data):
            worker.unanswered -= len(results)
            for task_id, value in results:
                self._resolve(self._nodes.pop(task_id).ref, value)
        self._hand_out()

    def _resolve(self, ref: Ref, value: Any) -> None:
        ref.value = value
        ref.done = True
        for node in ref.dependents:
            node.missing -= 1
            if not node.missing:
                self._ready.append(node)
        ref.dependents = []
        for wait in ref.waiters:
            wait.missing -= 1
            if not wait.missing:
                self._waits.discard(wait)
                wait.wake()
        ref.waiters = []

    def _fail(self, reason: str) -> None:
        self._failure = reason
        for wait in self._waits:
            wait.wake()
        self._waits.clear()

    # -- processes -------------------------------------------------------------------------------

    def _fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            for worker in self._workers:  # else these never see the end of their sockets
                worker.sock.close()
            ours.close()
            _serve(theirs)
        theirs.close()
        return Worker(pid, ours)


class FloorAwaitable:
    """Wakes one asyncio loop when a ref is done."""

    __slots__ = ("_floor", "_ref")

    def __init__(self, floor: Floor, ref: Ref) -> None:
        self._floor = floor
        self._ref = ref

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._ref.done:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            wake = loop.call_soon_threadsafe
            self._floor._post(Wait((self._ref,), lambda: wake(future.set_result, None)))
            yield from future
            self._floor._check()
        return self._ref.value


def _send(sock: socket.socket, frame: object) -> None:
    # A blocking send is enough: WINDOW small tasks always fit into the socket's buffer.
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    sock.sendall(_LENGTH.pack(len(body)) + body)


def _serve(sock: socket.socket) -> NoReturn:
    """The worker: frames in, frames out, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        frames = Frames()
        functions: dict[int, Callable[..., Any]] = {}
        while data := sock.recv(_READ_BYTES):
            for news, tasks in frames.feed(data):
                functions.update(news)
                _send(sock, [(task_id, functions[key](*args)) for task_id, key, args in tasks])
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's may run in this copy of it
