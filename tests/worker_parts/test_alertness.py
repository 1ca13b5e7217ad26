"""A worker stays awake for its next task when calls follow each other closely, and only then."""

from __future__ import annotations

import os

import pytest

from taskloom._worker.alertness import AWAKE_S, Alertness

TICK_S = AWAKE_S / 10


class Clock:
    """Goes on by a tick each time somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += TICK_S
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


@pytest.fixture
def alertness(pipe, clock):
    return Alertness(pipe[0], 2, clock)


def rested_s(alertness, clock, begun) -> float:
    """For how long, by the clock, it stays awake when nothing comes."""
    before = clock.now
    alertness.rest(begun)
    return clock.now - before


def come(alertness, clock, after_s) -> None:
    clock.now += after_s
    alertness.rise()


def test_a_worker_sleeps_at_once_before_it_knows_how_calls_come(alertness, clock):
    assert rested_s(alertness, clock, 0) < 2 * TICK_S


def test_it_stays_awake_for_a_moment_after_a_task_that_came_soon(alertness, clock):
    alertness.rest(0)
    come(alertness, clock, 0)
    assert AWAKE_S <= rested_s(alertness, clock, 1) < 2 * AWAKE_S


def test_it_returns_as_soon_as_something_has_come(alertness, clock, pipe):
    alertness.rest(0)
    come(alertness, clock, 0)
    os.write(pipe[1], b"task")
    assert rested_s(alertness, clock, 1) < 2 * TICK_S


def test_it_returns_when_the_driver_has_gone(clock):
    read, write = os.pipe()
    alertness = Alertness(read, 2, clock)
    alertness.rest(0)
    come(alertness, clock, 0)
    os.close(write)
    assert rested_s(alertness, clock, 1) < 2 * TICK_S
    os.close(read)


def test_it_sleeps_at_once_after_it_has_stayed_awake_for_nothing(alertness, clock):
    alertness.rest(0)
    come(alertness, clock, 0)
    alertness.rest(1)
    come(alertness, clock, 0)
    assert rested_s(alertness, clock, 2) < 2 * TICK_S


def test_it_sleeps_at_once_after_a_task_that_came_late(alertness, clock):
    alertness.rest(0)
    come(alertness, clock, AWAKE_S)
    assert rested_s(alertness, clock, 1) < 2 * TICK_S


def test_it_sleeps_at_once_after_many_tasks(alertness, clock):
    alertness.rest(0)
    come(alertness, clock, 0)
    assert rested_s(alertness, clock, 2) < 2 * TICK_S


def test_with_one_cpu_it_always_sleeps_at_once(pipe, clock):
    alertness = Alertness(pipe[0], 1, clock)
    for begun in range(5):
        assert rested_s(alertness, clock, begun) < 2 * TICK_S
        come(alertness, clock, 0)


def test_once_it_is_pinned_to_one_cpu_it_sleeps_at_once(alertness, clock, monkeypatch):
    alertness.rest(0)
    monkeypatch.setattr("taskloom._worker.alertness._affinity", lambda _pid: {0})
    come(alertness, clock, 0)
    assert rested_s(alertness, clock, 1) < 2 * TICK_S


OPEN_IS_BROKEN = """
import taskloom as tl


@tl.remote
class Broken:
    def __init__(self):
        import builtins, os

        builtins.open = os.open = os.sched_yield = os.sched_getaffinity = None
        self.n = 0

    def inc(self):
        self.n += 1
        return self.n


tl.init(num_cpus=2)
actor = Broken.remote()
print([tl.get(actor.inc.remote()) for _ in range(300)] == list(range(1, 301)))
"""


def test_what_user_code_does_to_builtins_ends_no_worker_that_waits(run_driver):
    done = run_driver(OPEN_IS_BROKEN, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
