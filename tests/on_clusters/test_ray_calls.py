"""Calls of actors on Ray that go without arguments: nothing travels but Ray's name of the call."""

from __future__ import annotations

from contextvars import Context
from functools import wraps

import pytest
from tests.gates import eventually

import taskloom
from taskloom import _current
from taskloom.actor import get_actor, kill
from taskloom.exceptions import ActorUnavailableError

LONG_S = 60


@taskloom.remote
class Diary:
    def __init__(self):
        self.pages = []

    def write(self, page="blank"):
        self.pages.append(page)
        return len(self.pages)

    def read(self):
        return list(self.pages)

    def tear(self):
        raise KeyError("no such page")

    def me(self):
        context = taskloom.get_runtime_context()
        return context.get_task_id(), context.get_task_name(), context.get_actor_id()

    @taskloom.method(retry_exceptions=[KeyError], max_task_retries=3)
    def stubborn(self):
        self.pages.append("tried")
        if self.pages.count("tried") % 3:
            raise KeyError("again")
        return len(self.pages)


@taskloom.remote
class Loop:
    def __init__(self):
        self.count = 0

    async def add(self):
        self.count += 1
        return self.count

    def name(self):
        return taskloom.get_runtime_context().get_task_name()


@pytest.fixture(autouse=True)
def sent_bare(cluster, monkeypatch):
    """The names of the calls that went without arguments."""
    found = []
    actors = type(_current.peek().driver.actors)
    send = actors.call_bare

    def noted(self, actor, spec):
        ref = send(self, actor, spec)
        if ref is not None:
            found.append(spec.name)
        return ref

    monkeypatch.setattr(actors, "call_bare", noted)
    return found


def in_a_context_of_its_own(test):
    """Variables that pytest's plugins have set would travel with the calls."""

    @wraps(test)
    def run(**fixtures):
        return Context().run(test, **fixtures)

    return run


pytestmark = pytest.mark.parametrize("_session_on", ["ray"], indirect=True)


@in_a_context_of_its_own
def test_they_run_in_the_order_of_the_others_and_see_the_same_state(sent_bare):
    diary = Diary.remote()
    assert taskloom.get(diary.write.remote()) == 1  # its answer says that answers are small
    refs = [call for n in range(10) for call in (diary.write.remote(), diary.write.remote(n))]
    assert taskloom.get(refs) == list(range(2, 22))
    assert taskloom.get(diary.read.remote())[:5] == ["blank", "blank", 0, "blank", 1]
    assert sent_bare.count("Diary.write") == 10


@in_a_context_of_its_own
def test_they_know_their_own_id_and_name(sent_bare):
    diary = Diary.remote()
    for _ in range(3):
        ref = diary.me.remote()
        assert taskloom.get(ref) == (ref.task_id(), "Diary.me", diary._actor_id.hex())
    assert sent_bare == ["Diary.me"] * 2


@in_a_context_of_its_own
def test_their_errors_are_those_of_the_user():
    diary = Diary.remote()
    for _ in range(3):
        with pytest.raises(KeyError, match="no such page"):
            taskloom.get(diary.tear.remote())


@in_a_context_of_its_own
def test_they_have_the_options_of_the_class(sent_bare):
    diary = Diary.remote()
    assert [taskloom.get(diary.stubborn.remote()) for _ in range(3)] == [3, 6, 9]
    assert sent_bare == ["Diary.stubborn"] * 2


@in_a_context_of_its_own
def test_calls_with_options_of_their_own_go_in_the_other_way(sent_bare):
    diary = Diary.remote()
    for _ in range(3):
        named = diary.me.options(name="Diary.write")
        assert taskloom.get(named.remote())[1] == "Diary.write"
    assert sent_bare == []


@in_a_context_of_its_own
def test_coroutines_of_an_actor_go_so_too(sent_bare):
    loop = Loop.remote()
    taskloom.get(loop.add.remote())
    assert sorted(taskloom.get([loop.add.remote() for _ in range(20)])) == list(range(2, 22))
    assert [taskloom.get(loop.name.remote()) for _ in range(2)] == ["Loop.name"] * 2
    assert sent_bare.count("Loop.add") == 20


@in_a_context_of_its_own
def test_an_actor_that_was_restarted_knows_them(sent_bare):
    diary = Diary.options(max_restarts=1).remote()
    assert [taskloom.get(diary.write.remote()) for _ in range(2)] == [1, 2]
    kill(diary, no_restart=False)

    def answer():
        try:
            return taskloom.get(diary.write.remote(), timeout=LONG_S)
        except ActorUnavailableError:
            return None

    assert eventually(lambda: answer() == 1, LONG_S)
    assert "Diary.write" in sent_bare


@in_a_context_of_its_own
def test_a_task_that_found_the_actor_by_its_name_calls_it_so_too():
    diary = Diary.options(name="the diary").remote()

    @taskloom.remote
    def write():
        found = get_actor("the diary")
        return [taskloom.get(found.write.remote()) for _ in range(3)]

    assert taskloom.get(write.remote(), timeout=LONG_S) == [1, 2, 3]
    assert taskloom.get(diary.read.remote()) == ["blank"] * 3
