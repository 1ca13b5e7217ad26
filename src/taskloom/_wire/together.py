"""What is said of many small calls, in one message instead of many.

Fast path: a tuple of ten fields for each call costs more to pickle and to read than columns of
numbers and bytes (measured: the engine's thread takes a tenth less for a no-op).
Plain twin: a DONE for each.  The other way goes RUN_MANY, see ``Executor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskloom._wire import messages as m
from taskloom._wire.frames import Message


def gathered(messages: Sequence[Message]) -> list[Message]:
    """The same messages, with a DONE_MANY for each two or more DONE that stand together."""
    out: list[Message] = []
    done: list[Any] = []
    for message in messages:
        if message[0] == m.DONE and message[3] is None and type(message[2]) is bytes:
            done.append(message)
            continue
        if done:
            out.append(_one_of(done))
            done = []
        out.append(message)
    if done:
        out.append(_one_of(done))
    return out


def _one_of(done: list[Any]) -> Message:
    if len(done) == 1:
        return done[0]  # type: ignore[no-any-return]
    _, seqs, payloads, _, seconds = zip(*done, strict=True)
    return m.DONE_MANY, seqs, payloads, seconds
