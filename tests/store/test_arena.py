"""The memory that processes share, as one of them sees it."""

from __future__ import annotations

import gc
import os
import random
import resource
import weakref

import pytest

from taskloom._store.arena import PAGE, Arena, padded
from taskloom._store.stored import Parts, Shape, Stored

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def arena():
    arena = Arena.create(SIZE)
    yield arena
    arena.close()


def content(arena: Arena, offset: int, length: int) -> bytes:
    return bytes(memoryview(arena.mapping())[offset : offset + length])


def resident_bytes(arena: Arena) -> int:
    return os.fstat(arena.fd).st_blocks * 512


@pytest.mark.parametrize("size", [1, PAGE, MIB - 1, 3 * MIB + 5])
def test_what_is_written_can_be_read_also_the_second_and_the_third_time(arena, size):
    # The first time pages are made, the second they are mapped, the third they are copied to.
    for number in range(4):
        data = random.Random(number).randbytes(size)
        cut = size // 3
        arena.write(5 * PAGE, [data[:cut], data[cut:]], fresh=number == 0)
        assert content(arena, 5 * PAGE, size) == data


def test_more_pieces_than_the_system_takes_at_once(arena):
    pieces = [bytes([number % 251]) * 7 for number in range(5000)]
    arena.write(0, pieces, fresh=True)
    assert content(arena, 0, 35_000) == b"".join(pieces)


def test_another_process_view_sees_what_this_one_wrote(arena):
    other = Arena(os.dup(arena.fd), arena.size)
    arena.write(PAGE, [b"hello"], fresh=True)
    assert content(other, PAGE, 5) == b"hello"
    other.write(PAGE, [b"HELLO"], fresh=False)
    assert content(arena, PAGE, 5) == b"HELLO"
    other.close()


def test_memory_is_used_when_it_is_written_and_returned_when_it_is_given_back(arena):
    assert resident_bytes(arena) == 0
    arena.write(0, [bytes(20 * MIB)], fresh=True)
    assert resident_bytes(arena) >= 20 * MIB
    arena.give_back(0, 20 * MIB)
    assert resident_bytes(arena) == 0


def test_writing_again_after_giving_back_touches_nothing_around_it(arena):
    for offset in (0, 4 * MIB, 8 * MIB):
        for _ in range(3):
            arena.write(offset, [b"x" * (4 * MIB)], fresh=False)
    arena.give_back(4 * MIB, 4 * MIB)
    arena.write(4 * MIB, [b"y" * (2 * MIB)], fresh=True)
    assert content(arena, 4 * MIB - 1, 3) == b"xyy"
    assert content(arena, 6 * MIB, 1) == b"\0"
    assert content(arena, 8 * MIB, 1) == b"x"


def test_a_view_is_read_only_and_keeps_what_it_shows(arena):
    class Owner(Stored):
        pass

    arena.write(PAGE, [b"abc"], fresh=True)
    owner = Owner(arena, PAGE, Shape(3, ()))
    data, buffers = owner.open()
    assert (bytes(data), data.readonly, data.format, buffers) == (b"abc", True, "B", [])
    gone = weakref.ref(owner)
    part = data[1:]
    del owner, data
    gc.collect()
    assert gone() is not None
    assert bytes(part) == b"bc"
    del part
    assert gone() is None


def test_a_view_outlives_the_arena(arena):
    other = Arena.create(SIZE)
    other.write(0, [b"still here"], fresh=True)
    data, _ = Stored(other, 0, Shape(10, ())).open()
    other.close()
    assert bytes(data) == b"still here"


def test_two_readers_in_one_process_share_the_memory(arena):
    arena.write(0, [b"old"], fresh=True)
    stored = Stored(arena, 0, Shape(3, ()))
    first, _ = stored.open()
    second, _ = stored.open()
    arena.write(0, [b"new"], fresh=False)
    assert bytes(first) == bytes(second) == b"new"


def test_a_small_address_space_gets_a_small_arena():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * MIB, before[1]))
    try:
        arena = Arena.create(64 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert 64 * MIB <= arena.size <= 512 * MIB
    arena.close()


def test_the_parts_of_a_value_lie_aligned_and_are_found_again(arena):
    buffers = [memoryview(bytes([n]) * n) for n in (1, 64, 100, 0)]
    parts = Parts([b"pick", b"led"], buffers, Shape(7, tuple(len(b) for b in buffers)))
    arena.write(0, parts.stretch(), fresh=True)
    data, found = Stored(arena, 0, parts.shape).open()
    assert bytes(data) == b"pickled"
    assert found == buffers
    assert sum(len(piece) for piece in parts.stretch()) == parts.shape.length
    assert parts.shape.length == padded(7, 64) + 64 + 64 + 128
