"""What is said of many small calls, in one message instead of many.

Fast path: a tuple of ten fields for each call costs more to pickle and to read than columns of
numbers and bytes (measured: the engine's thread takes a tenth less for a no-op).
Plain twin: a DONE, or a SUBMIT, for each.  The other way goes RUN_MANY, see ``Executor``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskloom._wire import messages as m
from taskloom._wire.frames import Message


def gathered(messages: Sequence[Message]) -> list[Message]:
    """The same messages, with one for each two or more that stand together and are alike.

    DONE become a DONE_MANY, SUBMIT of one function by one task a SUBMIT_MANY.
    """
    out: list[Message] = []
    alike: list[Message] = []
    kind: object = None
    for message in messages:
        this: object = None
        if message[0] == m.DONE:
            if message[3] is None and type(message[2]) is bytes:
                this = m.DONE
        elif message[0] == m.SUBMIT:
            _, _, number, payload, holes, dep_keys, nested_keys, context, parent = message
            if holes is None and context is None and type(payload) is bytes:
                this = None if dep_keys or nested_keys else (number, parent)
        if this != kind:
            if alike:
                out.append(_one_of(alike))
                alike = []
            kind = this
        (out if this is None else alike).append(message)
    if alike:
        out.append(_one_of(alike))
    return out


def _one_of(alike: list[Message]) -> Message:
    if len(alike) == 1:
        return alike[0]
    if alike[0][0] == m.DONE:
        _, seqs, payloads, _, seconds = zip(*alike, strict=True)
        return m.DONE_MANY, seqs, payloads, seconds
    _, keys, numbers, payloads, _, _, _, _, parents = zip(*alike, strict=True)
    return m.SUBMIT_MANY, keys, numbers[0], payloads, parents[0]


def submits_of(message: Message) -> Iterator[Message]:
    """The SUBMIT messages that a SUBMIT_MANY stands for."""
    _, keys, number, payloads, parent = message
    for key, payload in zip(keys, payloads, strict=True):
        yield m.SUBMIT, key, number, payload, None, (), (), None, parent
