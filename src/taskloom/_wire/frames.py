"""Messages on a byte stream, without any I/O: length-prefixed frames of pickled lists.

A frame is one batch of messages::

    | length of the rest: 8 | buffers: 4 | size of each buffer: 8 * n | pickle | buffer ... |

Small values are inside the pickle.  Large ones stand behind it as raw buffers, so that the
sender hands them to ``sendmsg`` as they are and the receiver maps them where they arrived.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final

_HEAD: Final = struct.Struct("<QI")
_SIZE: Final = struct.Struct("<Q")
_CHUNK: Final = 256 * 1024
_FIRST_BYTES: Final = 64 * 1024 * 1024
MAX_FRAME_BYTES: Final = 1 << 40
"""Longer than any real frame: a length above it means that the stream is broken."""

_dumps = pickle.dumps
_loads = pickle.loads

Message = tuple[Any, ...]


class ProtocolError(Exception):
    """The peer sent something that is not a frame."""


def encode(messages: list[Message]) -> list[Any]:
    """The pieces to send for one batch, in order; one piece when there are no large values."""
    buffers: list[pickle.PickleBuffer] = []
    body = _dumps(messages, 5, buffer_callback=buffers.append)
    if not buffers:
        return [_HEAD.pack(len(body), 0) + body]
    views = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(view.nbytes) for view in views)
    total = len(sizes) + len(body) + sum(view.nbytes for view in views)
    return [_HEAD.pack(total, len(views)) + sizes + body, *views]


class FrameReader:
    """Cuts a stream into batches.

    Usage: receive into ``buffer()``, then ``received(n)`` gives the batches that are complete.
    A frame that does not fit into the standing buffer gets memory of its own, which the values
    in it keep; everything smaller is copied out by the pickle module.
    """

    __slots__ = ("_big", "_big_filled", "_big_size", "_filled", "_store", "_view")

    def __init__(self) -> None:
        self._store = bytearray(_CHUNK)
        self._view = memoryview(self._store)
        self._filled = 0
        self._big: bytearray | None = None
        self._big_filled = 0
        self._big_size = 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._big is not None:
            if self._big_filled == len(self._big):
                self._big = _grown(self._big, min(self._big_size, 2 * len(self._big)))
            return memoryview(self._big)[self._big_filled :]
        return self._view[self._filled :] if self._filled else self._view

    def received(self, count: int) -> list[list[Message]]:
        """Take note of ``count`` new bytes in ``buffer()``; the batches that are complete now.

        Raises:
            ProtocolError: this is not a stream of frames.
        """
        if self._big is not None:
            self._big_filled += count
            if self._big_filled < self._big_size:
                return []
            frame, self._big = self._big, None
            return [_decode(memoryview(frame), keep=True)]
        if not self._filled and count > _HEAD.size:
            # Fast path: one small frame, and nothing before or behind it (2,000 instructions of
            # some 60,000 in a worker and 100,000 in the engine).  Plain twin: ``_cut``.
            length, buffers = _HEAD.unpack_from(self._view)
            if not buffers and length == count - _HEAD.size:
                return [_load(self._view[_HEAD.size : count])]
        self._filled += count
        return self._cut()

    def _cut(self) -> list[list[Message]]:
        batches: list[list[Message]] = []
        filled, start = self._filled, 0
        view = self._view
        while filled - start >= _HEAD.size:
            length, buffers = _HEAD.unpack_from(view, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes")
            end = start + _HEAD.size + length
            if end > filled:
                if end - start > len(self._store):
                    # Memory grows with what has arrived, not with what was announced.
                    self._big_size = end - start
                    self._big = bytearray(min(self._big_size, _FIRST_BYTES))
                    self._big[: filled - start] = view[start:filled]
                    self._big_filled = filled - start
                    start = filled
                break
            if buffers:
                batches.append(_decode(view[start:end], keep=False))
            else:
                batches.append(_load(view[start + _HEAD.size : end]))
            start = end
        if start:
            rest = filled - start
            if rest:
                self._store[:rest] = bytes(view[start:filled])
            self._filled = rest
        return batches


def _grown(buffer: bytearray, size: int) -> bytearray:
    grown = bytearray(size)
    grown[: len(buffer)] = buffer
    return grown


def _load(body: memoryview) -> list[Message]:
    """The messages of a frame without buffers."""
    try:
        messages = _loads(body)
    except Exception as error:
        raise ProtocolError(f"a frame that cannot be read: {error!r}") from error
    if type(messages) is not list:
        raise ProtocolError(f"a frame holds a list of messages, got {type(messages).__name__}")
    return messages


def _decode(frame: memoryview, *, keep: bool) -> list[Message]:
    """The messages of one whole frame; ``keep``: its memory may be kept by large values."""
    try:
        count = _HEAD.unpack_from(frame)[1]
        at = _HEAD.size
        if not count:
            return _load(frame[at:])
        table = at + _SIZE.size * count
        sizes = [_SIZE.unpack_from(frame, at + _SIZE.size * i)[0] for i in range(count)]
        body_end = len(frame) - sum(sizes)
        if body_end < table:
            raise ProtocolError("the buffers of a frame are longer than the frame")
        buffers: list[Any] = []
        position = body_end
        for size in sizes:
            piece = frame[position : position + size]
            buffers.append(piece if keep else bytes(piece))
            position += size
        messages = _loads(frame[table:body_end], buffers=buffers)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a frame that cannot be read: {error!r}") from error
    if type(messages) is not list:
        raise ProtocolError(f"a frame holds a list of messages, got {type(messages).__name__}")
    return messages
