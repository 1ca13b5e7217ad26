"""The doorbells of event loops: each loop is told, in its thread, and keeps nothing for it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

import pytest
import uvloop
from tests.gates import eventually

from taskloom._engine import doorbells
from taskloom._engine.doorbells import Doorbell, doorbell_of

LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@dataclass
class Guest:
    """Who waits for something."""

    stopped: bool = False
    told: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    then: Callable[[], object] = lambda: None

    def callback(self, key: int) -> None:
        self.told.append(key)
        self.threads.add(threading.get_ident())
        self.then()


async def own_doorbell() -> Doorbell:
    return doorbell_of(asyncio.get_running_loop())


def count_eventfds() -> int:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum("eventfd" in os.readlink(link) for link in links if os.path.lexists(link))


def ring_elsewhere(bell: Doorbell, calls: list[tuple[Guest, int]]) -> None:
    thread = threading.Thread(target=bell.ring, args=(calls,))
    thread.start()
    thread.join()


@LOOPS
def test_a_loop_is_told_in_its_own_thread_and_once(new_loop):
    loop = new_loop()
    bell = loop.run_until_complete(own_doorbell())
    guest = Guest()
    for key in range(3):
        ring_elsewhere(bell, [(guest, key), (guest, 10 + key)])

    async def until_told() -> None:
        while len(guest.told) < 6:
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(until_told(), 20))
    assert guest.told == [0, 10, 1, 11, 2, 12]
    assert guest.threads == {threading.get_ident()}
    loop.close()


@LOOPS
def test_who_has_stopped_is_told_nothing(new_loop):
    loop = new_loop()
    bell = loop.run_until_complete(own_doorbell())
    first, second = Guest(), Guest()
    first.then = lambda: setattr(second, "stopped", True)
    second_to_last = Guest(then=loop.stop)
    ring_elsewhere(bell, [(first, 1), (second, 2), (second_to_last, 3)])
    loop.run_forever()
    assert (first.told, second.told) == ([1], [])
    loop.close()


@LOOPS
def test_an_interrupt_in_one_of_them_loses_none_of_the_others(new_loop):
    loop = new_loop()
    bell = loop.run_until_complete(own_doorbell())

    def interrupt() -> None:
        if len(guests[0].told) == 1:
            raise KeyboardInterrupt

    guests = [Guest(then=interrupt), Guest(), Guest(then=loop.stop)]
    ring_elsewhere(bell, [(guest, 1) for guest in guests])
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_forever()
    assert [guest.told for guest in guests] == [[1, 1], [1], [1]]  # once more, to be sure
    loop.close()


@LOOPS
def test_an_interrupt_while_it_listens_loses_nobody(new_loop, monkeypatch):
    loop = new_loop()
    bell = loop.run_until_complete(own_doorbell())
    read = os.read
    interrupts = [KeyboardInterrupt()]

    def interrupted(fd: int, count: int) -> bytes:
        data = read(fd, count)
        if interrupts and fd == bell._bell.fileno():
            raise interrupts.pop()  # as a signal handler does, as soon as the call is back
        return data

    monkeypatch.setattr(os, "read", interrupted)
    first, last = Guest(), Guest(then=loop.stop)
    ring_elsewhere(bell, [(first, 1), (last, 1)])
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_forever()
    assert (first.told, last.told) == ([1], [1])
    ring_elsewhere(bell, [(first, 2), (last, 2)])
    loop.run_forever()
    assert (first.told, last.told) == ([1, 2], [1, 2])
    loop.close()


def test_who_raises_each_time_does_not_keep_the_others_waiting():
    loop = asyncio.new_event_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    bell = loop.run_until_complete(own_doorbell())

    def fail() -> None:
        raise ValueError("again")

    broken, last = Guest(then=fail), Guest(then=loop.stop)
    ring_elsewhere(bell, [(broken, 1), (last, 1)])
    loop.run_forever()
    assert broken.told == [1, 1]
    assert len(errors) == 2
    assert last.told == [1]
    loop.close()


@LOOPS
def test_a_loop_has_one_doorbell_and_takes_its_descriptor_along(new_loop):
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        loop = new_loop()
        bell = loop.run_until_complete(own_doorbell())
        assert loop.run_until_complete(own_doorbell()) is bell is doorbell_of(loop)
        loop.close()
        bell.ring([(Guest(), 1)])  # nobody is left to tell
    del loop, bell
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


@LOOPS
def test_a_loop_keeps_no_context_of_the_first_who_waited(new_loop):
    variable: ContextVar[str] = ContextVar("variable", default="none")
    loop = new_loop()

    async def first() -> Doorbell:
        variable.set("mine")
        return await own_doorbell()

    bell = loop.run_until_complete(first())
    seen: list[str] = []
    guest = Guest(then=lambda: (seen.append(variable.get()), loop.stop()))
    ring_elsewhere(bell, [(guest, 1)])
    loop.run_forever()
    assert seen == ["none"]
    loop.close()


class NoReaders(asyncio.SelectorEventLoop):
    """As loops of other systems are."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError


def test_a_loop_that_watches_no_descriptors_is_told_all_the_same():
    loop = NoReaders.__new__(NoReaders)
    # Its own waking needs a reader.
    loop.add_reader = lambda *args: asyncio.SelectorEventLoop.add_reader(loop, *args)
    loop.__init__()
    del loop.add_reader
    bell = loop.run_until_complete(own_doorbell())
    assert isinstance(bell, doorbells._Caller)
    guest = Guest(then=loop.stop)
    ring_elsewhere(bell, [(guest, 1)])
    loop.run_forever()
    assert guest.told == [1]
    assert doorbell_of(loop) is bell
    loop.close()
    bell.ring([(guest, 2)])


def test_a_loop_of_another_thread_is_told_as_anybody_may_until_it_asks_itself():
    loop = asyncio.new_event_loop()
    bell = doorbell_of(loop)
    assert doorbell_of(loop) is bell
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    guest = Guest()
    bell.ring([(guest, 1)])
    assert eventually(lambda: guest.told == [1])
    assert guest.threads == {thread.ident}
    future = asyncio.run_coroutine_threadsafe(own_doorbell(), loop)
    assert isinstance(future.result(20), doorbells._Ringer)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@LOOPS
def test_a_closed_loop_that_somebody_keeps_has_no_descriptor(new_loop):
    before = count_eventfds()
    loop = new_loop()
    loop.run_until_complete(own_doorbell())
    loop.close()
    doorbells.forget_closed()
    assert count_eventfds() == before
    assert loop.is_closed()
