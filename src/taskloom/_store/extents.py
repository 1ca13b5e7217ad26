"""A set of byte ranges: what is free, or what somebody has been granted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator


class Extents:
    """Ranges ``(offset, length)`` that do not overlap; neighbours melt together.

    Taking the best fit costs O(log n) and a memmove of the index; nothing is ever scanned but in
    :meth:`take_first` and :meth:`take`, for sets that hold few ranges.
    """

    __slots__ = ("_by_end", "_by_size", "_by_start", "total")

    def __init__(self) -> None:
        self._by_start: dict[int, int] = {}  # offset -> length
        self._by_end: dict[int, int] = {}  # offset + length -> offset
        self._by_size: list[tuple[int, int]] = []  # (length, offset), sorted
        self.total = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self._by_start.items()))

    def __len__(self) -> int:
        return len(self._by_start)

    def add(self, offset: int, length: int) -> None:
        """Put a range in; it must not overlap what is there."""
        self.total += length
        before = self._by_end.get(offset)
        if before is not None:
            size = self._remove(before)
            offset, length = before, size + length
        behind = self._by_start.get(offset + length)
        if behind is not None:
            self._remove(offset + length)
            length += behind
        self._by_start[offset] = length
        self._by_end[offset + length] = offset
        insort(self._by_size, (length, offset))

    def take_best(self, length: int) -> int | None:
        """Take ``length`` bytes out of the smallest range that has them; where, or None."""
        at = bisect_left(self._by_size, (length, 0))
        if at == len(self._by_size):
            return None
        return self._carve(self._by_size[at][1], length)

    def take_first(self, length: int) -> int | None:
        """Take ``length`` bytes out of the range with the lowest offset that has them."""
        at = bisect_left(self._by_size, (length, 0))
        if at == len(self._by_size):
            return None
        return self._carve(min(offset for _, offset in self._by_size[at:]), length)

    def take(self, offset: int, length: int) -> bool:
        """Take exactly this range out; False when not all of it is in the set."""
        for start, size in self._by_start.items():
            if start <= offset and offset + length <= start + size:
                self._remove(start)
                self.total -= length
                if offset > start:
                    self._insert(start, offset - start)
                if offset + length < start + size:
                    self._insert(offset + length, start + size - offset - length)
                return True
        return False

    def take_all(self) -> list[tuple[int, int]]:
        """Empty the set; what was in it, by offset."""
        ranges = list(self)
        self.__init__()  # type: ignore[misc]  # an empty set again
        return ranges

    @property
    def largest(self) -> int:
        """The length of the longest range, 0 when there is none."""
        return self._by_size[-1][0] if self._by_size else 0

    def _carve(self, start: int, length: int) -> int:
        size = self._remove(start)
        self.total -= length
        if size > length:
            self._insert(start + length, size - length)
        return start

    def _insert(self, offset: int, length: int) -> None:
        self._by_start[offset] = length
        self._by_end[offset + length] = offset
        insort(self._by_size, (length, offset))

    def _remove(self, offset: int) -> int:
        length = self._by_start.pop(offset)
        del self._by_end[offset + length]
        del self._by_size[bisect_left(self._by_size, (length, offset))]
        return length
