"""The driver's books: what is used, granted, warm and cold, and that it always adds up."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom._store.arena import PAGE
from taskloom._store.extents import Extents
from taskloom._store.object_store import ObjectStore
from taskloom._store.stored import Parts, Sealed, Shape

CAPACITY = 100 * PAGE


@pytest.fixture
def store():
    store = ObjectStore(CAPACITY, lambda: None)
    yield store
    store.close()


def parts(size: int, fill: int = 1) -> Parts:
    data = bytes([fill]) * size
    return Parts([data], [], Shape(size, ()))


def write(store: ObjectStore, pages: int, fill: int = 1):
    space = store.allocate(pages * PAGE)
    return None if space is None else store.write(parts(pages * PAGE, fill), space)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, 60)),
            st.tuples(st.just("drop"), st.integers(0, 20)),
            st.tuples(st.just("view"), st.integers(0, 20)),
            st.tuples(st.just("look away"), st.integers(0, 20)),
            st.tuples(st.just("trim"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_bytes_in_the_store_are_the_bytes_that_somebody_can_reach(steps):
    store = ObjectStore(CAPACITY, lambda: None)
    blocks, views = [], []
    for number, (what, amount) in enumerate(steps):
        fill = number % 250 + 1
        if what == "write":
            block = write(store, amount, fill)
            if block is not None:
                blocks.append((block, fill))
            else:
                free = CAPACITY - store.used
                assert amount * PAGE > free, "there was room"
            block = None
        elif what == "drop" and blocks:
            blocks.pop(amount % len(blocks))
        elif what == "view" and blocks:
            block, fill = blocks[amount % len(blocks)]
            views.append((block.open()[0], fill))
            block = None
        elif what == "look away" and views:
            views.pop(amount % len(views))
        elif what == "trim":
            store.trim()
            assert store.warm == 0
        store.tidy()
        reachable = {block.offset: block.length for block, _ in blocks}
        for view, _ in views:
            reachable[id(view.obj.keep)] = 0
        owners = {id(block): block.length for block, _ in blocks}
        for view, _ in views:
            owner = view.obj.keep
            owners[id(owner)] = owner.length
        assert store.used == sum(owners.values())
        assert store.granted == 0
        assert store.used + store.warm <= CAPACITY
        assert os.fstat(store.arena.fd).st_blocks * 512 <= store.used + store.warm
        for block, fill in blocks:
            assert set(bytes(block.open()[0])) == {fill}
        for view, fill in views:
            assert set(bytes(view)) == {fill}
        block = owner = view = None
    blocks.clear()
    views.clear()
    store.tidy()
    assert store.used == 0
    store.close()


def test_space_that_was_freed_is_used_again_while_its_pages_are_there(store):
    first = write(store, 10)
    offset = first.offset
    assert first is not None
    del first
    space = store.allocate(10 * PAGE)
    assert (space.offset, space.fresh) == (offset, False)
    store.give_back(space.offset, space.length)


def test_warm_space_is_given_up_when_something_larger_needs_the_room(store):
    blocks = [write(store, 10) for _ in range(10)]
    assert write(store, 1) is None
    del blocks[::2]  # five holes of ten pages
    store.tidy()
    block = write(store, 45, fill=9)
    assert block is not None
    assert set(bytes(block.open()[0])) == {9}


def test_what_a_worker_wrote_is_taken_over_only_where_it_was_granted(store):
    space = store.allocate(4 * PAGE)
    granted = Extents()
    granted.add(space.offset, space.length)
    shape = Shape(PAGE, ())
    assert store.adopt(granted, Sealed(space.offset + 4 * PAGE, PAGE, shape)) is None
    assert store.adopt(granted, Sealed(space.offset, 5 * PAGE, shape)) is None
    assert store.adopt(granted, Sealed(space.offset, PAGE, Shape(PAGE + 1, ()))) is None
    assert store.adopt(granted, Sealed(space.offset, 100, Shape(100, ()))) is None
    block = store.adopt(granted, Sealed(space.offset + PAGE, PAGE, shape))
    assert (block.offset, granted.total, store.granted) == (space.offset + PAGE, 3 * PAGE, 3 * PAGE)
    assert store.adopt(granted, Sealed(space.offset + PAGE, PAGE, shape)) is None, "twice"


def test_a_write_that_fails_gives_the_space_back(store, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    space = store.allocate(PAGE)
    monkeypatch.setattr(store.arena, "write", fails)
    with pytest.raises(OSError, match="No space"):
        store.write(parts(10), space)
    assert (store.granted, store.used) == (0, 0)


def test_blocks_that_die_on_many_threads_are_all_accounted_for(store):
    def churn():
        for _ in range(200):
            write(store, 1)

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.tidy()
    assert (store.used, store.granted) == (0, 0)
    assert len(store.blocks) == 0


def test_a_block_that_dies_after_the_store_was_closed_is_nobody_s_business():
    store = ObjectStore(CAPACITY, lambda: None)
    block = write(store, 3, fill=5)
    view = block.open()[0]
    store.close()
    assert set(bytes(view)) == {5}
    del view, block
