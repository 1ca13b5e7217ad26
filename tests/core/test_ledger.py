"""The books of what there is, what is taken, and which devices they are."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from loom_driver import request_of

from taskloom._core.resources import Allocation, Ledger, describe


def ledger(cpus: float = 4, gpus: int = 0, **others: float) -> Ledger:
    total = {"CPU": cpus, **others}
    if gpus:
        total["GPU"] = gpus
    return Ledger(total, [f"g{index}" for index in range(gpus)])


def test_what_is_taken_is_not_free_and_comes_back() -> None:
    books = ledger(cpus=4)
    allocation = books.acquire(request_of(3))
    assert books.describe_free() == {"CPU": 1.0}
    assert not books.fits(request_of(2))
    books.release(allocation)
    assert books.describe_free() == books.describe_total() == {"CPU": 4.0}


def test_fractions_add_up_exactly() -> None:
    books = ledger(cpus=1)
    for _ in range(10):
        assert books.fits(request_of(0.1))
        books.acquire(request_of(0.1))
    assert not books.fits(request_of(0.0001))
    assert books.free == {"CPU": 0}


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.sampled_from([0, 0.5, 1, 2])),
        max_size=12,
    )
)
def test_to_take_is_to_ask_whether_it_fits_and_to_acquire_it(
    requests: list[tuple[float, float]],
) -> None:
    quick, plain = ledger(cpus=4, gpus=2), ledger(cpus=4, gpus=2)
    for cpus, gpus in requests:
        request = request_of(cpus, {"GPU": gpus} if gpus else {})
        taken = quick.take(request)
        wanted = plain.acquire(request) if plain.fits(request) else None
        assert (taken is None) == (wanted is None)
        if taken is not None and wanted is not None:
            assert (taken.request, taken.devices) == (wanted.request, wanted.devices)
        assert quick.free == plain.free


def test_a_request_for_nothing_always_fits() -> None:
    books = ledger(cpus=0)
    assert books.fits(())
    assert books.can_ever_fit(())
    books.release(books.acquire(()))
    assert books.free == books.total


def test_more_than_there_is_can_never_fit() -> None:
    books = ledger(cpus=2, tpu=1)
    assert not books.can_ever_fit(request_of(3))
    assert not books.can_ever_fit(request_of(1, {"unknown": 1}))
    assert books.can_ever_fit(request_of(2, {"tpu": 1}))


def test_a_request_fits_only_when_every_part_of_it_does() -> None:
    books = ledger(cpus=4, tpu=1)
    books.acquire(request_of(0, {"tpu": 1}))
    assert not books.fits(request_of(1, {"tpu": 1}))
    assert books.fits(request_of(1))


def test_whole_gpus_are_told_apart() -> None:
    books = ledger(gpus=3)
    first = books.acquire(request_of(0, {"GPU": 1}))
    second = books.acquire(request_of(0, {"GPU": 2}))
    assert books.device_ids(first) == {"GPU": ("g0",)}
    assert books.device_ids(second) == {"GPU": ("g1", "g2")}
    assert not books.fits(request_of(0, {"GPU": 1}))


def test_a_gpu_that_comes_back_is_used_again() -> None:
    books = ledger(gpus=2)
    first = books.acquire(request_of(0, {"GPU": 1}))
    books.acquire(request_of(0, {"GPU": 1}))
    books.release(first)
    assert books.device_ids(books.acquire(request_of(0, {"GPU": 1}))) == {"GPU": ("g0",)}


def test_parts_of_a_gpu_share_one_device() -> None:
    books = ledger(gpus=2)
    parts = [books.acquire(request_of(0, {"GPU": 0.25})) for _ in range(4)]
    assert {books.device_ids(part)["GPU"] for part in parts} == {("g0",)}
    assert books.fits(request_of(0, {"GPU": 1}))


def test_a_part_goes_to_the_device_that_is_used_most() -> None:
    books = ledger(gpus=2)
    books.acquire(request_of(0, {"GPU": 0.3}))
    books.acquire(request_of(0, {"GPU": 0.8}))  # does not fit on g0
    small = books.acquire(request_of(0, {"GPU": 0.2}))
    assert books.device_ids(small) == {"GPU": ("g1",)}


def test_parts_of_different_devices_are_not_one_whole() -> None:
    books = ledger(gpus=2)
    books.acquire(request_of(0, {"GPU": 0.6}))
    books.acquire(request_of(0, {"GPU": 0.6}))
    assert books.free["GPU"] == 8000
    assert not books.fits(request_of(0, {"GPU": 0.5}))
    assert not books.fits(request_of(0, {"GPU": 1}))
    assert books.fits(request_of(0, {"GPU": 0.4}))


def test_a_task_without_gpus_has_no_devices() -> None:
    books = ledger(gpus=1)
    assert books.device_ids(books.acquire(request_of(1))) == {}


def test_a_blocked_task_lends_its_cpus_and_only_them() -> None:
    books = ledger(cpus=2, gpus=1, tpu=1)
    allocation = books.acquire(request_of(2, {"GPU": 1, "tpu": 1}))
    books.lend_cpus(allocation)
    assert books.describe_free() == {"CPU": 2.0}
    books.reclaim_cpus(allocation)
    assert books.describe_free() == {}


def test_a_task_that_goes_on_takes_its_cpus_though_they_are_not_there() -> None:
    books = ledger(cpus=1)
    blocked = books.acquire(request_of(1))
    books.lend_cpus(blocked)
    other = books.acquire(request_of(1))
    books.reclaim_cpus(blocked)
    assert books.free == {"CPU": -10_000}
    assert not books.fits(request_of(0.5))
    assert books.describe_free() == {}
    books.release(other)
    assert books.free == {"CPU": 0}
    books.release(blocked)
    assert books.free == books.total


def test_lending_twice_lends_once() -> None:
    books = ledger(cpus=1)
    allocation = books.acquire(request_of(1))
    books.lend_cpus(allocation)
    books.lend_cpus(allocation)
    assert books.free == {"CPU": 10_000}
    books.reclaim_cpus(allocation)
    books.reclaim_cpus(allocation)
    assert books.free == {"CPU": 0}


def test_cpus_that_are_lent_are_not_given_back_a_second_time() -> None:
    books = ledger(cpus=1)
    allocation = books.acquire(request_of(1))
    books.lend_cpus(allocation)
    books.release(allocation)
    assert books.free == books.total


def test_a_task_that_waits_for_nothing_but_gpus_lends_nothing() -> None:
    books = ledger(cpus=1, gpus=1)
    allocation = books.acquire(request_of(0, {"GPU": 1}))
    books.lend_cpus(allocation)
    assert books.describe_free() == {"CPU": 1.0}
    books.reclaim_cpus(allocation)
    books.release(allocation)
    assert books.free == books.total


def test_a_session_without_cpus_serves_requests_without_cpus() -> None:
    books = Ledger({"memory": 1}, [])
    allocation = books.acquire(())
    books.lend_cpus(allocation)
    books.reclaim_cpus(allocation)
    books.release(allocation)
    assert not books.describe_free().get("CPU")


def test_a_request_is_described_as_users_write_it() -> None:
    assert describe(request_of(0.5, {"tpu": 2})) == {"CPU": 0.5, "tpu": 2.0}


REQUESTS = [
    request_of(cpus, needs)
    for cpus in (0, 0.1, 0.3333, 1, 2)
    for needs in ({}, {"GPU": 0.1}, {"GPU": 0.7}, {"GPU": 1}, {"GPU": 2}, {"tpu": 0.0001})
]


class Bookkeeper:
    """Does what it is told and compares the books with its own."""

    def __init__(self) -> None:
        self.books = ledger(cpus=3, gpus=3, tpu=1)
        self.held: list[Allocation] = []

    def act(self, what: int, which: int) -> None:
        if what == 0:
            request = REQUESTS[which % len(REQUESTS)]
            if self.books.fits(request):
                self.held.append(self.books.acquire(request))
        elif self.held:
            position = which % len(self.held)
            allocation = self.held[position]
            if what == 1:
                self.held[position] = self.held[-1]
                self.held.pop()
                self.books.release(allocation)
            elif what == 2:
                self.books.lend_cpus(allocation)
            else:
                self.books.reclaim_cpus(allocation)

    def compare(self) -> None:
        used: Counter[str] = Counter()
        devices: Counter[str] = Counter()
        for allocation in self.held:
            for name, units in allocation.request:
                if not (name == "CPU" and allocation.cpus_lent):
                    used[name] += units
                if name == "GPU":
                    ids = self.books.device_ids(allocation)["GPU"]
                    assert len(set(ids)) == len(ids) == max(1, units // 10_000)
                    for device in ids:
                        devices[device] += min(units, 10_000)
        for name, total in self.books.total.items():
            assert self.books.free[name] == total - used[name]
        assert all(units <= 10_000 for units in devices.values()), "a device is given out twice"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=200))
def test_the_books_always_agree_with_what_is_held(actions: list[tuple[int, int]]) -> None:
    keeper = Bookkeeper()
    for action in actions:
        keeper.act(*action)
        keeper.compare()


def test_nothing_drifts_in_a_million_steps() -> None:
    keeper = Bookkeeper()
    rng = random.Random(1)
    choices = rng.choices((0, 1, 2, 3), weights=(5, 4, 1, 1), k=1_000_000)
    for step, what in enumerate(choices):
        keeper.act(what, step * 7919)
    keeper.compare()
    for allocation in keeper.held:
        keeper.books.release(allocation)
    keeper.held.clear()
    keeper.compare()
    assert keeper.books.free == keeper.books.total
    assert keeper.books.fits(request_of(3, {"GPU": 3, "tpu": 1}))
