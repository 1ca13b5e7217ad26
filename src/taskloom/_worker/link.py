"""A worker's line to the driver: what goes out, who reads what comes in, which refs live here.

Three kinds of thread use it.  The *main* thread runs tasks and reads the data stream.  The
*control* thread sleeps on the control stream; it never runs user code.  Any other thread, and
the event loop of a LOOP worker, may send, and hears answers through the control thread.

Interrupts: a cancelled task gets a KeyboardInterrupt from a signal handler in the main thread.
It must not strike while this module has a message half sent, so the handler asks ``shielded``
first and leaves a note in ``deferred``.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from taskloom._bell import Bell
from taskloom._wire import messages as m
from taskloom._wire.frames import FrameReader, Message, encode
from taskloom._wire.together import gathered

GRACE_S: Final = 0.2
"""How long a worker may take to end by itself when the driver has hung up."""

QUIET_S: Final = 1
"""A worker that has had nothing to do for this long collects its garbage."""

TICKS_MS: Final = (20, 23, 17, 26, 19, 29, 16)
"""How soon an interrupt that was not heard is repeated.

Not always the same: a task that does the same thing every 20 ms would be met at the same place
each time, and if that is in a finalizer, never be interrupted.
"""

LINGER_MS: Final = 1
"""How long what a generator yields may wait for more of it, to travel together."""

BURST_S: Final = 0.000_5
"""A call that comes so soon after something was sent is taken for one of many."""

MANY_POSTS: Final = 64
"""A loop that answers more calls in one turn sends in between: the driver has something to do while
the worker still has something (measured: a third faster)."""

GIVE_WAY_S: Final = 0.000_2
"""For how long a thread steps aside for the control thread."""

HEED_S: Final = 2
"""How long a word that the driver has announced is waited for."""


class Borrowed:
    """What this worker knows of one object: how many refs live here, and its outcome if seen."""

    __slots__ = ("count", "key", "outcome", "polls")

    def __init__(self, key: int) -> None:
        self.key = key
        self.polls = 0  # how often somebody asked whether it is done
        self.count = 0
        self.outcome: Any = None


class Request:
    """A question to the driver, and whoever waits for the answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.answer: Any = None


class _Watch:
    """Whoever is told of objects one by one, and of how many still."""

    __slots__ = ("left", "notice")

    def __init__(self, notice: Callable[[int, Any], None], left: int) -> None:
        self.notice = notice
        self.left = left


class DriverGone(BaseException):
    """The driver has closed the data stream: the worker ends."""


class Link:
    """The line.

    Args:
        data: the stream for tasks and results.
        control: the stream for what a busy worker must hear.
        told: one number, in a page shared with the driver: see ``_wire.zygote_orders``.
    """

    def __init__(self, data: socket.socket, control: socket.socket, told: Sequence[int]) -> None:
        self._data = data
        self.told = told
        self.heard = 0  # what ``told`` was when the last such message was sent
        self._control = control
        self._reader = FrameReader()
        self.out: deque[Message] = deque()
        self._flushed_at = 0.0
        self.lock = threading.RLock()  # of a thread that a finalizer interrupts, too
        self._flusher = 0  # the thread that sends now
        self._flush_again = False  # a finalizer in its middle has asked for that
        self._bell = Bell()
        self.main_thread = threading.get_ident()
        self.cpus = 1  # that the session may use
        self.main_reads = True  # False in a LOOP worker: its main thread runs an event loop
        self.records: dict[int, Borrowed] = {}
        self.dropped: deque[int] = deque()  # refs that were collected: ObjectRef.__del__
        self._finished: deque[int] = deque()  # stored values that nobody views any more
        self.on_recall: Callable[[], None] = lambda: None
        self.on_grant: Callable[[int, int, bool], None] = lambda offset, length, fresh: None
        self.lingering = False  # somebody has asked for a flush before long
        self._hurry = False  # and somebody for one now
        self._sleeping = False  # the main thread waits for the driver
        self._limited = False  # for QUIET_S at most
        self._request_ids = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._watches: dict[int, _Watch] = {}
        self.shielded = False
        self.deferred = False
        self.current_seq: Callable[[], int] = lambda: 0
        self.seq_of_thread: Callable[[], int] = lambda: 0  # of the call that is this thread's
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_returned: Callable[[int], None] = lambda high: None
        self.on_cancelled: Callable[[], bool] = lambda: False
        self.on_tick: Callable[[], bool] = lambda: False  # asked while ``ticking``: go on?
        self.ticking = False
        self.on_control: Callable[[Message], None] = lambda message: None

    # -- sending ------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Have a message sent with the next flush."""
        self.out.append(message)

    def post_soon(self, message: Message) -> None:
        """Have a message sent before long, whatever this thread does next."""
        self.out.append(message)
        self._hurry = True
        self._bell.ring()

    def post_call(self, message: Message) -> None:
        """The same for a call that the caller has made; he is shielded.

        One of many does not go alone: each would wake the control thread here and the driver there
        (measured: a nested task costs all processes together 17 us where it cost 20).
        """
        self.out.append(message)
        if time.perf_counter() - self._flushed_at > BURST_S:
            self._hurry = True
            self._bell.ring()
        elif self.has_many_posts:
            self.flush()
        elif not self.lingering:
            self.flush_before_long()

    def flush_before_long(self) -> None:
        """Have what is posted sent in a millisecond, whatever this thread does next."""
        self.lingering = True
        self._bell.ring()

    @property
    def has_many_posts(self) -> bool:
        """True when it is time for a flush, whatever else is to be done."""
        return len(self.out) >= MANY_POSTS

    @property
    def has_posts(self) -> bool:
        """True when something waits for the next flush."""
        return bool(self.out)

    def flush(self) -> None:
        """Send all that was posted."""
        if self.out or self.dropped or self._finished:
            thread = threading.get_ident()
            if self._flusher == thread:  # it comes from a finalizer that a collection has run there
                self._flush_again = True
                return
            # Not ``with``: it costs twice as much.  Where a signal may interrupt, the caller is
            # shielded.
            self.lock.acquire()
            self._flusher = thread
            try:
                self._flush_locked()
                while self._flush_again:
                    self._flush_again = False
                    self._flush_locked()
            finally:
                self._flusher = 0
                self.lock.release()

    def _flush_locked(self) -> None:
        out = self.out
        # First of all: what is dropped from here on may have been borrowed by what goes later.
        dropped = len(self.dropped)
        self._flushed_at = time.perf_counter()
        messages = [out.popleft()] if len(out) == 1 else [out.popleft() for _ in range(len(out))]
        if len(messages) > 1:
            messages = gathered(messages)
        # Last of all: whatever was borrowed anew is among the messages before it.
        if dropped:
            released = self._forget_dropped(dropped)
            if released:
                messages.append((m.RELEASE, released))
        finished = self._finished
        if finished:
            messages.append((m.UNPIN, [finished.popleft() for _ in range(len(finished))]))
        if messages:
            for piece in encode(messages):
                self._send(piece)

    def _send(self, piece: Any) -> None:
        view = piece
        while True:
            try:
                sent = self._data.send(view)
            except BlockingIOError:
                # uvloop makes the descriptors it watches non-blocking; sending blocks all the same.
                poller = select.poll()
                poller.register(self._data, select.POLLOUT)
                poller.poll()
            except OSError as error:
                raise DriverGone from error
            else:
                if sent == len(view):
                    return
                view = memoryview(view).cast("B")[sent:]

    # -- refs that live here ------------------------------------------------------------------

    def borrow(self, key: int, *, announce: bool) -> Borrowed:
        """Count one more ref to ``key``; tells the driver when it is the first."""
        with self.lock:
            record = self.records.get(key)
            if record is None:
                record = self.records[key] = Borrowed(key)
                if announce:
                    self.out.append((m.BORROW, (key,)))
            record.count += 1
            return record

    def borrow_new(self, key: int) -> Borrowed:
        """The same for the first ref to what this worker has just named: nobody else has it."""
        record = self.records[key] = Borrowed(key)
        record.count = 1
        return record

    def drop(self, key: int) -> None:
        """A ref was collected; takes no lock."""
        self.dropped.append(key)
        if self._sleeping:
            self._bell.ring()

    def finish(self, pin: int) -> None:
        """Nobody here views a stored value any more; takes no lock."""
        self._finished.append(pin)
        if self._sleeping:
            self._bell.ring()

    def _forget_dropped(self, count: int) -> list[int]:
        released = []
        dropped = self.dropped
        for _ in range(count):
            key = dropped.popleft()
            record = self.records[key]
            record.count -= 1
            if not record.count:
                del self.records[key]
                released.append(key)
        return released

    # -- asking -------------------------------------------------------------------------------

    def ask(self, op: int, *content: Any) -> Any:
        """Send a request and block until the driver answers it."""
        while True:
            answer = self._ask_once(op, content)
            if answer is not None:
                return answer
            # No real answer is None: the task that asks was cancelled.  It hears so once; what it
            # asks while it cleans up is asked again.
            if self.on_cancelled():
                self.deferred = False
                raise KeyboardInterrupt

    def _ask_once(self, op: int, content: tuple[Any, ...]) -> Any:
        number = next(self._request_ids)
        main = threading.get_ident() == self.main_thread
        in_main = main and self.main_reads
        request = self._requests[number] = Request()
        if main:
            running = self.current_seq() if in_main else -1
        else:
            seq = self.seq_of_thread()
            running = -1 - seq if seq else 0
        self.out.append((op, number, *content, running))
        self.flush()
        if in_main:
            while request.answer is None:
                self.read()
        else:
            request.done.acquire()
        return request.answer[0]

    def watch(self, keys: Iterable[int], notice: Callable[[int, Any], None], seq: int) -> int:
        """Have ``notice(key, outcome)`` called, in the control thread, once for each key.

        ``seq`` names the task that waits for them; 0 when it is not known, -1 when nobody does.
        """
        number = next(self._request_ids)
        keys = tuple(keys)
        self._watches[number] = _Watch(notice, len(keys))
        self.post_soon((m.WATCH, number, keys, seq))
        return number

    def watch_one(self, record: Borrowed) -> None:
        """Have ``record.outcome`` set when the object is done; nobody waits for it."""
        self.post_soon((m.WATCH, 0, (record.key,), 0))

    def unwatch(self, number: int) -> None:
        if self._watches.pop(number, None) is not None:
            self.post_soon((m.UNWATCH, number))

    # -- the data stream ----------------------------------------------------------------------

    def read(self, *, wait: bool = True) -> bool:
        """Receive once on the data stream and dispatch what is complete.

        Returns: False when nothing has come, for QUIET_S if it waited and :meth:`watch_for_quiet`
        was called before.

        Raises:
            DriverGone: the driver has closed the stream.
        """
        reader = self._reader
        self._sleeping = wait
        if wait and (self._finished or self.dropped):
            self.flush()  # collected between the last flush and the line above
        try:
            count = self._data.recv_into(reader.buffer(), 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            if wait:
                self._set_limit(0)
            return False
        except OSError as error:
            raise DriverGone from error
        finally:
            self._sleeping = False
        if not count:
            raise DriverGone
        for batch in reader.received(count):
            for message in batch:
                if message[0] == m.REPLY:
                    self._on_reply(message)
                elif message[0] == m.GRANT:
                    self.on_grant(*message[1:])
                else:
                    self.on_message(message)
        return True

    def watch_for_quiet(self) -> None:
        """Have :meth:`read` return, once, when nothing comes for a while."""
        if not self._limited:
            self._set_limit(QUIET_S)

    def _set_limit(self, seconds: int) -> None:
        self._limited = seconds > 0
        limit = struct.pack("@ll", seconds, 0)
        self._data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def data_fileno(self) -> int:
        return self._data.fileno()

    def _on_reply(self, message: Message) -> None:
        _, number, returned, answer = message
        if returned:
            self.on_returned(returned)
        request = self._requests.pop(number, None)
        if request is not None:
            request.answer = (answer,)
            request.done.release()

    # -- the control stream -------------------------------------------------------------------

    def start_control_thread(self) -> None:
        threading.Thread(target=self._control_loop, name="taskloom-control", daemon=True).start()

    def _control_loop(self) -> None:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._bell.fileno(), select.POLLIN)
        reader = FrameReader()
        control = self._control.fileno()
        ticks_ms = itertools.cycle(TICKS_MS)
        try:
            while True:
                # A tick only while a cancel is not heard yet: otherwise nothing polls.
                events = poller.poll(
                    LINGER_MS if self.lingering else next(ticks_ms) if self.ticking else None
                )
                if self.lingering and (not events or events[0][0] == control):
                    self.lingering = False  # first: what is posted from now on asks again
                    self.flush()
                if self.ticking:
                    self.ticking = False  # first: the main thread may want another one meanwhile
                    if self.on_tick():
                        self.ticking = True
                for fd, _ in events:
                    if fd != control:
                        self._bell.hush()
                        if self._hurry or not self.lingering:
                            self._hurry = False
                            self.flush()
                        continue
                    count = self._control.recv_into(reader.buffer())
                    if not count:
                        raise DriverGone
                    for batch in reader.received(count):
                        for message in batch:
                            self._on_control_message(message)
        except (DriverGone, OSError):
            # Idle workers end by themselves; one that is busy is not asked twice.
            threading.Event().wait(GRACE_S)
            os.killpg(0, 9)

    def heed(self) -> None:
        """Before a call begins: wait until what the driver has said by now is heard.

        The control thread may have been kept from running, by C code or by bad luck.  Not for
        ever: a driver that was stopped between the two halves of telling holds up nobody.
        """
        if self.told[0] == self.heard:
            return
        poller = select.poll()
        poller.register(self._control, 0)
        end = time.monotonic() + HEED_S
        while self.told[0] != self.heard and time.monotonic() < end:
            time.sleep(GIVE_WAY_S)
            if poller.poll(0):  # it has hung up
                return

    def start_ticking(self) -> None:
        """Have ``on_tick`` asked every few milliseconds, until it says no."""
        self.ticking = True
        self._bell.ring()

    def _on_control_message(self, message: Message) -> None:
        op = message[0]
        if op == m.REPLY:
            self._on_reply(message)
        elif op == m.NOTICE:
            _, number, key, outcome = message
            record = self.records.get(key)
            if record is not None:
                record.outcome = outcome
            watch = self._watches.get(number)
            if watch is not None:
                watch.left -= 1
                if not watch.left:
                    self._watches.pop(number, None)
                watch.notice(key, outcome)
        elif op == m.RECALL:
            self.on_recall()
        else:
            self.on_control(message)
            if op in (m.INTERRUPT, m.TAKE_BACK):
                self.heard = message[-1]  # last of all: who waits for it goes on
