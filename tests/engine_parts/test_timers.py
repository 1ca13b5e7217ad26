"""The heap of alarms and the one timer of the loop behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskloom._core.alarms import Alarm, AlarmKind
from taskloom._engine.timers import LONGEST_S, Timers


class FakeNode:
    alarm: Alarm | None = None


class FakeLoop:
    """Has a clock of its own, and at most one timer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: float | None = None
        self.armed = 0
        self._call: Callable[[], None] = lambda: None

    def call_later(self, delay: float, call: Callable[[], None]) -> FakeLoop:
        assert self.at is None, "two timers at once"
        self.at, self._call = self.now + delay, call
        self.armed += 1
        return self

    def cancel(self) -> None:
        self.at = None

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.at is not None and self.at <= until:
            self.now, self.at = max(self.now, self.at), None
            self._call()
        self.now = until


class World:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.rung: list[tuple[float, Alarm]] = []
        self.settled = 0
        loop: Any = self.loop
        self.timers = Timers(loop, self._ring, self._settle, clock=lambda: self.loop.now)

    def _ring(self, alarm: Alarm) -> None:
        self.rung.append((round(self.loop.now), alarm))
        alarm.node.alarm = None

    def _settle(self) -> None:
        self.settled += 1

    def set(self, delay_s: float) -> Alarm:
        node: Any = FakeNode()
        node.alarm = alarm = Alarm(AlarmKind.RETRY, node)
        self.timers.set(alarm, delay_s)
        return alarm

    def forget(self, alarm: Alarm) -> None:
        alarm.node.alarm = None
        self.timers.forget()


@pytest.fixture
def world() -> World:
    return World()


def test_alarms_ring_in_order_each_at_its_time(world: World) -> None:
    c, a, b = world.set(30), world.set(10), world.set(20)
    world.loop.run(100)
    assert world.rung == [(10, a), (20, b), (30, c)]


def test_without_alarms_the_loop_has_no_timer(world: World) -> None:
    assert world.loop.at is None
    world.set(1)
    world.loop.run(2)
    assert world.loop.at is None


def test_alarms_of_one_moment_ring_in_the_order_in_which_they_were_set(world: World) -> None:
    alarms = [world.set(5) for _ in range(10)]
    world.loop.run(10)
    assert [alarm for _, alarm in world.rung] == alarms
    assert world.settled == 1


def test_an_alarm_that_was_forgotten_does_not_ring(world: World) -> None:
    a, b = world.set(5), world.set(6)
    world.forget(a)
    world.loop.run(10)
    assert world.rung == [(6, b)]


def test_many_later_alarms_arm_the_loop_once(world: World) -> None:
    for n in range(1000):
        world.set(10 + n)
    assert world.loop.armed == 1


def test_who_sets_and_forgets_fills_no_memory(world: World) -> None:
    kept = world.set(1e9)
    for _ in range(10_000):
        world.forget(world.set(3600.0))
        assert len(world.timers) < 200
    assert kept.is_set


def test_a_time_far_away_is_asked_for_in_pieces(world: World) -> None:
    alarm = world.set(1e6)
    assert world.loop.at is not None
    assert world.loop.at <= LONGEST_S
    world.loop.run(2e6)
    assert world.rung == [(1e6, alarm)]
    assert world.settled == 1


def test_a_ring_may_set_the_next_one(world: World) -> None:
    times: list[float] = []

    def ring(alarm: Alarm) -> None:
        times.append(round(world.loop.now))
        if len(times) < 3:
            world.timers.set(alarm, 7)

    world.timers._ring = ring
    world.set(7)
    world.loop.run(100)
    assert times == [7, 14, 21]


def test_nothing_rings_after_the_end(world: World) -> None:
    world.set(5)
    world.timers.close()
    world.loop.run(10)
    assert world.rung == []
    assert world.loop.at is None
