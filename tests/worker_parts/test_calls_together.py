"""Calls that travel together run as if each had come on its own."""

from __future__ import annotations

import signal
import socket
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom._wire import messages as m
from taskloom._wire.frames import FrameReader, encode
from taskloom._wire.serialization import INLINE_BYTES, pack_function, pack_plain, unpack
from taskloom._worker.executor import Executor
from taskloom._worker.link import DriverGone, Link

FIRST = 5
NUMBER = 3
ACCELERATORS = {"GPU": ("1",)}
SPEC = (m.SPEC, NUMBER, b"k", "act", "act", 1, False, 1, (("CPU", 1),), False, False, None, None)
HUGE = "x" * INLINE_BYTES  # with what the pickle adds
LARGE = 1 << (8 * INLINE_BYTES)
LOCK = threading.Lock()  # cannot be pickled

seen: list[object] = []
executors: list[Executor] = []


def act(what: object = "nothing") -> object:
    """Does what the call asks for, and notes how it looks from inside."""
    running = executors[-1].running
    assert running is not None
    seen.append((what, running.key, running.seq, running.attempt, running.accelerators))
    if what == "nothing":
        return None
    if what == "raise":
        raise ValueError("as asked")
    if what == "lock":
        return LOCK
    if what == "huge":
        return HUGE
    if what == "large":
        return LARGE
    if what == "ask back":  # of what is behind this call, the driver wants the next one back
        executors[-1]._on_control((m.TAKE_BACK, running.seq + 1, 0))
    return what


class Output:
    task = ""

    def flush(self) -> None:
        pass


class Session:
    """A worker's main loop in this process, and the driver's end of its line."""

    def __init__(self) -> None:
        self.driver, data = socket.socketpair()
        self._others = [data, *socket.socketpair()]
        link = Link(data, self._others[1], memoryview(bytearray(8)).cast("Q"))
        self.started: list[tuple[int, bool]] = []
        self.output = Output()
        self.executor = Executor(link, self.output, lambda *now: self.started.append(now))
        executors.append(self.executor)
        self._bell = link._bell

    def run(self, messages: list[tuple]) -> list[tuple]:
        """What the worker answers, without the seconds."""
        definition = (m.FUNCTION, b"k", pack_function(act))
        for piece in encode([definition, SPEC, *messages]):
            self.driver.sendall(piece)
        self.driver.shutdown(socket.SHUT_WR)
        with pytest.raises(DriverGone):
            self.executor.serve()
        self._others[0].shutdown(socket.SHUT_WR)
        reader = FrameReader()
        answers = []
        while count := self.driver.recv_into(reader.buffer()):
            for batch in reader.received(count):
                for message in batch:
                    answers += parts(message)
        return answers

    def close(self) -> None:
        executors.pop()
        self.driver.close()
        self._bell.close()
        for one in self._others:
            one.close()


def parts(message: tuple) -> list[tuple]:
    op = message[0]
    if op == m.DONE_MANY:
        return [
            (m.DONE, seq, unpack(payload)) for seq, payload, _ in zip(*message[1:], strict=True)
        ]
    if op == m.DONE:
        return [(m.DONE, message[1], unpack(message[2]))]
    if op == m.FAILED:
        _, seq, failure, retry, _ = message
        return [(op, seq, failure and repr(failure.revive()), retry)]
    return [message]


def one_by_one(together: tuple) -> list[tuple]:
    """The plain twin of a RUN_MANY: a RUN for each."""
    _, first, keys, number, payloads, accelerators = together
    return [
        (m.RUN, seq, key, 1, number, payload, None, None, None, accelerators)
        for seq, (key, payload) in enumerate(zip(keys, payloads, strict=True), first)
    ]


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    yield
    signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = hook


def answers_of(messages, cancelled, taken_back):
    """Answers, what the calls saw, what the driver could read, and what was the last value."""
    session = Session()
    seen.clear()
    try:
        session.executor._cancelled.update(cancelled)
        session.executor._revoked_to = taken_back
        answers = session.run(messages)
        executor = session.executor
        last_key, last = executor._last
        assert executor.running is None
        assert not executor._cancelled & set(range(FIRST + len(session.started)))
        return answers, list(seen), session.started, (last_key, last and unpack(last))
    finally:
        session.close()


actions = st.sampled_from(
    ["nothing", "no arguments", "raise", "lock", "huge", "ask back", "large", 0, True, 1.5]
)


@given(
    st.lists(actions, min_size=1, max_size=5),
    st.sets(st.integers(FIRST, FIRST + 5), max_size=3),
    st.integers(FIRST - 2, FIRST + 3),
)
def test_calls_together_are_answered_as_one_by_one(whats, cancelled, taken_back):
    keys = [(number + 1) << 16 for number in range(len(whats))]
    payloads = [pack_plain(() if what == "no arguments" else (what,)) for what in whats]
    together = (m.RUN_MANY, FIRST, keys, NUMBER, payloads, ACCELERATORS)
    wanted = answers_of(one_by_one(together), cancelled, taken_back)
    assert answers_of([together], cancelled, taken_back) == wanted


def test_calls_that_were_all_taken_back_need_not_know_their_function():
    together = (m.RUN_MANY, FIRST, [1 << 16], NUMBER, [pack_plain(())], None)
    answers, runs, _, _ = answers_of([(m.FORGET_SPEC, NUMBER), together], (), FIRST)
    assert not answers
    assert not runs


def test_an_interrupt_meets_the_call_that_it_is_for():
    """The second of three is cancelled while it runs: the others are not."""
    session = Session()
    try:
        executor = session.executor
        seen.clear()
        keys = [1 << 16, 2 << 16, 3 << 16]
        payloads = [pack_plain((what,)) for what in (1, "interrupt", 3)]

        def interrupt(what: object) -> object:
            if what == "interrupt":
                executor._on_control((m.INTERRUPT, FIRST + 1, False, 0))
                for _ in range(1000):
                    pass  # the signal handler raises here
            return what

        messages = [(m.RUN_MANY, FIRST, keys, NUMBER, payloads, None)]
        executor._functions._functions[b"k"] = interrupt
        executor._functions._blobs[b"k"] = b""
        answers = session.run(messages)
    finally:
        session.close()
    assert answers == [
        (m.DONE, FIRST, 1),
        (m.FAILED, FIRST + 1, None, False),
        (m.DONE, FIRST + 2, 3),
    ]
