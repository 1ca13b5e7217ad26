"""Tasks: calls, nesting, coroutines, several returns."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken, add
from tests.gates import Gate

import taskloom as tl


def test_a_call_gives_a_ref_whose_value_get_returns():
    ref = add.remote(1, 2)
    assert isinstance(ref, tl.ObjectRef)
    assert tl.get(ref) == 3


def test_a_thousand_calls_give_a_thousand_answers():
    assert tl.get([add.remote(n, n) for n in range(1000)]) == [2 * n for n in range(1000)]


def test_refs_as_arguments_are_waited_for_and_arrive_as_values():
    total = add.remote(add.remote(1, 2), b=add.remote(3, b=tl.put(4)))
    assert tl.get(total) == 10


def test_arguments_are_checked_against_the_signature_at_the_call():
    with pytest.raises(TypeError, match="argument"):
        add.remote(1)
    with pytest.raises(TypeError, match="colour"):
        add.remote(1, 2, colour="blue")


def test_a_remote_function_cannot_be_called_directly():
    with pytest.raises(TypeError, match="remote"):
        add(1, 2)


@pytest.mark.differs("local_mode", "tasks run in the program's own process")
def test_tasks_run_in_other_processes():
    pid = tl.remote(os.getpid)
    assert os.getpid() not in tl.get([pid.remote() for _ in range(4)])


@pytest.mark.differs("local_mode", AT_ONCE)
def test_tasks_run_side_by_side(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def meet():
        gate.enter("here")

    refs = [meet.remote(), meet.remote()]
    gate.wait_for("here", 2)
    gate.open()
    tl.get(refs, timeout=LONG_S)


def test_tasks_call_tasks_and_lend_their_cpu_while_they_wait():
    @tl.remote
    def tree(depth):
        if not depth:
            return 1
        return sum(tl.get([tree.remote(depth - 1) for _ in range(2)]))

    assert tl.get(tree.remote(3), timeout=LONG_S) == 8


def test_a_task_that_asks_for_all_cpus_may_call_another_that_does():
    @tl.remote(num_cpus=2)
    def inner():
        return "inner"

    @tl.remote(num_cpus=2)
    def outer():
        return tl.get(inner.remote())

    assert tl.get(outer.remote(), timeout=LONG_S) == "inner"


def test_a_recursive_function_knows_itself():
    @tl.remote
    def factorial(n):
        return 1 if n < 2 else n * tl.get(factorial.remote(n - 1))

    assert tl.get(factorial.remote(4), timeout=LONG_S) == 24


def test_a_ref_that_a_task_returns_is_good_for_its_caller():
    @tl.remote
    def start():
        return [add.remote(1, 1), tl.put("kept")]

    first, second = tl.get(start.remote())
    assert (tl.get(first), tl.get(second)) == (2, "kept")


def test_an_async_function_is_a_task():
    @tl.remote
    async def double(n):
        await asyncio.sleep(0)
        return 2 * n

    assert tl.get([double.remote(n) for n in range(10)]) == [2 * n for n in range(10)]


@pytest.mark.differs("local_mode", AT_ONCE)
def test_coroutines_run_side_by_side_in_large_numbers(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    async def meet():
        gate.note("here")
        while not (tmp_path / "open").exists():
            await asyncio.sleep(0.01)

    refs = [meet.remote() for _ in range(40)]
    gate.wait_for("here", 40)
    gate.open()
    tl.get(refs, timeout=LONG_S)


def test_a_coroutine_awaits_tasks():
    @tl.remote
    async def outer():
        return await add.remote(1, 2) + sum(
            await asyncio.gather(add.remote(3, 4), add.remote(5, 6))
        )

    assert tl.get(outer.remote(), timeout=LONG_S) == 21


def test_a_coroutine_that_asks_for_a_cpu_gets_one():
    @tl.remote(num_cpus=1)
    async def inside():
        await asyncio.sleep(0)
        return tl.get_runtime_context().get_assigned_resources()

    assert tl.get(inside.remote(), timeout=LONG_S) == {"CPU": 1.0}


def test_several_returns_are_a_list_of_refs():
    @tl.remote(num_returns=3)
    def three():
        return 1, "two", [3]

    first, second, third = three.remote()
    assert tl.get([third, second, first]) == [[3], "two", 1]


def test_no_return_is_no_ref(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(num_returns=0)
    def nothing():
        gate.note("ran")

    assert nothing.remote() is None
    gate.wait_for("ran")


def test_the_number_of_returns_may_be_said_at_the_call():
    @tl.remote
    def pair():
        return 1, 2

    assert tl.get(pair.remote()) == (1, 2)
    assert tl.get(pair.options(num_returns=2).remote()) == [1, 2]


def test_too_few_returned_values_are_an_error():
    @tl.remote(num_returns=3)
    def two():
        return 1, 2

    for ref in two.remote():
        with pytest.raises(ValueError, match="3"):
            tl.get(ref)


def test_a_generator_fills_its_returns_one_by_one():
    @tl.remote(num_returns=2)
    def breaks_later():
        yield "first"
        raise Broken(1, "later")

    first, second = breaks_later.remote()
    assert tl.get(first) == "first"
    with pytest.raises(Broken):
        tl.get(second)


def test_defaults_keywords_and_variable_arguments_arrive():
    @tl.remote
    def look(a, b=2, *rest, c, d=4, **more):
        return a, b, rest, c, d, more

    assert tl.get(look.remote(1, c=3)) == (1, 2, (), 3, 4, {})
    assert tl.get(look.remote(1, 5, 6, 7, c=8, e=9)) == (1, 5, (6, 7), 8, 4, {"e": 9})


def test_options_at_a_call_change_nothing_for_others():
    @tl.remote(name="one")
    def look():
        return tl.get_runtime_context().get_task_name()

    other = look.options(name="two")
    assert tl.get([look.remote(), other.remote(), look.remote()]) == ["one", "two", "one"]


def test_a_long_chain_of_tasks_comes_to_its_end():
    ref = tl.put(0)
    for _ in range(200):
        ref = add.remote(ref, 1)
    assert tl.get(ref, timeout=LONG_S) == 200


def test_a_task_may_take_hundreds_of_refs():
    @tl.remote
    def total(*values):
        return sum(values)

    assert tl.get(total.remote(*[add.remote(n, 0) for n in range(300)]), timeout=LONG_S) == 44_850


def test_many_threads_may_submit():
    found = []

    def submit(n):
        found.append(tl.get(add.remote(n, n), timeout=LONG_S))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(found) == [2 * n for n in range(16)]


def test_a_ref_whose_task_has_not_ended_can_travel_and_be_waited_for(tmp_path):
    @tl.remote(num_cpus=0.1)
    def ask(box):
        return tl.get(box[0]), tl.wait(box)[1]

    assert tl.get(ask.remote([add.remote(add.remote(1, 1), 1)]), timeout=LONG_S) == (3, [])
