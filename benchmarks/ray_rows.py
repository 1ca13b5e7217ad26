"""The rows of ``ray microbenchmark``: the same names and the same work, written for any such API.

A row makes what it needs and hands out an operation, which is called again and again and checks
what it gets.  How many things of the row's name one operation does is its ``count``.  What Ray
prints as ``client: ...`` is about its client protocol, which has no counterpart here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, pstdev
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.contenders.ray_api import RayApi
from benchmarks.question import Answer, Metric, Question
from benchmarks.sizes import Sizes
from benchmarks.timing import verify

Operation = Callable[[], None]

_OK = b"ok"
_BATCH = 1_000
_CLIENTS = 4
_CLIENT_CALLS = 10_000
_ACTOR_CALLS = 5_000
_REFS = 10_000
_GROUPS = 100
_PAIRS = max(1, (os.cpu_count() or 2) // 2)
"""Actors on each side of a row with many of them, as many as Ray's own program makes."""
_LARGE_WORDS = 100 * 2**20
_MEDIUM_WORDS = 10 * 2**20


class Kit:
    """Functions and classes of one API.

    They are made inside a method, so that they travel by value and workers import nothing of the
    benchmark's.
    """

    def __init__(self, api: ModuleType) -> None:
        self.api: Any = api

        def oks(refs: list[Any]) -> int:
            values: list[bytes] = api.get(refs)
            return values.count(b"ok")

        def small_value() -> bytes:
            return b"ok"

        task = api.remote(small_value)

        class Echo:
            def small_value(self) -> bytes:
                return b"ok"

            def small_value_of(self, _value: object) -> bytes:
                return b"ok"

            def batch(self, calls: int) -> int:
                return oks([task.remote() for _ in range(calls)])

        class AsyncEcho:
            async def small_value(self) -> bytes:
                return b"ok"

            async def small_value_of(self, _value: object) -> bytes:
                return b"ok"

        class Caller:
            def __init__(self, actors: list[Any]) -> None:
                self.actors = actors

            def batch(self, calls: int) -> int:
                refs = [a.small_value.remote() for a in self.actors for _ in range(calls)]
                return oks(refs)

            def batch_of(self, calls: int) -> int:
                value = api.put(0)
                refs = [a.small_value_of.remote(value) for a in self.actors for _ in range(calls)]
                return oks(refs)

        def work(actors: list[Any], calls: int) -> int:
            refs = [actors[n % len(actors)].small_value.remote() for n in range(calls)]
            return oks(refs)

        self.task = task
        self.echo = api.remote(num_cpus=0)(Echo)
        self.async_echo = api.remote(AsyncEcho)
        self.caller = api.remote(num_cpus=0)(Caller)
        self.work = api.remote(work)

    def expect(self, refs: Any, wanted: object) -> None:
        """Get, and compare."""
        verify("values", self.api.get(refs), wanted)


# -- values ----------------------------------------------------------------------------------------


def get_small(kit: Kit) -> Operation:
    return partial(kit.expect, kit.api.put(0), 0)


def put_small(kit: Kit) -> Operation:
    put = kit.api.put
    verify("what was put", kit.api.get(put(0)), 0)
    return lambda: put(0)


def put_small_in_tasks(kit: Kit) -> Operation:
    put = kit.api.put

    def put_many() -> int:
        return len([put(0) for _ in range(100)])

    task = kit.api.remote(put_many)
    return lambda: kit.expect([task.remote() for _ in range(10)], [100] * 10)


def put_large(kit: Kit) -> Operation:
    array = np.zeros(_LARGE_WORDS, dtype=np.int64)
    array[-1] = 7
    verify("the end of the array", int(kit.api.get(kit.api.put(array))[-1]), 7)
    return lambda: kit.api.put(array)


def put_large_in_tasks(kit: Kit) -> Operation:
    put, words = kit.api.put, _MEDIUM_WORDS

    def put_many() -> int:
        return len([put(np.zeros(words, dtype=np.int64)) for _ in range(10)])

    task = kit.api.remote(put_many)
    return lambda: kit.expect([task.remote() for _ in range(10)], [10] * 10)


def get_containing_refs(kit: Kit) -> Operation:
    put, count = kit.api.put, _REFS

    def many_refs() -> list[Any]:
        return [put(1) for _ in range(count)]

    ref = kit.api.remote(many_refs).remote()
    verify("one of the refs", kit.api.get(kit.api.get(ref)[-1]), 1)
    return lambda: verify("number of refs", len(kit.api.get(ref)), count)


# -- tasks -----------------------------------------------------------------------------------------


def tasks_sync(kit: Kit) -> Operation:
    task = kit.task
    return lambda: kit.expect(task.remote(), _OK)


def tasks_async(kit: Kit) -> Operation:
    task = kit.task
    return lambda: kit.expect([task.remote() for _ in range(_BATCH)], [_OK] * _BATCH)


def wait_one_by_one(kit: Kit) -> Operation:
    api, task = kit.api, kit.task

    def operation() -> None:
        left = [task.remote() for _ in range(_BATCH)]
        done = 0
        for _ in range(_BATCH):
            # Ray keeps a request to fetch once it was made, so that only the first makes it.
            ready, left = api.wait(left, fetch_local=not done)
            done += len(ready)
        verify("refs that were ready", (done, left), (_BATCH, []))

    return operation


def tasks_of_clients(kit: Kit) -> Operation:
    actors = [kit.echo.remote() for _ in range(_CLIENTS)]
    wanted = [_CLIENT_CALLS] * _CLIENTS
    return lambda: kit.expect([a.batch.remote(_CLIENT_CALLS) for a in actors], wanted)


# -- actors ----------------------------------------------------------------------------------------


def actor_sync(kit: Kit, *, kind: str) -> Operation:
    actor = getattr(kit, kind).remote()
    return lambda: kit.expect(actor.small_value.remote(), _OK)


def actor_async(kit: Kit, *, kind: str, **options: object) -> Operation:
    actor = getattr(kit, kind).options(**options).remote()
    wanted = [_OK] * _BATCH
    return lambda: kit.expect([actor.small_value.remote() for _ in range(_BATCH)], wanted)


def actor_async_with_args(kit: Kit) -> Operation:
    actor = kit.async_echo.remote()
    wanted = [_OK] * _BATCH
    return lambda: kit.expect([actor.small_value_of.remote(n) for n in range(_BATCH)], wanted)


def one_to_many(kit: Kit, *, kind: str) -> Operation:
    caller = kit.caller.remote([getattr(kit, kind).remote() for _ in range(_PAIRS)])
    return lambda: kit.expect(caller.batch.remote(_ACTOR_CALLS), _ACTOR_CALLS * _PAIRS)


def many_to_many(kit: Kit, *, kind: str) -> Operation:
    actors = [getattr(kit, kind).remote() for _ in range(_PAIRS)]
    wanted = [_ACTOR_CALLS] * _CLIENTS
    return lambda: kit.expect(
        [kit.work.remote(actors, _ACTOR_CALLS) for _ in range(_CLIENTS)], wanted
    )


def many_to_many_with_arg(kit: Kit) -> Operation:
    callers = [kit.caller.remote([kit.echo.remote()]) for _ in range(_PAIRS)]
    return lambda: kit.expect([c.batch_of.remote(_BATCH) for c in callers], [_BATCH] * _PAIRS)


def placement_groups(kit: Kit) -> Operation:
    util = kit.api.util

    def operation() -> None:
        groups = [util.placement_group(bundles=[{"custom": 0.001}]) for _ in range(_GROUPS)]
        verify("placed", [group.wait(timeout_seconds=30) for group in groups], [True] * _GROUPS)
        for group in groups:
            util.remove_placement_group(group)

    return operation


# -- the list --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: its name at Ray, and how to do its work."""

    name: str
    make: Callable[[Kit], Operation]
    count: float = 1
    only: tuple[str, ...] = ("taskloom", "ray")
    init: Callable[[Sizes], dict[str, object]] | None = None


_LARGE_GB, _MEDIUM_GB = 8 * 0.1, 8 * 0.01  # as Ray counts them
_BY_KIND = {"echo": "actor", "async_echo": "async-actor"}

_ROWS = (
    Row(name="single client get calls (Plasma Store)", make=get_small),
    Row(name="single client put calls (Plasma Store)", make=put_small),
    Row(name="multi client put calls (Plasma Store)", make=put_small_in_tasks, count=1_000),
    Row(name="single client put gigabytes", make=put_large, count=_LARGE_GB),
    Row(name="single client tasks and get batch", make=tasks_async),
    Row(name="multi client put gigabytes", make=put_large_in_tasks, count=100 * _MEDIUM_GB),
    Row(name="single client get object containing 10k refs", make=get_containing_refs),
    Row(name="single client wait 1k refs", make=wait_one_by_one),
    Row(name="single client tasks sync", make=tasks_sync),
    Row(name="single client tasks async", make=tasks_async, count=_BATCH),
    Row(
        name="multi client tasks async",
        make=tasks_of_clients,
        count=_CLIENTS * _CLIENT_CALLS,
    ),
    Row(name="1:1 actor calls sync", make=partial(actor_sync, kind="echo")),
    Row(name="1:1 actor calls async", make=partial(actor_async, kind="echo"), count=_BATCH),
    Row(
        name="1:1 actor calls concurrent",
        make=partial(actor_async, kind="echo", max_concurrency=16),
        count=_BATCH,
    ),
    Row(
        name="1:n actor calls async",
        make=partial(one_to_many, kind="echo"),
        count=_ACTOR_CALLS * _PAIRS,
    ),
    Row(
        name="n:n actor calls async",
        make=partial(many_to_many, kind="echo"),
        count=_ACTOR_CALLS * _CLIENTS,
    ),
    Row(name="n:n actor calls with arg async", make=many_to_many_with_arg, count=_BATCH * _PAIRS),
    Row(name="1:1 async-actor calls sync", make=partial(actor_sync, kind="async_echo")),
    Row(
        name="1:1 async-actor calls async",
        make=partial(actor_async, kind="async_echo"),
        count=_BATCH,
    ),
    Row(name="1:1 async-actor calls with args async", make=actor_async_with_args, count=_BATCH),
    Row(
        name="1:n async-actor calls async",
        make=partial(one_to_many, kind="async_echo"),
        count=_ACTOR_CALLS * _PAIRS,
    ),
    Row(
        name="n:n async-actor calls async",
        make=partial(many_to_many, kind="async_echo"),
        count=_ACTOR_CALLS * _CLIENTS,
    ),
    Row(
        name="placement group create/removal",
        make=placement_groups,
        count=_GROUPS,
        only=("ray",),
        init=lambda _: {"resources": {"custom": 100}},
    ),
)


def _ask(row: Row, contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Rates of a few rounds, after one that does not count."""
    assert isinstance(contender, RayApi), f"{entry.title} does not have Ray's API"
    operation = row.make(Kit(contender.api))
    step = _calls_in(operation, sizes.row_s / 2) // 10 + 1
    rates = []
    for _ in range(sizes.row_rounds):
        calls, started = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started) < sizes.row_s:
            for _ in range(step):
                operation()
            calls += step
        rates.append(row.count * calls / elapsed_s)
    return {"rate": fmean(rates), "spread": pstdev(rates)}


def _calls_in(operation: Operation, seconds: float) -> int:
    calls, deadline = 0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        operation()
        calls += 1
    return calls


ROWS = {
    row.name: Question(
        name=row.name,
        title=row.name,
        metrics=(
            Metric(name="rate", title="per second", unit="1/s", better="higher"),
            Metric(name="spread", title="+-", unit="1/s", is_main=False),
        ),
        inside=partial(_ask, row),
        only=row.only,
        init=row.init,
    )
    for row in _ROWS
}
