"""Large values in a session: written once, never copied, read-only, freed with the last view."""

from __future__ import annotations

import gc
import os
import pickle
import sys

import numpy as np
import pytest

from gates import Gate, eventually
from taskloom import _current

MB = 1_000_000


def used_bytes() -> int:
    backend = _current.require()
    return backend.memory().used_bytes


def all_free() -> bool:
    return eventually(lambda: gc.collect() >= 0 and used_bytes() == 0)


@pytest.fixture(autouse=True)
def _nothing_stays(tl):
    yield
    assert all_free(), str(tl.memory())


def test_an_array_arrives_read_only_and_two_gets_share_its_memory(tl):
    array = np.arange(MB)
    ref = tl.put(array)
    first, second = tl.get(ref), tl.get(ref)
    assert np.array_equal(first, array)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, array)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    copy = first.copy()
    copy[0] = 1


def test_a_small_array_is_read_only_too(tl):
    assert not tl.get(tl.put(np.arange(3))).flags.writeable


def test_the_caller_may_change_his_array_after_put(tl):
    array = np.zeros(MB)
    ref = tl.put(array)
    array[:] = 1
    assert tl.get(ref).sum() == 0


@pytest.mark.parametrize("dtype", ["u1", "f4", "c16", "M8[s]", "S3", [("a", "i4"), ("b", "f8")]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_kind_keep_their_kind(tl, dtype, order):
    array = np.zeros((300, 500), dtype=dtype, order=order)
    found = tl.get(tl.put(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.flags.f_contiguous == array.flags.f_contiguous
    assert (found == array).all()


def test_a_view_outlives_its_ref(tl):
    array = tl.get(tl.put(np.arange(MB)))
    gc.collect()
    assert used_bytes() >= 8 * MB
    part = array[5:10]
    del array
    assert part.tolist() == [5, 6, 7, 8, 9]
    assert used_bytes() >= 8 * MB


def test_a_value_is_freed_with_its_last_ref(tl):
    ref = tl.put(np.arange(MB))
    other = ref
    del ref
    assert used_bytes() >= 8 * MB
    del other
    assert eventually(lambda: used_bytes() == 0)


def test_thousands_of_puts_in_a_loop_leave_nothing(tl):
    for _ in range(2000):
        tl.put(np.empty(100_001, np.uint8))
    assert all_free()


def test_the_same_object_twice_in_one_value_is_the_same_object_there(tl):
    array = np.arange(MB)
    first, second = tl.get(tl.put([array, array]))
    assert first is second


@pytest.mark.parametrize(
    "value",
    [
        b"x" * MB,
        bytearray(b"y" * MB),
        "ü" * MB,
        list(range(MB // 5)),
        {"a": b"z" * MB, "b": np.ones(MB)},
        (np.ones((0, 5)), np.ones(MB), b""),
    ],
    ids=["bytes", "bytearray", "str", "list", "dict", "tuple"],
)
def test_large_values_of_other_types_arrive_whole(tl, value):
    @tl.remote
    def same(x):
        return x

    for found in (tl.get(tl.put(value)), tl.get(same.remote(value))):
        assert type(found) is type(value)
        if isinstance(value, (dict, tuple)):
            np.testing.assert_equal(found, value)
        else:
            assert found == value
        del found


def test_a_task_reads_its_argument_where_it_lies(tl):
    @tl.remote
    def look(array):
        return array.flags.writeable, float(array.sum()), array.ctypes.data % 64

    ref = tl.put(np.ones(MB))
    assert tl.get([look.remote(ref)] * 3) == [(False, float(MB), 0)] * 3
    assert tl.get(look.remote(np.ones(MB))) == (False, float(MB), 0)


def test_a_result_is_written_by_the_worker_and_read_by_the_driver(tl):
    @tl.remote
    def make(n):
        return np.full(n, 7.0)

    array = tl.get(make.remote(MB))
    assert array.sum() == 7 * MB
    assert not array.flags.writeable


def test_several_results_lie_in_the_store_each(tl):
    @tl.remote(num_returns=3)
    def make():
        return np.ones(MB), 5, np.zeros(MB)

    ones, five, zeros = make.remote()
    assert (tl.get(ones).sum(), tl.get(five), tl.get(zeros).sum()) == (MB, 5, 0)
    del ones
    assert eventually(lambda: gc.collect() >= 0 and used_bytes() < 9 * MB)


def test_a_large_result_goes_on_to_the_next_task(tl):
    @tl.remote
    def step(array):
        return array + 1

    ref = step.remote(np.zeros(200_000))
    for _ in range(20):
        ref = step.remote(ref)
    assert tl.get(ref)[0] == 21


def test_what_a_task_puts_and_passes_on_outlives_the_task(tl):
    @tl.remote
    def produce():
        return [tl.put(np.full(MB, number)) for number in range(3)]

    refs = tl.get(produce.remote())
    assert [tl.get(ref)[0] for ref in refs] == [0, 1, 2]


def test_a_worker_s_death_takes_no_object_along(tl):
    @tl.remote
    def produce():
        return os.getpid(), [tl.put(np.full(MB, 5))]

    @tl.remote(max_retries=0)
    def die():
        os.kill(os.getpid(), 9)

    _, [ref] = tl.get(produce.remote())
    for _ in range(4):
        with pytest.raises(tl.exceptions.WorkerCrashedError):
            tl.get(die.remote())
    assert tl.get(ref).sum() == 5 * MB


def test_what_a_worker_keeps_of_an_argument_stays_until_it_lets_go(tl):
    @tl.remote
    def stash(array):
        sys.modules["stash"] = array[:10]
        return os.getpid()

    @tl.remote
    def drop():
        return sys.modules.pop("stash", None) is not None

    tl.get(stash.remote(np.ones(MB)))
    gc.collect()
    assert used_bytes() >= 8 * MB
    dropped = sum(tl.get([drop.remote() for _ in range(40)]))
    while not dropped:
        dropped = sum(tl.get([drop.remote() for _ in range(40)]))
    assert all_free()


def test_a_forgotten_cycle_in_an_idle_worker_is_collected(tl):
    @tl.remote
    def forget(array):
        class Node:
            pass

        node = Node()
        node.me, node.array = node, array

    tl.get(forget.remote(np.ones(MB)))
    assert eventually(lambda: used_bytes() == 0)


def test_a_forgotten_cycle_in_an_idle_worker_for_coroutines_is_collected(tl):
    @tl.remote
    async def forget(array):
        class Node:
            pass

        node = Node()
        node.me, node.array = node, array

    tl.get(forget.remote(np.ones(MB)))
    assert eventually(lambda: used_bytes() == 0)


def test_what_a_container_holds_lives_as_long_as_the_container(tl):
    inner = tl.put(np.ones(MB))
    outer = tl.put([inner])
    del inner
    gc.collect()
    assert used_bytes() >= 8 * MB
    [again] = tl.get(outer)
    del outer
    assert tl.get(again).sum() == MB


def test_a_waiting_task_keeps_its_arguments(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def hold():
        gate.enter()

    @tl.remote
    def total(array, _after):
        return float(array.sum())

    result = total.remote(tl.put(np.ones(MB)), hold.remote())
    gc.collect()
    assert used_bytes() >= 8 * MB
    gate.open()
    assert tl.get(result) == MB


def test_an_argument_that_is_passed_again_is_stored_once(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def total(array, number):
        gate.stay()
        return float(array.sum()) + number

    array = np.ones(MB)
    with pytest.warns(
        UserWarning, match="argument 0, of 8.0 MB, is passed again and again"
    ) as said:
        refs = [total.remote(array, number) for number in range(10)]
    assert len(said) == 1
    assert said[0].filename == __file__
    assert 8 * MB <= used_bytes() < 9 * MB
    array[:] = 2
    refs.append(total.remote(array, 0))
    assert 16 * MB <= used_bytes() < 17 * MB
    gate.open()
    assert tl.get(refs) == [MB + n for n in range(10)] + [2 * MB]


def test_keyword_arguments_and_mixed_ones_find_their_places(tl):
    @tl.remote
    def f(a, b, *rest, c, d=None):
        return float(a.sum()), b, [float(r.sum()) for r in rest], float(c.sum()), d

    big = np.ones(MB)
    ref = tl.put(big * 2)
    assert tl.get(f.remote(big, "b", ref, big * 3, c=big * 4, d=5)) == (
        MB, "b", [2.0 * MB, 3.0 * MB], 4.0 * MB, 5,
    )  # fmt: skip


def test_many_middling_arguments_travel_beside_the_call(tl):
    @tl.remote
    def total(*arrays):
        return sum(int(array.sum()) for array in arrays)

    assert tl.get(total.remote(*[np.ones(50_000, np.uint8) for _ in range(20)])) == MB


def test_a_value_is_released_when_the_task_that_got_it_is_cancelled(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def hold(_array):
        gate.enter()

    ref = hold.remote(np.ones(MB))
    gate.wait_for("task")
    tl.cancel(ref)
    with pytest.raises(tl.exceptions.TaskCancelledError):
        tl.get(ref)
    gate.open()


def test_a_result_nobody_waits_for_is_freed(tl):
    @tl.remote
    def make():
        return np.ones(MB)

    for _ in range(10):
        make.remote()
    tl.get(make.remote())
    assert all_free()


async def test_awaiting_gives_the_same_shared_memory(tl):
    ref = tl.put(np.ones(MB))
    first = await ref
    assert np.shares_memory(first, await ref)


def test_memory_says_what_there_is_and_who_keeps_it(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def hold(array):
        gate.enter()
        return array.sum()

    ref = tl.put(np.ones(MB))
    again, view = ref, tl.get(ref)
    small = tl.put([ref])
    pending = hold.remote(ref)
    gate.wait_for("task")
    report = tl.memory()
    by_id = {info.object_id: info for info in report.objects}
    large = by_id[ref.hex()]
    assert large.where == "store"
    assert 8 * MB < large.size_bytes < 8 * MB + 1000
    assert "task hold" in large.holders
    assert "an object that contains it" in large.holders
    assert "views in the driver" in large.holders
    assert "views in workers" in large.holders
    assert by_id[small.hex()].where == "inline"
    assert by_id[pending.hex()].where == "pending"
    assert by_id[pending.hex()].created_at == "task hold"
    assert report.objects[0] is large
    assert ref.hex() in str(report)
    gate.open()
    tl.get(pending)
    del again, view


def test_memory_answers_inside_a_task(tl):
    @tl.remote
    def ask():
        ref = tl.put(np.ones(MB))
        return [(i.where, i.size_bytes > 8 * MB) for i in tl.memory().objects], ref

    found, _ = tl.get(ask.remote())
    assert ("store", True) in found


def test_a_worker_that_writes_one_large_result_after_another_is_given_space_unasked(tl):
    @tl.remote
    def make(number):
        return np.full(200_000, number, np.uint8)

    refs = [make.remote(number % 200) for number in range(100)]
    assert [int(array[0]) for array in tl.get(refs)] == [number % 200 for number in range(100)]


class Provider:
    """What pandas, pyarrow and the like do: a pickle with a buffer beside it."""

    def __init__(self, buffer) -> None:
        self.view = memoryview(buffer)

    def __reduce_ex__(self, protocol):
        return Provider, (pickle.PickleBuffer(self.view),)


def test_whatever_provides_buffers_is_not_copied(tl):
    ref = tl.put(Provider(b"x" * MB))
    found, again = tl.get(ref), tl.get(ref)
    assert found.view.readonly
    assert bytes(found.view) == b"x" * MB
    one, other = np.frombuffer(found.view, np.uint8), np.frombuffer(again.view, np.uint8)
    assert np.shares_memory(one, other)
