"""Context variables that are set in the driver can be read in the task."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from types import ModuleType

import pytest

request: contextvars.ContextVar[object] = contextvars.ContextVar("request", default="default")
other: contextvars.ContextVar[object] = contextvars.ContextVar("other")


@pytest.fixture
def ask(tl: ModuleType):
    """A task that tells what the variable is in its worker."""

    @tl.remote
    def read():
        return request.get()

    return read


def inside(function, value):
    """What ``function()`` returns where ``request`` is ``value``."""
    context = contextvars.copy_context()
    context.run(request.set, value)
    return context.run(function)


def test_a_variable_set_in_the_driver_is_read_in_the_task(tl, ask):
    refs = [inside(ask.remote, value) for value in ("a", ("b", 1), None)]

    assert tl.get(refs) == ["a", ("b", 1), None]


def test_a_variable_that_is_not_set_has_its_default(tl, ask):
    assert tl.get(ask.remote()) == "default"


def test_tasks_on_one_worker_do_not_see_each_others_variables(tl, ask):
    refs = [inside(ask.remote, n) if n % 2 else ask.remote() for n in range(50)]

    assert tl.get(refs) == [n if n % 2 else "default" for n in range(50)]


def test_what_a_task_sets_stays_in_the_task(tl, ask):
    @tl.remote
    def change():
        before = request.get()
        request.set("changed")
        return before, request.get()

    def both():
        return change.remote(), change.remote(), ask.remote()

    assert tl.get(list(inside(both, "x"))) == [("x", "changed"), ("x", "changed"), "x"]
    assert request.get() == "default"


def test_a_nested_task_reads_what_its_parent_has_and_sets(tl):
    @tl.remote
    def outer():
        import taskloom

        read = taskloom.remote(lambda: request.get())
        first = taskloom.get(read.remote())
        request.set("of the parent")
        return first, taskloom.get(read.remote())

    assert tl.get(inside(outer.remote, "of the driver")) == ("of the driver", "of the parent")


async def test_coroutines_have_the_variables_of_their_own_call(tl):
    @tl.remote
    async def read():
        await asyncio.sleep(0.002)
        first = request.get()
        request.set("changed")
        await asyncio.sleep(0.002)
        return first

    async def call(n):
        request.set(n)
        return await read.remote()

    assert await asyncio.gather(*(call(n) for n in range(20))) == list(range(20))


def test_the_variable_is_the_one_at_the_call_not_at_the_start(tl, ask):
    def twice():
        first = ask.remote()
        request.set("later")
        return first, ask.remote()

    assert tl.get(list(inside(twice, "first"))) == ["first", "later"]


def test_what_cannot_be_pickled_is_left_out_with_one_warning(tl, ask):
    def call():
        other.set("kept")
        return [ask.remote() for _ in range(3)]

    @tl.remote
    def read_other():
        return other.get(), request.get()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refs = inside(call, threading.Lock())

        def also():
            other.set("kept")
            return read_other.remote()

        pair = inside(also, threading.Lock())
        assert tl.get(refs) == ["default"] * 3
        assert tl.get(pair) == ("kept", "default")
    about = [str(w.message) for w in caught if "request" in str(w.message)]

    assert len(about) == 1


def test_map_and_executor_carry_variables_too(tl):
    def read(_=None):
        return request.get()

    def run():
        with tl.Executor() as executor:
            return list(tl.map(read, range(3))), executor.submit(read).result(20)

    assert inside(run, "x") == (["x"] * 3, "x")
