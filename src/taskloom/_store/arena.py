"""The memory that all processes of a session share, as one of them sees it.

It is one anonymous file (``memfd``), far larger than what may be used at a time and sparse: pages
come when they are written and go when the driver gives them back.  Workers inherit the descriptor;
nothing has a name, so nothing can be left behind.  Fresh pages are written with ``pwrite``, which
is faster there than a mapping (1.4 against 0.6 GB/s, measured) and says ENOSPC or ENOMEM
where a mapping would die of SIGBUS.  Pages that this process has mapped before are copied
to directly: 5.9 against 4.3 GB/s.

A process maps the file twice: to write, and to read.  The second mapping is read-only for the
processor, too, so C code that writes to an array which it may not change ends its own process,
where it would change what all others see.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from typing import Any, Final

PAGE: Final = mmap.PAGESIZE
ALIGNMENT: Final = 64
"""Where buffers of a value begin: what vector instructions like."""
MIN_ARENA_BYTES: Final = 1 << 20
MAX_ARENA_BYTES: Final = 1 << 44
"""16 TB: the notes that each process makes of its pages have a byte for each MB."""
_GRANULE: Final = 1 << 20
"""How finely it is noted which pages this process has mapped."""
_COPY: Final = 1 << 20
"""Bytes copied at once: other threads run in between."""
_STEP: Final = 16 << 20
"""Bytes of one ``madvise``, which holds the interpreter's lock: some 5 ms."""
_MAX_PIECES: Final = 512  # for one pwritev; the system's limit is 1,024
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, Linux 5.14
_UNKNOWN, _WRITTEN, _MAPPED = range(3)


def anonymous_file(name: str, size: int) -> int:
    """A descriptor of ``size`` bytes of shared memory that has no name anywhere."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        import tempfile  # noqa: PLC0415  # slow to load, and Linux needs it not

        fd, path = tempfile.mkstemp(prefix="taskloom-")
        os.unlink(path)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def padded(size: int, unit: int) -> int:
    """``size`` rounded up to a whole number of units."""
    return -(-size // unit) * unit


class _Descriptor:
    """Closed with the last reference: a thread that writes to it has one of its own.

    A number that is closed in the middle of a write could be somebody else's file by then.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Arena:
    """One process's view of the shared memory.

    Args:
        fd: of the anonymous file; ours from now on, closed by :meth:`close`.
        size: of the file, bytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._file: _Descriptor | None = _Descriptor(fd)
        self.size = size
        self._map: mmap.mmap | None = None  # to write
        self._reading: mmap.mmap | None = None  # views are of this one
        self._views: tuple[Any, mmap.mmap] | None = None  # their ctypes type, and the same mapping
        self._bytes: memoryview | None = None
        self._lock = threading.Lock()
        # For each granule: what this process knows of its pages.
        self._known = bytearray(padded(size, _GRANULE) // _GRANULE)

    @classmethod
    def create(cls, size: int) -> Arena:
        """A new one; smaller than ``size`` where address space or the size of files is limited.

        Raises:
            OSError: not even a small one can be had.
        """
        while True:
            try:
                arena = cls(anonymous_file("taskloom-objects", size), size)
                arena.mapping()
                arena._reading = arena._map_file()  # there must be room for both
            except (OSError, OverflowError, ValueError, MemoryError):
                if size // 2 < MIN_ARENA_BYTES:
                    raise
                size = padded(size // 2, PAGE)
            else:
                return arena

    @property
    def fd(self) -> int:
        """Of the file; -1 when it is closed."""
        return -1 if self._file is None else self._file.number

    def _open_file(self) -> _Descriptor:
        if self._file is None:
            raise ValueError("the shared memory of this session is closed")
        return self._file

    def mapping(self) -> mmap.mmap:
        """The whole file in this process's memory, to write; made when it is first needed.

        Raises:
            ValueError: it is closed.
            OSError: there is no address space for it.
        """
        if (mapping := self._map) is None:
            with self._lock:
                if (mapping := self._map) is None:
                    mapping = self._map_file()
                    self._bytes = memoryview(mapping)
                    self._map = mapping
        return mapping

    def _map_file(self) -> mmap.mmap:
        mapping = mmap.mmap(self._open_file().number, self.size)
        if hasattr(mmap, "MADV_DONTDUMP"):
            # A crash is not to write everybody's values into one process's core.
            mapping.madvise(mmap.MADV_DONTDUMP)
        return mapping

    # -- reading ------------------------------------------------------------------------------

    def window(self, keep: object) -> Any:
        """An exporter of the whole arena; ``keep`` lives as long as it or any view of it.

        It is a ctypes array because that is the one exporter Python 3.11 has that can carry an
        attribute: an array or a memoryview made of it refers to it, however it is sliced.
        """
        window_type, mapping = self._views or self._begin_reading()
        window = window_type.from_buffer(mapping)
        window.keep = keep
        return window

    def _begin_reading(self) -> tuple[Any, mmap.mmap]:
        import ctypes  # noqa: PLC0415  # slow to load, and only for large values

        with self._lock:
            if self._views is None:
                mapping = self._reading or self._map_file()
                window_type = ctypes.c_char * self.size
                # Not mapped so from the start: ctypes takes no buffer that is read-only.
                start = ctypes.c_void_p(ctypes.addressof(window_type.from_buffer(mapping)))
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.mprotect(start, ctypes.c_size_t(self.size), mmap.PROT_READ):
                    raise OSError(ctypes.get_errno(), "mprotect")
                self._reading = mapping
                self._views = window_type, mapping
            return self._views

    # -- writing ------------------------------------------------------------------------------

    def write(self, offset: int, pieces: Sequence[Any], *, fresh: bool) -> None:
        """Write bytes-like ``pieces`` one behind the other, from ``offset`` on.

        Args:
            offset: of the first byte; at the start of a page.
            pieces: contiguous, of format "B".
            fresh: the pages behind it have been given back since this process last saw them.

        Raises:
            OSError: there is no memory (ENOSPC, ENOMEM).
            ValueError: it is closed.
        """
        length = sum(len(piece) for piece in pieces)
        # Only whole granules are remembered: what is smaller is written through the file.
        first, end = -(-offset // _GRANULE), (offset + length) // _GRANULE
        states = self._known[first:end]
        if fresh or _UNKNOWN in states or not states:
            self._write_file(offset, pieces)
            for granule in range(first, end):
                self._known[granule] = _WRITTEN
        elif self._populate(offset, length, first, end):
            self._copy(offset, pieces)
        else:
            self._write_file(offset, pieces)

    def _populate(self, offset: int, length: int, first: int, end: int) -> bool:
        """Map the pages of a range at once: page by page it costs 4 us each."""
        edges = [(offset, first * _GRANULE), (end * _GRANULE, padded(offset + length, PAGE))]
        if _WRITTEN in self._known[first:end]:
            edges = [(offset, padded(offset + length, PAGE))]
        try:
            for first_byte, stop in edges:
                for start in range(first_byte, stop, _STEP):
                    self.mapping().madvise(_POPULATE_WRITE, start, min(_STEP, stop - start))
        except (OSError, ValueError):
            return False  # an older kernel
        for granule in range(first, end):
            self._known[granule] = _MAPPED
        return True

    def _write_file(self, offset: int, pieces: Sequence[Any]) -> None:
        file = self._open_file()
        todo = [memoryview(piece) for piece in pieces if len(piece)]
        at = 0
        while at < len(todo):
            written = os.pwritev(file.number, todo[at : at + _MAX_PIECES], offset)
            offset += written
            while written:
                size = todo[at].nbytes
                if written < size:
                    todo[at] = todo[at][written:]
                    break
                written -= size
                at += 1

    def _copy(self, offset: int, pieces: Sequence[Any]) -> None:
        target = self._bytes
        if target is None:
            raise ValueError("the shared memory of this session is closed")
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, view.nbytes, _COPY):
                part = view[start : start + _COPY]
                target[offset : offset + part.nbytes] = part
                offset += part.nbytes

    def give_back(self, offset: int, length: int) -> None:
        """Return the pages of a range to the system; what was in them reads as zeros."""
        for start in range(offset, offset + length, _STEP):
            try:
                self.mapping().madvise(mmap.MADV_REMOVE, start, min(_STEP, offset + length - start))
            except (AttributeError, OSError, ValueError):
                return  # not on this system: the pages stay and are used again

    def close(self) -> None:
        """Let go of the descriptor; views of the memory stay valid."""
        self._file = self._map = self._bytes = self._reading = self._views = None
