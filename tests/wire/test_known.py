"""What the peer knows: told once, forgotten on both sides at the same moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from taskloom._spec import Function, FunctionKey, Pace, TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.known import (
    FUNCTIONS_IN_USE,
    MAX_FUNCTION_BYTES,
    MAX_FUNCTIONS,
    MAX_SPECS,
    Known,
)
from taskloom._wire.serialization import dumps, loads


def a_function(number: int) -> Function:
    return Function(
        key=FunctionKey(f"key {number}".encode()),
        blob=f"blob {number}".encode(),
        name=f"f{number}",
        module="m",
        is_coroutine=False,
    )


def a_spec(function: Function, **options: object) -> TaskSpec:
    values: dict[str, object] = {
        "name": function.name,
        "num_returns": 1,
        "request": (("CPU", 10_000),),
        "max_retries": 0,
        "retry_exceptions": False,
        "priority": 0,
    }
    return TaskSpec(function=function, **{**values, **options})  # type: ignore[arg-type]


class Peer:
    """Keeps what it is told, as a worker and the driver do."""

    def __init__(self) -> None:
        self.functions: dict[bytes, bytes] = {}
        self.specs: dict[int, bytes] = {}

    def hear(self, messages: list[Message]) -> None:
        for op, *content in messages:
            if op == m.FUNCTION:
                key, blob = content
                assert key not in self.functions, "told twice"
                self.functions[key] = blob
            elif op == m.SPEC:
                number, key = content[:2]
                assert number not in self.specs, "told twice"
                assert key in self.functions, "a spec came before its function"
                self.specs[number] = key
            elif op == m.FORGET_SPEC:
                del self.specs[content[0]]
            else:
                assert op == m.FORGET_FUNCTION
                del self.functions[content[0]]
                assert content[0] not in self.specs.values(), "a spec outlives its function"


Introduce = Callable[[Known, TaskSpec], list[Message]]
WAYS: list[Introduce] = [Known.introduce_downwards, Known.introduce_upwards]


@pytest.mark.parametrize("introduce", WAYS)
def test_a_spec_is_told_once_and_its_function_before_it(introduce: Introduce) -> None:
    known, spec = Known(), a_spec(a_function(1))
    assert [message[0] for message in introduce(known, spec)] == [m.FUNCTION, m.SPEC]
    assert introduce(known, spec) == []


@pytest.mark.parametrize("introduce", WAYS)
def test_a_function_is_told_once_for_all_its_specs(introduce: Introduce) -> None:
    known, function = Known(), a_function(1)
    introduce(known, a_spec(function))
    assert [message[0] for message in introduce(known, a_spec(function))] == [m.SPEC]


def test_the_same_function_of_two_wrappers_is_told_once() -> None:
    known = Known()
    known.introduce_downwards(a_spec(a_function(1)))
    (message,) = known.introduce_downwards(a_spec(a_function(1)))
    assert message[0] == m.SPEC


def test_a_worker_is_told_what_it_needs_to_run_a_spec() -> None:
    function = a_function(1)
    spec = a_spec(function, name="load", num_returns=2, request=(("CPU", 25_000),))
    (_, told) = Known().introduce_downwards(spec)
    assert told == (
        m.SPEC, spec.number, function.key, "f1", "load", 2, False, 2, spec.request, True, False,
        None, None,
    )  # fmt: skip


@pytest.mark.parametrize(("retries", "only_once"), [(0, True), (1, False), (-1, False)])
def test_a_worker_is_told_whether_a_task_may_run_twice(retries: int, only_once: bool) -> None:
    (_, told) = Known().introduce_downwards(a_spec(a_function(1), max_retries=retries))
    assert told[9] is only_once


@pytest.mark.parametrize(
    ("pace", "timed"),
    [(None, False), (Pace(retry_delay_s=1.0), False), (Pace(timeout_s=1.0), True)],
)
def test_a_worker_is_told_whether_a_task_has_a_time_limit(pace: Pace | None, timed: bool) -> None:
    (_, told) = Known().introduce_downwards(a_spec(a_function(1), pace=pace))
    assert told[10] is timed


@pytest.mark.parametrize("pace", [None, Pace(5.0, 1.0, 2.0, 0.5, True)])
def test_the_driver_is_told_the_pace_of_what_a_worker_submits(pace: Pace | None) -> None:
    (_, told) = Known().introduce_upwards(a_spec(a_function(1), pace=pace))
    assert (Pace(*told[12]) if told[12] else None) == pace


@pytest.mark.parametrize("limit", [None, 0, 3])
def test_both_sides_are_told_of_a_stream_and_its_limit(limit: int | None) -> None:
    spec = a_spec(a_function(1), stream=limit)
    for introduce in WAYS:
        assert introduce(Known(), spec)[1][-1] == limit


@pytest.mark.parametrize(("units", "threads"), [(0, 1), (5_000, 1), (10_000, 1), (40_000, 4)])
def test_a_task_has_as_many_threads_as_whole_cpus_and_at_least_one(
    units: int, threads: int
) -> None:
    request = (("CPU", units),) if units else ()
    (_, told) = Known().introduce_downwards(a_spec(a_function(1), request=request))
    assert told[7] == threads


@pytest.mark.parametrize("introduce", WAYS)
@pytest.mark.parametrize("retry", [True, False])
def test_whether_to_retry_travels_as_it_is(introduce: Introduce, retry: bool) -> None:
    (_, told) = introduce(Known(), a_spec(a_function(1), retry_exceptions=retry))
    assert retry in told[6:]


@pytest.mark.parametrize("introduce", WAYS)
def test_the_classes_to_retry_travel_pickled_and_only_once(introduce: Introduce) -> None:
    classes = (ValueError, OSError)
    spec = a_spec(a_function(1), retry_exceptions=classes, retry_blob=dumps(classes))
    (_, told) = introduce(Known(), spec)
    (blob,) = [part for part in told[6:] if isinstance(part, bytes)]
    assert loads(blob) == (ValueError, OSError)
    (_, again) = introduce(Known(), a_spec(a_function(2), retry_exceptions=blob))
    assert blob in again


@pytest.mark.parametrize("introduce", WAYS)
def test_both_sides_agree_after_ten_thousand_introductions(introduce: Introduce) -> None:
    rng = random.Random(5)
    functions = [a_function(number) for number in range(3 * MAX_FUNCTIONS // 2)]
    specs = [a_spec(rng.choice(functions)) for _ in range(2 * MAX_SPECS)]
    known, peer = Known(), Peer()
    for step in range(10_000):
        # At times a few again and again, at times all of them.
        spec = rng.choice(specs if step % 1000 < 700 else specs[:50])
        peer.hear(introduce(known, spec))
        assert peer.specs[spec.number] == spec.function.key
        assert peer.functions[spec.function.key] == spec.function.blob
        assert len(peer.specs) <= MAX_SPECS
        assert len(peer.functions) <= MAX_FUNCTIONS
    assert set(known._specs) == set(peer.specs)
    assert set(known._functions) == set(peer.functions)
    assert {n: s.function.key for n, s in known._specs.items()} == peer.specs


@pytest.mark.parametrize("introduce", WAYS)
def test_what_is_used_all_the_time_is_not_forgotten(introduce: Introduce) -> None:
    known, favourite = Known(), a_spec(a_function(0))
    introduce(known, favourite)
    for number in range(1, 2 * MAX_FUNCTIONS):
        introduce(known, a_spec(a_function(number)))
        assert introduce(known, favourite) == []


@pytest.mark.parametrize("introduce", WAYS)
def test_a_program_that_makes_functions_without_end_needs_bounded_memory(
    introduce: Introduce,
) -> None:
    known, peer = Known(), Peer()
    for number in range(5 * MAX_FUNCTIONS):
        peer.hear(introduce(known, a_spec(a_function(number))))
    assert len(peer.functions) == MAX_FUNCTIONS
    assert len(peer.specs) == MAX_FUNCTIONS


@pytest.mark.parametrize("introduce", WAYS)
def test_large_functions_are_forgotten_sooner_but_none_that_may_be_queued_FAULTS_48(
    introduce: Introduce,
) -> None:
    known, peer = Known(), Peer()
    size = MAX_FUNCTION_BYTES // (FUNCTIONS_IN_USE + 50)
    specs = [
        a_spec(replace(a_function(number), blob=bytes(size))) for number in range(MAX_FUNCTIONS)
    ]
    for spec in specs:
        peer.hear(introduce(known, spec))
        assert sum(map(len, peer.functions.values())) <= MAX_FUNCTION_BYTES
    assert len(peer.functions) == FUNCTIONS_IN_USE + 50

    huge = [a_spec(replace(a_function(-n), blob=bytes(4 * size))) for n in range(1, 300)]
    for spec in huge:
        peer.hear(introduce(known, spec))
    assert set(peer.functions) == {s.function.key for s in huge[-FUNCTIONS_IN_USE:]}
    for number in range(MAX_FUNCTIONS):  # small ones push the large ones out again
        peer.hear(introduce(known, a_spec(a_function(1000 + number))))
    assert len(peer.functions) == MAX_FUNCTIONS


@pytest.mark.parametrize("introduce", WAYS)
def test_what_was_forgotten_is_told_again(introduce: Introduce) -> None:
    known, peer, first = Known(), Peer(), a_spec(a_function(0))
    peer.hear(introduce(known, first))
    for number in range(1, MAX_FUNCTIONS + 1):
        peer.hear(introduce(known, a_spec(a_function(number))))
    assert first.number not in peer.specs
    peer.hear(introduce(known, first))
    assert peer.specs[first.number] == first.function.key


def test_no_two_messages_have_the_same_number() -> None:
    numbers = [number for name, number in vars(m).items() if name.isupper()]
    assert len(numbers) == len(set(numbers)) > 20
