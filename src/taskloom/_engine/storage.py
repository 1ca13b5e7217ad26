"""The engine's side of the store: who gets space, what is spilled when it runs out.

Three kinds of threads meet here.  Callers of ``put`` reserve space on their own thread and may
have to wait for it.  The engine's thread adopts what workers wrote, grants them space and chooses
what to spill.  A janitor thread, started when it is first needed, does what is slow: it writes to
disk and gives pages back to the system.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Any, Final

from taskloom import _ids
from taskloom._config import Config
from taskloom._core.node import ObjectRecord
from taskloom._pool.process import WorkerProcess
from taskloom._store.arena import PAGE, padded
from taskloom._store.object_store import ObjectStore, Space
from taskloom._store.spill import (
    FUSED_BYTES,
    SpillDirectory,
    Spilled,
    remove_stale,
    session_directories,
)
from taskloom._store.stored import Block, Parts, Sealed
from taskloom._wire import messages as m
from taskloom._wire.frames import Message, ProtocolError
from taskloom._wire.remote_errors import system_failure
from taskloom.exceptions import ObjectStoreFullError, OutOfDiskError

GRACE_S: Final = 2.0
"""How long somebody waits for space before he hears that there is none (as Ray does)."""
_GONE: Final = b"gone"  # not b"": that is the end of a stream
QUIET_S: Final = 2.0
"""Free space keeps its pages until nobody has asked for space for this long."""
MAX_GRANT_BYTES: Final = 16 * 1024 * 1024
"""A worker that writes values up to this size is given space before it asks."""
GRANT_VALUES: Final = 4
"""For how many values of the last one's size."""


class _Question:
    """A worker's question for space that has no answer yet."""

    def __init__(self, worker: WorkerProcess, message: Message, patience: _Patience) -> None:
        self.worker = worker
        self.message = message
        self.patience = patience


class _Patience:
    """How long somebody waits for ``length`` bytes.

    It is GRACE_S, again and again while values come and go and there would be room if all that
    can be spilled were: a slow disk, or others who were quicker, are no reason to give up.
    """

    def __init__(self, store: ObjectStore, length: int) -> None:
        self._store = store
        self._length = length
        self._freed = store.freed
        self._deadline = time.monotonic() + GRACE_S

    def is_over(self) -> bool:
        now = time.monotonic()
        if now < self._deadline:
            return False
        if self._store.freed == self._freed or not self._may_fit():
            return True
        self._freed = self._store.freed
        self._deadline = now + GRACE_S
        return False

    def _may_fit(self) -> bool:
        store = self._store
        blocks = [reference() for reference in list(store.blocks.values())]
        fast = sum(b.length for b in blocks if b is not None and (b.pinned or b.is_viewed))
        return fast + store.granted + self._length <= store.capacity


class Storage:
    """The store of a session, with everybody who wants something of it.

    Args:
        config: of the session.
        objects: the loom's, by key.
        post: has a message sent to a worker at the end of this tick.
        session_id: what errors name objects by, as refs and ``memory()`` do.
    """

    def __init__(
        self,
        config: Config,
        objects: dict[int, ObjectRecord],
        post: Callable[[WorkerProcess, Message], None],
        session_id: bytes,
    ) -> None:
        self.store = ObjectStore(config.object_store_memory, self._on_released)
        base = config.spill_directory or config.temp_dir
        self._directory = SpillDirectory(base, self._on_released)
        self._objects = objects
        self._post = post
        self._session_id = session_id
        self._loop: AbstractEventLoop | None = None
        self.call_engine: Callable[[Callable[[Any], None], Any], None] = lambda call, arg: None
        self._rung = False
        self._room = threading.Condition()
        self._waiting = 0  # callers' threads that wait for space
        self._questions: list[_Question] = []
        self._granted_to: set[WorkerProcess] = set()  # since it was last asked to give it back
        self._timer: TimerHandle | None = None
        self._trim_timer: TimerHandle | None = None
        self._last_use_s = 0.0
        self._janitor: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._spilling = False
        self._disk_error: Exception | None = None
        self._closed = False

    def attach(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        loop.call_soon(self._look_for_stale)

    def _look_for_stale(self) -> None:
        base = self._directory.base
        if session_directories(base):
            self._have_done(lambda: remove_stale(base))

    # -- callers ------------------------------------------------------------------------------

    def keep(self, parts: Parts) -> Block:
        """Write a value to the store, on the caller's thread.

        Raises:
            ObjectStoreFullError, OutOfDiskError: there is no room for it.
        """
        space = self._reserve(parts.shape.length)
        try:
            return self.store.write(parts, space)
        except OSError as error:
            raise ObjectStoreFullError(
                f"no memory for a value of {parts.shape.size} bytes: {error}"
            ) from error

    def _reserve(self, length: int) -> Space:
        store = self.store
        self._last_use_s = time.monotonic()
        if padded(length, PAGE) > store.capacity:
            raise self._too_large(length)
        space = store.allocate(length)
        if space is not None:
            if store.wants_to_spill() and not self._spilling:
                self.call_engine(self._spill, 0)
            return space
        with self._room:
            self._waiting += 1
            try:
                return self._wait_for_room(length)
            finally:
                self._waiting -= 1

    def _wait_for_room(self, length: int) -> Space:
        self._disk_error = None
        patience = _Patience(self.store, length)
        while (space := self.store.allocate(length)) is None:
            if self._disk_error is not None:
                raise self._out_of_disk(length, self._disk_error)
            if self._closed:
                raise RuntimeError("the taskloom session is closed")
            if not self._spilling and patience.is_over():
                raise self._full(length)
            self.call_engine(self._spill, length)
            # Nobody says when a view goes whose object stays: it can be spilled from then on.
            self._room.wait(GRACE_S / 4)
        return space

    # -- workers ------------------------------------------------------------------------------

    def adopt(self, worker: WorkerProcess, sealed: Sealed) -> Block:
        """What a worker has written is the driver's from now on.

        Raises:
            ProtocolError: the worker was never granted that space.
        """
        block = self.store.adopt(worker.granted, sealed)
        if block is None:
            raise ProtocolError(f"a value at {sealed.offset:#x}, where this worker has no space")
        self._last_use_s = time.monotonic()
        if self.store.wants_to_spill():
            self._spill(0)
        length = sealed.length
        if length <= MAX_GRANT_BYTES and worker.granted.total < length:
            space = self._grant(length)
            if space is not None:
                worker.granted.add(space.offset, space.length)
                self._granted_to.add(worker)
                self._post(worker, (m.GRANT, *space))
        return block

    def _grant(self, length: int) -> Space | None:
        """Space for more values like the last one, where there is plenty."""
        store = self.store
        more = max(length, min(GRANT_VALUES * length, MAX_GRANT_BYTES))
        if store.used + store.granted + more > store.capacity // 2:
            return None
        return store.allocate(more)

    def on_room(self, worker: WorkerProcess, message: Message) -> None:
        """A worker asks for space; it may have to wait for the answer."""
        question = _Question(worker, message, _Patience(self.store, message[2]))
        self._last_use_s = time.monotonic()
        self._disk_error = None
        if not self._try_answer(question):
            self._questions.append(question)
            self._spill(message[2])
            self._look_later()

    def _try_answer(self, question: _Question) -> bool:
        length = question.message[2]
        answer: Any = self.store.allocate(length)
        if answer is not None:
            question.worker.granted.add(answer.offset, answer.length)
            self._granted_to.add(question.worker)
            answer = tuple(answer)
        elif length > self.store.capacity:
            answer = system_failure(self._too_large(length))
        elif self._disk_error is not None:
            answer = system_failure(self._out_of_disk(length, self._disk_error))
        elif not self._spilling and question.patience.is_over():
            answer = system_failure(self._full(length))
        else:
            return False
        _, number, _, running = question.message
        reply = (m.REPLY, number, 0, answer)
        if running > 0:
            self._post(question.worker, reply)
        else:
            question.worker.control.send([reply])
        return True

    def _look_later(self) -> None:
        if self._timer is None and self._questions:
            assert self._loop is not None
            self._timer = self._loop.call_later(GRACE_S / 4, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._spill(max((q.message[2] for q in self._questions), default=0))
        self._serve()
        self._look_later()

    def _serve(self) -> None:
        waiting = [q for q in self._questions if not self._try_answer(q)]
        for question in self._questions:
            question.worker.flush()
        self._questions = waiting

    def _recall(self) -> None:
        """Have workers give back what they were granted and do not write to: somebody waits."""
        workers, self._granted_to = self._granted_to, set()
        for worker in workers:
            worker.control.send([(m.RECALL,)])

    def on_unused(self, worker: WorkerProcess, message: Message) -> None:
        """A worker gives space back.

        Raises:
            ProtocolError: it was never granted it.
        """
        for offset, length, fresh in message[1]:
            if not worker.granted.take(offset, length):
                raise ProtocolError(f"space at {offset:#x} that this worker does not have")
            self.store.give_back(offset, length, fresh=fresh)
        if worker.granted.total:  # it has not read all that it was granted
            self._granted_to.add(worker)
        self.tidy()

    def on_unpin(self, worker: WorkerProcess, message: Message) -> None:
        worker.unpin(message[1])

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        """Its space comes back, and nothing is looked at by it any more."""
        self._questions = [q for q in self._questions if q.worker is not worker]
        self._granted_to.discard(worker)
        if worker.is_dead:  # not while it may still be writing there
            for offset, length in worker.granted.take_all():
                self.store.give_back(offset, length)
        worker.unpin_all()
        self.tidy()

    # -- release ------------------------------------------------------------------------------

    def _on_released(self) -> None:
        """On any thread, from ``__del__``."""
        if not self._rung:
            self._rung = True
            self.call_engine(self.tidy, None)

    def tidy(self, _: object = None) -> None:
        """Take note of what was released; somebody may wait for it."""
        self._rung = False
        store = self.store
        store.tidy()
        # Also when there was nothing: whoever asked for space since has taken note of it, too.
        if self._questions:
            self._serve()
        if self._waiting:
            with self._room:
                self._room.notify_all()
        if self._loop is None or self._closed:
            return
        if self._trim_timer is None and store.warm:
            self._trim_timer = self._loop.call_later(QUIET_S, self._trim)
        if self._directory.has_gone_files:
            self._have_done(self._directory.sweep_files)

    def _trim(self) -> None:
        self._trim_timer = None
        assert self._loop is not None
        if self.store.warm:
            if time.monotonic() - self._last_use_s < QUIET_S:
                self._trim_timer = self._loop.call_later(QUIET_S, self._trim)
            else:
                self._have_done(self.store.trim)

    # -- spilling -----------------------------------------------------------------------------

    def _spill(self, length: int) -> None:
        """Write the oldest values that nobody looks at to disk, until ``length`` bytes fit."""
        if self._spilling or self._closed:
            return
        store = self.store
        store.tidy()
        missing = store.used + store.granted + length - store.capacity
        wanted = max(store.wants_to_spill(), missing)
        if missing > 0 and self._granted_to:
            self._recall()
        if wanted <= 0:
            return
        victims: list[tuple[list[ObjectRecord], Block]] = []
        size = 0
        for reference in list(store.blocks.values()):
            block = reference()
            if block is None or block.pinned or block.is_viewed:
                continue
            records = [
                record
                for key in block.keys
                if (record := self._objects.get(key)) is not None and record.outcome is block
            ]
            if records:
                victims.append((records, block))
                size += block.length
                if size >= max(wanted, min(FUSED_BYTES, store.capacity // 8)):
                    break
        if victims:
            self._spilling = True
            if not self._have_done(lambda: self._write(victims)):
                self._spilling = False

    def _write(self, victims: list[tuple[list[ObjectRecord], Block]]) -> None:
        """In the janitor's thread."""
        memory = memoryview(self.store.arena.mapping())
        spilled: list[Spilled] | None = None
        try:
            spilled = self._directory.write(
                [(memory[block.offset :], block.shape) for _, block in victims]
            )
        except Exception as error:  # whatever it was: somebody waits for the end of it
            self._disk_error = error
        self.call_engine(self._on_written, (victims, spilled))

    def _on_written(
        self, entry: tuple[list[tuple[list[ObjectRecord], Block]], list[Spilled] | None]
    ) -> None:
        victims, spilled = entry
        self._spilling = False
        if spilled is not None:
            for (records, block), copy in zip(victims, spilled, strict=True):
                for record in records:
                    if record.outcome is block:
                        record.outcome = copy
        victims.clear()
        block = None  # type: ignore[assignment]  # what was spilled is free now
        self.store.tidy()
        self._serve()
        with self._room:
            self._room.notify_all()

    def _have_done(self, job: Callable[[], None]) -> bool:
        """Leave a job to the janitor; False when there is none, and never will be this time."""
        if self._janitor is None:
            janitor = threading.Thread(target=self._work, name="taskloom-janitor", daemon=True)
            try:
                janitor.start()
            except RuntimeError as error:  # this user may have no more threads
                self._disk_error = error
                return False
            self._janitor = janitor
        self._jobs.put(job)
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # it must not take the next job along
                sys.excepthook(type(error), error, error.__traceback__)
            job = None

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End of the session: files go, and all memory that nobody views."""
        self._closed = True
        for timer in (self._timer, self._trim_timer):
            if timer is not None:
                timer.cancel()
        if self._janitor is not None:
            self._jobs.put(None)
            self._janitor.join()
        with self._room:
            self._room.notify_all()
        for record in self._objects.values():
            if not record.failed and type(record.outcome) is not bytes:
                record.outcome = _GONE  # refs outlive the session, what they stand for does not
        self.store.close()
        self._directory.close()

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: our copies of the descriptors go."""
        self.store.arena.close()
        self._directory.forget()

    # -- texts --------------------------------------------------------------------------------

    def _too_large(self, length: int) -> ObjectStoreFullError:
        return ObjectStoreFullError(
            f"a value of {_megabytes(length)} is larger than the whole object store "
            f"({_megabytes(self.store.capacity)}): raise init(object_store_memory=...)"
        )

    def _full(self, length: int) -> ObjectStoreFullError:
        return ObjectStoreFullError(
            f"no room for a value of {_megabytes(length)}: {_megabytes(self.store.used)} of "
            f"{_megabytes(self.store.capacity)} are used by values that cannot be spilled because "
            f"somebody looks at them; the largest: {self._largest()}"
        )

    def _out_of_disk(self, length: int, error: Exception) -> OutOfDiskError:
        why = error if isinstance(error, OSError) else repr(error)
        return OutOfDiskError(
            f"no room for a value of {_megabytes(length)}: the object store "
            f"({_megabytes(self.store.capacity)}) is full and values cannot be spilled to "
            f"{self._directory.base}: {why}; the largest: {self._largest()}"
        )

    def _largest(self) -> str:
        blocks = [block for ref in list(self.store.blocks.values()) if (block := ref()) is not None]
        blocks.sort(key=lambda block: block.length, reverse=True)
        return ", ".join(
            f"{self._name(block)} of {_megabytes(block.shape.size)}, "
            + ("viewed by the driver" if block.is_viewed else f"sent to workers {block.pinned} x")
            for block in blocks[:3]
        )

    def _name(self, block: Block) -> str:
        if not block.keys:
            return "an object without a ref"
        return f"ObjectRef({_ids.object_bytes(self._session_id, block.keys[-1]).hex()})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size} bytes"
