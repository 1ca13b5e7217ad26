"""Large arguments that are passed as they are, without ``put``."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from taskloom._store.stored import Block, Parts
from taskloom.ref import ObjectRef

REMEMBERED: Final = 16
HINT_AT: Final = 3
"""The hint comes when an argument is passed for this many times."""
_COMPARE: Final = 64 * 1024  # bytes at once: copies that stay in the cache


class LargeArguments:
    """Makes objects of large arguments, and one object of one that comes again.

    As long as a stored copy of the same value is needed by some call, later calls share it.
    Whether it is the same is decided by its bytes: the caller may have changed it.

    Args:
        keep: writes a value to the store.
        put: makes an object of a payload and the keys of refs inside it.
    """

    def __init__(
        self,
        keep: Callable[[Parts], Block],
        put: Callable[[Any, tuple[int, ...]], ObjectRef[object]],
    ) -> None:
        self._keep = keep
        self._put = put
        self._recent: OrderedDict[int, tuple[weakref.ref[Block], int]] = OrderedDict()

    def put(
        self, value: object, where: int | str, parts: Parts, contained: tuple[int, ...]
    ) -> ObjectRef[object]:
        """The object that stands for an argument.

        Args:
            value: the argument.
            where: its position or keyword, for the hint.
            parts: its pickle.
            contained: the keys of the refs inside it.
        """
        name = id(value)
        reference, count = self._recent.pop(name, (None, 0))
        block = reference() if reference is not None else None
        if block is None or not _equal(block, parts):
            block, count = self._keep(parts), 0
        count += 1
        self._recent[name] = weakref.ref(block), count
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        if count == HINT_AT:
            what = f"argument {where}" if isinstance(where, int) else f"the argument {where!r}"
            warnings.warn(
                f"{what}, of {parts.shape.size / 1e6:,.1f} MB, is passed again and again: it is "
                "compared with the stored copy each time; ref = taskloom.put(value) once, and pass "
                "the ref",
                UserWarning,
                stacklevel=_callers_level(),
            )
        return self._put(block, contained)


def _callers_level() -> int:
    """How far above :meth:`LargeArguments.put` the first frame is that is not ours."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("taskloom."):
        frame = frame.f_back
        level += 1
    return level


def _equal(block: Block, parts: Parts) -> bool:
    if block.shape != parts.shape:
        return False
    data, buffers = block.open()
    at = 0
    for piece in parts.pieces:
        if not _same(data[at : at + len(piece)], memoryview(piece)):
            return False
        at += len(piece)
    return all(_same(mine, theirs) for mine, theirs in zip(buffers, parts.buffers, strict=True))


def _same(first: memoryview, second: memoryview) -> bool:
    # Comparing memoryviews goes byte by byte; comparing bytes is a memcmp.
    return all(
        bytes(first[at : at + _COMPARE]) == bytes(second[at : at + _COMPARE])
        for at in range(0, first.nbytes, _COMPARE)
    )
