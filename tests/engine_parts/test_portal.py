"""The inbox of the engine's loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskloom._engine import portal as portal_module
from taskloom._engine.portal import Portal, new_event_loop


class Office:
    """A portal, and the thread whose loop serves it."""

    def __init__(self) -> None:
        self.drains = 0
        self.errors: list[BaseException] = []
        self.portal = Portal(self._after_drain)
        self.loop = new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context["exception"]))
        self.portal.attach(self.loop)
        self.thread = threading.Thread(target=self.loop.run_forever)

    def _after_drain(self) -> None:
        self.drains += 1

    def open(self) -> None:
        self.thread.start()

    def close(self) -> None:
        if not self.thread.ident:
            self.open()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.portal.detach(self.loop)
        self.loop.close()
        self.errors.clear()  # their tracebacks keep the portal, and it its descriptors
        del self.portal


@pytest.fixture(params=["eventfd", "pipe"])
def office(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    if request.param == "pipe":  # where there is no eventfd
        monkeypatch.delattr(os, "eventfd", raising=False)
    office = Office()
    yield office
    office.close()


def test_posts_are_served_in_order(office: Office) -> None:
    office.open()
    seen: list[int] = []
    for number in range(10_000):
        office.portal.post(seen.append, number)
    office.portal.call(lambda: None)
    assert seen == list(range(10_000))


def test_posts_are_served_in_the_thread_of_the_loop(office: Office) -> None:
    office.open()
    assert office.portal.call(threading.current_thread) is office.thread


def test_what_was_posted_before_the_loop_runs_is_served_when_it_does(office: Office) -> None:
    seen: list[int] = []
    office.portal.post(seen.append, 1)
    office.open()
    office.portal.call(lambda: None)
    assert seen == [1]


def test_many_posts_ring_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    rings = []
    write = os.write

    def count(fd: int, data: bytes) -> int:
        rings.append(fd)
        return write(fd, data)

    monkeypatch.setattr(portal_module.os, "write", count)
    for number in range(1000):
        office.portal.post(id, number)
    assert len(rings) == 1
    monkeypatch.undo()
    office.open()
    office.portal.call(lambda: None)
    assert office.drains < 5


def test_what_is_no_pair_comes_together_with_its_like_and_in_order(office: Office) -> None:
    seen: list[object] = []
    office.portal.take_bare = seen.append
    for item in "ab":
        office.portal.post_bare(item)
    office.portal.post(seen.append, 1)
    office.portal.post_along("c")
    office.portal.post(seen.append, 2)
    office.portal.post(seen.append, 3)
    for item in "de":
        office.portal.post_bare(item)
    office.open()
    office.portal.call(lambda: None)
    assert seen == [["a", "b"], 1, ["c"], 2, 3, ["d", "e"]]


def test_what_nobody_waits_for_goes_along_with_the_next_post(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings = []
    write = os.write

    def count(fd: int, data: bytes) -> int:
        rings.append(fd)
        return write(fd, data)

    monkeypatch.setattr(portal_module.os, "write", count)
    seen: list[int] = []
    for number in range(10):
        office.portal.post_along((seen.append, number))
    assert not rings
    office.portal.post(seen.append, 10)
    office.portal.post_along((seen.append, 11))
    assert len(rings) == 1
    monkeypatch.undo()
    office.open()
    office.portal.call(lambda: None)
    assert seen == list(range(12))


def test_what_nobody_waits_for_rings_before_it_is_too_much(office: Office) -> None:
    office.open()
    arrived = threading.Event()
    for _ in range(portal_module.MAX_IDLE_BACKLOG):
        office.portal.post_along((lambda _: None, None))
    office.portal.post_along((lambda _: arrived.set(), None))
    assert arrived.wait(30)


def test_what_nobody_waits_for_is_served_at_the_end_too(office: Office) -> None:
    office.open()
    seen: list[int] = []
    office.portal.post_along((seen.append, 1))
    end(office)
    office.portal.post_along((seen.append, 2))  # closed: nothing happens
    assert seen == [1]
    office.portal.finish()
    office.portal.closed = None  # as a thread had seen it that goes on only now
    office.portal.post_along((seen.append, 3))
    assert seen == [1, 3]


def test_a_batch_is_bounded_and_the_rest_comes_in_the_next_turn(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portal_module, "MAX_DRAIN", 10)
    seen: list[int] = []
    for number in range(95):
        office.portal.post(seen.append, number)
    office.open()
    office.portal.call(lambda: None)
    assert seen == list(range(95))
    assert office.drains >= 9


def test_what_a_post_posts_is_served_later(office: Office) -> None:
    office.open()
    seen: list[int] = []

    def again(number: int) -> None:
        seen.append(number)
        if number:
            office.portal.post(again, number - 1)

    office.portal.call(lambda: office.portal.post(again, 100))
    done = threading.Event()
    office.portal.post(lambda _: office.portal.post(lambda _: None, None), None)

    def look(_: object) -> None:
        if seen[-1:] == [0]:
            done.set()
        else:
            office.portal.post(look, None)

    office.portal.post(look, None)
    assert done.wait(30)
    assert seen == list(range(100, -1, -1))


def test_many_threads_post_at_once_and_nothing_is_lost(office: Office) -> None:
    office.open()
    seen: list[tuple[int, int]] = []

    def work(thread: int) -> None:
        for number in range(2000):
            office.portal.post(seen.append, (thread, number))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    office.portal.call(lambda: None)
    for index in range(4):
        assert [number for thread, number in seen if thread == index] == list(range(2000))


def test_a_call_brings_back_what_the_function_returns_or_raises(office: Office) -> None:
    office.open()
    assert office.portal.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        office.portal.call(lambda: 1 // 0)


def test_an_error_of_one_post_does_not_hold_up_those_behind_it(office: Office) -> None:
    seen: list[int] = []

    def bad(_: object) -> None:
        raise ZeroDivisionError

    office.portal.post(seen.append, 1)
    office.portal.post(bad, None)
    office.portal.post(seen.append, 2)
    office.open()
    served = threading.Event()
    office.loop.call_soon_threadsafe(
        office.loop.call_later, 0.05, lambda: served.set() if len(seen) == 2 else None
    )
    assert served.wait(10), "what stood behind the error waits for the next post"
    assert [type(error) for error in office.errors] == [ZeroDivisionError]


def test_the_engine_settles_after_an_error_too(office: Office) -> None:
    def bad(_: object) -> None:
        raise ZeroDivisionError

    office.portal.post(bad, None)
    office.open()
    office.portal.call(lambda: None)
    assert office.drains >= 1


def test_a_call_from_the_thread_of_the_loop_does_not_wait_for_itself(office: Office) -> None:
    office.open()

    def note() -> None:
        office.portal.thread_id = threading.get_ident()

    office.portal.call(note)
    assert office.portal.call(lambda: office.portal.call(lambda: 7)) == 7


# -- closing -----------------------------------------------------------------------------------


def end(office: Office, last: Callable[[Any], None] = lambda _: None) -> None:
    """As the backend ends a session."""
    done = threading.Event()

    def stop(argument: Any) -> None:
        last(argument)
        done.set()

    office.portal.close("it is over", stop)
    assert done.wait(30)


def test_nothing_can_be_posted_when_it_is_closed(office: Office) -> None:
    office.open()
    end(office)
    with pytest.raises(RuntimeError, match="it is over"):
        office.portal.post(id, 1)
    with pytest.raises(RuntimeError, match="it is over"):
        office.portal.call(lambda: None)
    office.portal.post_if_open(id, 1)


def test_what_was_posted_before_the_end_is_served_before_the_last(office: Office) -> None:
    seen: list[object] = []
    for number in range(100):
        office.portal.post(seen.append, number)
    office.open()
    end(office, lambda _: seen.append("last"))
    assert seen == [*range(100), "last"]


def test_who_was_just_about_to_post_is_served_at_the_very_end(office: Office) -> None:
    office.open()
    end(office)
    seen: list[object] = []
    # A thread had asked whether it is closed before it was, and goes on only now.
    office.portal.closed = None
    office.portal._inbox.append((seen.append, "late"))
    office.portal.closed = "it is over"
    office.portal.finish()
    assert seen == ["late"]


def test_who_posts_after_the_very_end_serves_himself(office: Office) -> None:
    office.open()
    end(office)
    office.portal.finish()
    seen: list[object] = []
    office.portal.closed = None  # as that thread had seen it
    office.portal.post(seen.append, "later still")
    assert seen == ["later still"]


# -- the loop ----------------------------------------------------------------------------------


def test_the_loop_is_uvloops_where_there_is_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = new_event_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()


def test_the_loop_is_asyncios_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
