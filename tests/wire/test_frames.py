"""Batches of messages on a byte stream: whole again, however they were cut."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom._wire.frames import MAX_FRAME_BYTES, FrameReader, ProtocolError, encode
from taskloom._wire.serialization import Packed

CHUNK = len(FrameReader().buffer())
HEAD = struct.Struct("<QI")


def stream_of(*batches: list[tuple[object, ...]]) -> bytes:
    return b"".join(bytes(piece) for batch in batches for piece in encode(batch))


def feed(reader: FrameReader, data: bytes, *, at_most: int | None = None) -> list[list[object]]:
    """Receive ``data`` as a socket would give it: as much as fits, in pieces of ``at_most``."""
    batches: list[list[object]] = []
    view = memoryview(data)
    while view:
        room = reader.buffer()
        count = min(len(room), len(view), at_most or len(view))
        assert count > 0, "the reader has no room for more"
        room[:count] = view[:count]
        view = view[count:]
        batches += reader.received(count)  # type: ignore[arg-type]
    return batches


def packed(data: bytes, *buffers: bytes) -> Packed:
    return Packed(data, buffers)


def plain(batches: list[list[object]]) -> list[list[object]]:
    """The same with the bytes of large values instead of the values."""
    return [
        [
            tuple(
                (bytes(part.data), *map(bytes, part.buffers)) if isinstance(part, Packed) else part
                for part in message  # type: ignore[attr-defined]
            )
            for message in batch
        ]
        for batch in batches
    ]


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=200)
larges = st.builds(packed, st.binary(max_size=400), st.binary(max_size=400))
messages = st.lists(scalars | larges, min_size=1, max_size=5).map(tuple)
streams = st.lists(st.lists(messages, min_size=1, max_size=4), max_size=6)


@given(streams, st.integers(1, 300))
def test_what_was_sent_arrives_however_it_is_cut(
    batches: list[list[tuple[object, ...]]], at_most: int
) -> None:
    received = feed(FrameReader(), stream_of(*batches), at_most=at_most)
    assert plain(received) == plain(batches)  # type: ignore[arg-type]


@given(streams, st.lists(st.integers(1, 60), min_size=1, max_size=50))
def test_what_was_sent_arrives_in_pieces_of_any_size(
    batches: list[list[tuple[object, ...]]], sizes: list[int]
) -> None:
    reader, received, data = FrameReader(), [], stream_of(*batches)
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        received += feed(reader, data[:size])
        data, turn = data[size:], turn + 1
    assert plain(received) == plain(batches)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from([0, 1, CHUNK - 100, CHUNK - 60, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK]),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from([None, 1000, CHUNK // 2 + 1]),
)
def test_large_values_arrive_between_small_ones(
    sizes: list[int], beside: bool, at_most: int | None
) -> None:
    batches: list[list[tuple[object, ...]]] = []
    for size in sizes:
        value = bytes([size % 251]) * size
        batches.append([(1, packed(b"pickle", value) if beside else value)])
        batches.append([(2, "small")])
    received = feed(FrameReader(), stream_of(*batches), at_most=at_most)
    assert plain(received) == plain(batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("spare", range(-3, 4))
def test_a_frame_that_fills_the_standing_buffer_to_the_byte(spare: int) -> None:
    empty = len(stream_of([(b"",)]))
    batch: list[tuple[object, ...]] = [(b"x" * (CHUNK - empty - 20),)]
    size = CHUNK + spare
    batch = [(b"x" * (CHUNK - empty - 20 + size - len(stream_of(batch))),)]
    assert abs(len(stream_of(batch)) - size) <= 1
    reader = FrameReader()
    small: list[tuple[object, ...]] = [(1,)]
    assert feed(reader, stream_of(small, batch, small)) == [small, batch, small]
    assert feed(reader, stream_of(batch, batch)) == [batch, batch]


def test_a_batch_of_small_messages_is_one_piece() -> None:
    assert len(encode([(1, b"a"), (2, "b")])) == 1


def test_large_values_are_sent_without_being_copied() -> None:
    value = bytearray(1_000_000)
    head, *views = encode([(1, packed(b"pickle", value))])  # type: ignore[arg-type]
    assert len(head) < 1000
    value[0] = 7
    assert views[-1][0] == 7


def test_large_values_lie_where_they_arrived() -> None:
    (((_, value),),) = feed(FrameReader(), stream_of([(1, packed(b"p", b"x" * (2 * CHUNK)))]))  # type: ignore[misc]
    (buffer,) = value.buffers
    assert isinstance(buffer, memoryview)
    assert isinstance(buffer.obj, bytearray)


def test_what_arrives_is_read_only() -> None:
    sizes = (10, 2 * CHUNK)
    for size in sizes:
        (((_, value),),) = feed(FrameReader(), stream_of([(1, packed(b"p", b"x" * size))]))  # type: ignore[misc]
        assert memoryview(value.buffers[0]).readonly


def test_a_value_does_not_change_when_the_next_frame_arrives() -> None:
    reader = FrameReader()
    ((kept,),) = feed(reader, stream_of([(1, packed(b"first", b"a" * 500))]))
    feed(reader, stream_of([(1, packed(b"other", b"b" * 500))]))
    assert plain([[kept]]) == [[(1, (b"first", b"a" * 500))]]


def test_there_is_always_room_for_more() -> None:
    reader = FrameReader()
    data = stream_of([(b"x" * (CHUNK + 50),)], [(1,)])
    for byte in data[:200]:
        assert len(reader.buffer()) > 0
        feed(reader, bytes([byte]))
    assert [len(batch) for batch in feed(reader, data[200:])] == [1, 1]


# -- garbage -----------------------------------------------------------------------------------


def frame(body: bytes, *, buffers: int = 0, table: bytes = b"", length: int | None = None) -> bytes:
    rest = table + body
    return HEAD.pack(len(rest) if length is None else length, buffers) + rest


@pytest.mark.parametrize(
    "data",
    [
        frame(b""),
        frame(b"not a pickle"),
        frame(pickle.dumps([(1,)])[:-3]),
        frame(pickle.dumps("no list")),
        frame(pickle.dumps((1, 2))),
        frame(pickle.dumps([(1,)]), buffers=1),
        frame(pickle.dumps([(1,)]), buffers=2**32 - 1),
        frame(pickle.dumps([(1,)]), buffers=1, table=struct.pack("<Q", 2**63)),
        frame(pickle.dumps([(1,)]), buffers=1, table=struct.pack("<Q", 10**6)),
        frame(pickle.dumps([(1,)]), buffers=2, table=struct.pack("<QQ", 5, 2**64 - 1)),
        frame(encode([(packed(b"p", b"b"),)])[0][HEAD.size + 16 :]),
        HEAD.pack(MAX_FRAME_BYTES + 1, 0),
        b"\xff" * HEAD.size,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda data: data[:24].hex(),
)
def test_what_is_no_frame_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(FrameReader(), data)


@given(st.binary(max_size=300))
def test_a_frame_of_garbage_is_a_list_or_a_protocol_error(body: bytes) -> None:
    try:
        batches = feed(FrameReader(), frame(body))
    except ProtocolError:
        return
    assert all(type(batch) is list for batch in batches)


@given(
    st.lists(messages, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_frame_is_a_list_or_a_protocol_error(
    batch: list[tuple[object, ...]], damage: list[tuple[int, int]]
) -> None:
    data = bytearray(stream_of(batch))
    for position, value in damage:
        # The length stays as it is: a longer one would only make the reader wait.
        data[8 + position % (len(data) - 8)] = value
    try:
        batches = feed(FrameReader(), bytes(data))
    except ProtocolError:
        return
    assert all(type(batch) is list for batch in batches)


def test_memory_grows_with_what_has_arrived_not_with_what_was_announced() -> None:
    reader = FrameReader()
    feed(reader, HEAD.pack(1 << 28, 0))
    assert len(reader.buffer()) <= 1 << 26


def test_a_length_that_is_longer_than_any_frame_needs_no_memory_at_all() -> None:
    with pytest.raises(ProtocolError, match=r"a frame of \d+ bytes"):
        feed(FrameReader(), HEAD.pack(MAX_FRAME_BYTES + 1, 0))
