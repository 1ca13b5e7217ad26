"""One simulated worker: it keeps the protocol as a real one does, and no more.

What bodies of calls do is not its business: it tells its world when one begins, when it is to be
interrupted and when an answer comes.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loom_driver import LONG_S, LOOP, SHORT_S, Trouble

from taskloom._core.node import Node, WorkerRecord
from taskloom._wire import messages as m

if TYPE_CHECKING:
    from loom_world import World

Message = tuple[Any, ...]


class Stream(deque[Message]):
    """What is on its way, in order."""

    def __init__(self, on_sent: Callable[[Stream], None]) -> None:
        super().__init__()
        self._on_sent = on_sent

    def append(self, message: Message) -> None:
        super().append(message)
        self._on_sent(self)

    def send(self, messages: Iterable[Message]) -> None:
        """As a channel of a real worker."""
        for message in messages:
            self.append(message)


class Worker:
    """One worker: what it was sent, what it has started, what it has said."""

    def __init__(self, record: WorkerRecord, world: World) -> None:
        self.record = record
        self.world = world
        self.is_loop = record.kind is LOOP
        self.data = Stream(lambda stream: world.on_sent(self, stream))  # down
        self.control = Stream(lambda stream: world.on_sent(self, stream))  # down
        self.up = Stream(lambda stream: world.on_sent(self, stream))
        self.held: list[Message] = []  # said, but not sent: lost if the worker dies now
        self.queue: deque[int] = deque()
        self.started = 0  # the last one it looked at
        self.noted = 0  # the last one it began: what the driver reads when it dies
        self.began = 0.0  # when that was
        self.deaf: set[int] = set()  # tasks that will not listen when they are interrupted
        self.revoked_to = 0
        self.told = self.heard = 0  # how often it was told to stop or give back something
        self.cancelled: set[int] = set()
        self.running: list[int] = []  # one at most, unless it is an event loop
        self.asks = 0  # the open question of the main thread
        self.stalls = 0  # an event loop: the open question that keeps it from turning
        self.nodes: dict[int, Node] = {}
        self.fills: dict[int, list[Any]] = {}
        self.last: tuple[int, bytes] = (0, b"")  # the object that was made here last
        self.questions = 0
        self.alive = True

    def __repr__(self) -> str:
        return repr(self.record)

    # -- what it hears ------------------------------------------------------------------------

    def hear_data(self) -> None:
        message = self.data.popleft()
        if message[0] == m.REPLY:
            self._hear_reply(message)
            return
        _, seq, node, fills = message
        self.nodes[seq] = node
        self.fills[seq] = fills
        if not self.is_loop:
            self.queue.append(seq)
            return
        self.heed()
        if seq > self.revoked_to:
            self.started = self.noted = seq
            if node.spec.pace is not None and node.spec.pace.timeout_s is not None:
                self.post((m.BEGAN, seq, self.world.clock.now))
                self.flush()
            self.running.append(seq)
            if seq in self.cancelled:
                self._not_run(seq)
            else:
                self.world.on_begun(self, seq)

    def hear_control(self) -> None:
        message = self.control.popleft()
        op = message[0]
        if op in (m.TAKE_BACK, m.INTERRUPT):
            self.heard = message[-1]
        if op == m.TAKE_BACK:
            self.revoked_to = max(self.revoked_to, message[1])
            self.post((m.RETURNED, self.started, message[1]))
            self.flush()
        elif op == m.INTERRUPT:
            seq = message[1]
            if seq in self.running:
                self.cancelled.add(seq)
                # A main thread that waits hears it from the answer; a loop, when it turns again.
                if not (self.asks or self.stalls or seq in self.deaf):
                    self.world.on_interrupted(self, seq)
            elif seq > self.started:
                self.cancelled.add(seq)
        elif op == m.REPLY:
            self._hear_reply(message)
        else:
            assert op == m.NOTICE
            self.world.on_notice(self, message[1], message[2], message[3])

    def heed(self) -> None:
        """Begin nothing before all is heard that the driver has said."""
        while self.heard < self.told:
            assert self.control, "a worker was warned of a message that does not come"
            self.hear_control()

    def _hear_reply(self, message: Message) -> None:
        _, number, returned, answer = message
        self.revoked_to = max(self.revoked_to, returned)
        if number == self.asks:
            self.asks = 0
            seq = self.running[0]
            if answer is None:  # the task that asked was cancelled
                self.cancelled.add(seq)
                self.world.on_interrupted(self, seq)
                return
        elif number == self.stalls:
            self.stalls = 0
            for seq in [seq for seq in self.running if seq in self.cancelled]:
                self.world.on_interrupted(self, seq)
        self.world.on_reply(self, number, answer)

    # -- what it does -------------------------------------------------------------------------

    def is_ready(self) -> bool:
        return self.record.ready

    def is_idle(self) -> bool:
        """The pool may hang up on it."""
        record = self.record
        rests = not (self.up or self.held or self.data or self.control or self.running)
        free = not (record.inflight or record.pending_requests or record.borrowed)
        return record.ready and rests and free

    def reads_data(self) -> bool:
        """A PROCESS worker reads its data stream only when it has nothing else to do."""
        if self.is_loop:
            return not self.stalls
        return bool(self.asks) or not (self.running or self.queue)

    def can_ask(self) -> bool:
        """Runs a task that may wait: two that held a whole tpu each would be stuck."""
        if self.is_loop or not self.can_end():
            return False
        return all(name == "CPU" for name, _ in self.nodes[self.running[0]].spec.request)

    def can_start(self) -> bool:
        return bool(self.queue) and not self.running

    def start(self) -> None:
        seq = self.queue.popleft()
        self.heed()
        if seq <= self.revoked_to:
            return
        self.started = seq
        self.running.append(seq)
        if seq in self.cancelled or not self._take_last(self.fills[seq]):
            self._not_run(seq)
        else:
            self.noted = seq
            self.began = self.world.clock.now
            self.world.on_begun(self, seq)

    def _take_last(self, fills: list[Any]) -> bool:
        for index, fill in enumerate(fills):
            if type(fill) is int:
                if fill != self.last[0]:
                    return False
                fills[index] = self.last[1]
        return True

    def _not_run(self, seq: int) -> None:
        self.running.remove(seq)
        self.post((m.FAILED, seq, None, False, SHORT_S))

    def can_end(self) -> bool:
        return bool(self.running) and not (self.asks or self.stalls)

    def finish(
        self, seq: int, *, seconds: float, contains: tuple[int, ...] = (), hold: bool = False
    ) -> None:
        """A task returns; ``hold``: its result is not sent yet."""
        node, fills = self.nodes[seq], self.fills[seq]
        self.running.remove(seq)
        values = [value_of(record.key, fills) for record in node.outputs]
        if node.spec.num_returns == 1:
            self.last = (node.key + 1, values[0])
        self.post((m.DONE, seq, values, [contains] * len(values), seconds))
        if not (hold and node.spec.max_retries):
            self.flush()

    def fail(self, seq: int, *, retry: bool = False, cancelled: bool = False) -> None:
        """A task raises; ``cancelled``: what the interrupt of a cancel has raised."""
        self.running.remove(seq)
        key = self.nodes[seq].key
        error = None if cancelled else Trouble("raised", key)
        if error is not None and not (retry and self.nodes[seq].spec.max_retries):
            self.world.judge.on_raised(key)
        self.post((m.FAILED, seq, error, retry, LONG_S))
        self.flush()

    def ask(self, op: int, keys: Sequence[int], *rest: Any, running: int | None = None) -> int:
        """A question in the main thread (``running`` None), another one (0) or the loop's (-1)."""
        self.questions += 1
        if running is None:
            running = self.running[0]
            self.asks = self.questions
        elif running < 0:
            self.stalls = self.questions
        self.post((op, self.questions, tuple(keys), *rest, running))
        self.flush()
        return self.questions

    def watch(self, keys: Sequence[int], seq: int) -> int:
        """A coroutine awaits objects."""
        self.questions += 1
        self.post((m.WATCH, self.questions, tuple(keys), seq))
        self.flush()
        return self.questions

    def post(self, message: Message) -> None:
        self.held.append(message)

    def flush(self) -> None:
        held, self.held = self.held, []
        for message in held:
            self.up.append(message)


def value_of(key: int, fills: Sequence[bytes]) -> bytes:
    """What a call makes of its arguments: another value for each call and each argument."""
    return b"%x" % zlib.crc32(b"%x:" % key + b",".join(fills))
