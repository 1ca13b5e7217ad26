"""An exception and all that led to it as text, at most ``MAX_TEXT_BYTES`` of it.

The standard library's own format wherever everything is finite, small and well-behaved; a plain
one, bounded everywhere, for the rest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from taskloom import exceptions
from taskloom._wire.careful import cut, is_group, name_of, text_of

if TYPE_CHECKING:
    import traceback
    from collections.abc import Iterable, Iterator

MAX_TEXT_BYTES: Final = 512 * 1024
_MAX_CHAIN: Final = 32  # exceptions of a chain or group that the standard library may format
_ENGINE = os.path.dirname(os.path.abspath(exceptions.__file__)) + os.sep
_NOISE = ("<frozen importlib", "<frozen runpy>")


def describe(error: BaseException) -> str:
    """The traceback of ``error`` and all that led to it, without the engine's own frames."""
    try:
        if _is_tame(error):
            return cut(_format_tame(error), MAX_TEXT_BYTES)
    except BaseException:
        pass  # not so tame: the careful way is next
    try:
        return cut("".join(_format_carefully(error)), MAX_TEXT_BYTES)
    except BaseException as reason:
        rest = f"<what led to it could not be described: {type(reason).__name__}>"
        return f"{name_of(type(error))}: {text_of(error)[0]}\n{rest}"


def _is_tame(error: BaseException) -> bool:
    """True when the standard library can format it: all is finite, small and well-behaved."""
    stack: list[BaseException | None] = [error]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if len(seen) > _MAX_CHAIN:
            return False
        if text_of(item)[1]:
            return False
        stack.append(item.__cause__)
        stack.append(item.__context__)
        if is_group(item):
            stack.extend(item.exceptions[: _MAX_CHAIN + 1])
    return True


def _format_tame(error: BaseException) -> str:
    # Loaded by the first error: it brings linecache and tokenize along.
    import traceback  # noqa: PLC0415

    formatted = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    formatted.__notes__ = None  # they travel with the exception
    queue: list[traceback.TracebackException | None] = [formatted]
    while queue:
        item = queue.pop()
        if item is not None:
            item.stack[:] = _of_the_user(item.stack)
            queue += [item.__cause__, item.__context__, *(item.exceptions or ())]
    return "".join(formatted.format())


def _of_the_user(
    frames: Iterable[traceback.FrameSummary],
) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in frames
        if not frame.filename.startswith(_ENGINE) and not frame.filename.startswith(_NOISE)
    ]


def _format_carefully(error: BaseException) -> Iterator[str]:
    """A plain traceback of a hostile exception: bounded in chain, group, frames and text."""
    chain: list[tuple[BaseException, str]] = [(error, "")]
    seen = {id(error)}
    while len(chain) < 100_000:
        last = chain[-1][0]
        if last.__cause__ is not None:
            before: BaseException | None = last.__cause__
            how = "The above exception was the direct cause of the following exception:"
        else:
            before = None if last.__suppress_context__ else last.__context__
            how = "During handling of the above exception, another exception occurred:"
        if before is None or id(before) in seen:
            break
        seen.add(id(before))
        chain.append((before, how))
    if len(chain) > 10:
        n = len(chain) - 10
        chain[5:-5] = [(exceptions.RayError(f"<{n} more exceptions of the chain left out>"), "")]
    for item, how in reversed(chain):
        yield from _format_one(item)
        if how:
            yield f"\n{how}\n\n"


def _format_one(error: BaseException, depth: int = 0) -> Iterator[str]:
    import traceback  # noqa: PLC0415  # as above

    margin = "    " * depth
    frames = _of_the_user(traceback.extract_tb(error.__traceback__, limit=-200))
    if frames:
        yield f"{margin}Traceback (most recent call last):\n"
        for line in traceback.format_list(frames):
            yield margin + line
    text, _ = text_of(error)
    name = name_of(type(error)).removeprefix("__main__.")
    yield f"{margin}{name}{': ' if text else ''}{text}\n"
    if is_group(error) and depth < 4:
        for member in error.exceptions[:15]:
            yield from _format_one(member, depth + 1)
        if len(error.exceptions) > 15:
            yield f"{margin}    <{len(error.exceptions) - 15} more exceptions left out>\n"
