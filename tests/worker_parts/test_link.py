"""A worker's line to the driver, with the driver's end in the test."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from taskloom._wire import messages as m
from taskloom._wire.frames import FrameReader
from taskloom._worker.link import Link


class Line:
    """A link, and what the driver hears."""

    def __init__(self) -> None:
        self._driver, data = socket.socketpair()
        self._others = [data, *socket.socketpair()]
        self.link = Link(data, self._others[1], memoryview(bytearray(8)).cast("Q"))
        self._reader = FrameReader()
        self._driver.setblocking(False)

    def heard(self) -> list[tuple[Any, ...]]:
        messages: list[tuple[Any, ...]] = []
        while True:
            try:
                count = self._driver.recv_into(self._reader.buffer())
            except BlockingIOError:
                return messages
            for batch in self._reader.received(count):
                messages += batch

    def submit(self, key: int) -> None:
        """A task submits a call and drops its ref at once."""
        self.link.borrow_new(key)
        self.link.post((m.SUBMIT, key - 1, 1, b"", None, (), (), None, 0))
        self.link.drop(key)

    def close(self) -> None:
        self.link._bell.close()
        self._driver.close()
        for one in self._others:
            one.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


class Busy(deque[Any]):
    """While it is emptied, something happens."""

    def __init__(self, happens: Any) -> None:
        super().__init__()
        self.happens = happens

    def popleft(self) -> Any:
        item = super().popleft()
        happens, self.happens = self.happens, lambda: None
        happens()
        return item


def test_what_is_submitted_and_dropped_during_a_flush_is_released_after_it_was_submitted(
    line: Line,
) -> None:
    line.link.out = Busy(lambda: line.submit(9))
    line.submit(5)
    line.link.flush()
    assert [(message[0], message[1]) for message in line.heard()] == [
        (m.SUBMIT, 4),
        (m.RELEASE, [5]),
    ]
    line.link.flush()
    assert [(message[0], message[1]) for message in line.heard()] == [
        (m.SUBMIT, 8),
        (m.RELEASE, [9]),
    ]
    assert not line.link.records


def test_a_finalizer_in_the_middle_of_a_flush_may_flush_and_its_words_come_after(
    line: Line,
) -> None:
    def finalizer() -> None:
        line.submit(9)
        line.link.flush()

    line.link.out = Busy(finalizer)
    line.submit(5)
    line.link.flush()
    assert [(message[0], message[1]) for message in line.heard()] == [
        (m.SUBMIT, 4),
        (m.RELEASE, [5]),
        (m.SUBMIT, 8),
        (m.RELEASE, [9]),
    ]
