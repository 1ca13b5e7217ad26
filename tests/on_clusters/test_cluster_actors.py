"""Actors on clusters."""

from __future__ import annotations

import os
import time

import pytest
from tests.on_clusters.conftest import LONG_S, ON_RAY

import taskloom
from taskloom.actor import exit_actor
from taskloom.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
)


@taskloom.remote
class Counter:
    def __init__(self, n=0):
        self.n = n

    def add(self, k=1):
        self.n += k
        return self.n

    def fail(self):
        raise KeyError("no such thing")

    def pid(self):
        return os.getpid()

    def die(self):
        os._exit(1)

    def leave(self):
        exit_actor()

    def me(self):
        context = taskloom.get_runtime_context()
        handle = context.current_actor
        return context.get_actor_id(), handle, context.was_current_actor_reconstructed

    def items(self, n):
        yield from range(n)


@pytest.fixture(autouse=True)
def _session(cluster):
    """All tests here run on both."""


def test_an_actor_knows_itself_and_its_own_handle_does_not_keep_it_alive():
    counter = Counter.remote()
    actor_id, handle, again = taskloom.get(counter.me.remote())
    assert actor_id == counter._actor_id.hex()
    assert again is False
    assert taskloom.get(handle.add.remote()) == 1


@ON_RAY
def test_a_crash_restarts_within_max_restarts():
    counter = Counter.options(max_restarts=1).remote(7)
    assert taskloom.get(counter.add.remote()) == 8
    with pytest.raises((ActorUnavailableError, ActorDiedError)):
        taskloom.get(counter.die.remote(), timeout=LONG_S)
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            assert taskloom.get(counter.add.remote(), timeout=LONG_S) == 8
            break
        except ActorUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert taskloom.get(counter.me.remote())[2] is True
    with pytest.raises(ActorDiedError):
        taskloom.get(counter.die.remote(), timeout=LONG_S)


@ON_RAY
def test_kill_may_restart():
    counter = Counter.options(max_restarts=-1).remote()
    before = taskloom.get(counter.pid.remote())
    taskloom.kill(counter, no_restart=False)
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            after = taskloom.get(counter.pid.remote(), timeout=LONG_S)
            if after != before:
                break
        except (ActorUnavailableError, ActorDiedError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)
