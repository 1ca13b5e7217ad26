"""What a worker answers: the value that a task returned, or what it raised, as it travels."""

from __future__ import annotations

import os
import sys
from time import perf_counter
from typing import Final, cast

from taskloom._store.stored import process_store
from taskloom._wire import messages as m
from taskloom._wire.careful import line_of
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, capture
from taskloom._wire.returns import split_returns
from taskloom._wire.serialization import (
    INLINE_BYTES,
    UNSIZED,
    Payload,
    dumps,
    explained,
    loads,
    pack,
    pack_plain,
)
from taskloom._wire.unreadable import Misbehaved
from taskloom._worker.functions import Spec
from taskloom.exceptions import RayError

_NONE: Final = pack_plain(None)
_MOSTLY_SMALL: Final = UNSIZED | {int}


def answer_of(seq: int, spec: Spec, value: object, start: float) -> Message:
    """The DONE message for what a task that began at ``start`` returned.

    Raises:
        Misbehaved: the value cannot be pickled; its cause names the path to the member.
        ValueError: it is not as many values as ``num_returns`` says (REM-7).
    """
    if spec.num_returns == 1:
        if value is None:
            return (m.DONE, seq, _NONE, None, perf_counter() - start)
        if type(value) in _MOSTLY_SMALL:  # and never at fault
            data = pack_plain(value)
            if len(data) <= INLINE_BYTES:
                return (m.DONE, seq, data, None, perf_counter() - start)
        payload, keys = packed(value, f"the return value of {spec.name}()", "value")
        return (m.DONE, seq, payload, keys or None, perf_counter() - start)
    what = f"the return value of {spec.name}()"
    items = split_returns(value, spec.num_returns, spec.name)
    pairs = [packed(item, what, "value") for item in items]
    payloads, contained = [p for p, _ in pairs], [keys for _, keys in pairs]
    return (m.DONE, seq, payloads, contained, perf_counter() - start)


def packed(value: object, what: str, name: str) -> tuple[Payload, tuple[int, ...]]:
    """What a task gives away, as it travels, and the keys of the refs in it.

    Args:
        value: anything.
        what, name: for texts, see ``serialization.explained``.

    Raises:
        Misbehaved: it cannot be pickled; its cause names the path to the member.
        ObjectStoreFullError, OutOfDiskError: there is no room for it.
    """
    try:
        return pack(value, process_store.keep)
    except RayError:
        raise  # there is no room for it
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise  # the task was cancelled
        raise Misbehaved from explained(error, value, what, name)


def failure_of(error: BaseException, spec: Spec) -> Failure:
    """What user code raised, as it travels."""
    return capture(
        error,
        function_name=spec.name,
        pid=os.getpid(),
        proctitle=f"taskloom::{spec.name}",
        dumps=dumps,
        loads=loads,
    )


def wants_retry(error: BaseException, spec: Spec) -> bool:
    """Whether the user asked for another attempt after this exception (REM-17)."""
    if not issubclass(type(error), Exception):
        return False
    if isinstance(spec.retry, bool):
        return spec.retry
    try:
        if isinstance(spec.retry, bytes):
            spec.retry = loads(spec.retry)
        return isinstance(error, cast("tuple[type[BaseException], ...]", spec.retry))
    except BaseException as reason:  # a class that is not here, or an odd __instancecheck__
        sys.stderr.write(f"taskloom: no retry of {spec.name}: {line_of(reason)}\n")
        return False
