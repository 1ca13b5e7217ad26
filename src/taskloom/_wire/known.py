"""What the peer has been told: functions and specs travel once, then by number.

Both sides keep the same bounded memory, because the one who tells also says what to forget.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from taskloom._options import UNITS_PER_RESOURCE
from taskloom._spec import TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.frames import Message

MAX_FUNCTIONS: Final = 512
MAX_FUNCTION_BYTES: Final = 64 << 20
"""What a function has captured travels with it, and both sides keep it."""
FUNCTIONS_IN_USE: Final = 100
"""The latest ones are kept, however large: their calls may stand queued on the worker."""
MAX_SPECS: Final = 1024


class Known:
    """The functions and specs one peer knows, the one used longest ago first."""

    def __init__(self) -> None:
        self._specs: OrderedDict[int, TaskSpec] = OrderedDict()
        self._functions: OrderedDict[bytes, int] = OrderedDict()  # with the size of each
        self._function_bytes = 0
        self.latest: TaskSpec | None = None  # used last: it stands at the end of both

    def introduce_downwards(self, spec: TaskSpec) -> list[Message]:
        """What a worker must be told before it can run calls of ``spec``."""
        if spec.number in self._specs:
            self.latest = spec
            self._specs.move_to_end(spec.number)
            self._functions.move_to_end(spec.function.key)
            return []
        cpus = dict(spec.request).get("CPU", 0)
        return self._introduce(
            spec,
            (
                m.SPEC, spec.number, spec.function.key, spec.function.name, spec.name,
                spec.num_returns, _packed_retry(spec), max(1, cpus // UNITS_PER_RESOURCE),
                # What an actor has done is gone with it anyway, so its results need no care.
                spec.request, spec.max_retries == 0 and spec.function.blob != b"",
                spec.pace is not None and spec.pace.timeout_s is not None, spec.actor,
                spec.stream,
            ),
        )  # fmt: skip

    def introduce_upwards(self, spec: TaskSpec) -> list[Message]:
        """What the driver must be told before a worker can submit calls of ``spec``."""
        if spec.number in self._specs:
            self.latest = spec
            self._specs.move_to_end(spec.number)
            self._functions.move_to_end(spec.function.key)
            return []
        function = spec.function
        return self._introduce(
            spec,
            (
                m.SPEC, spec.number, function.key, function.name, function.module,
                function.is_coroutine, spec.name, spec.num_returns, spec.request,
                spec.max_retries, _packed_retry(spec), spec.priority,
                tuple(spec.pace) if spec.pace is not None else None,
                spec.actor, spec.group, spec.stream,
            ),
        )  # fmt: skip

    def _introduce(self, spec: TaskSpec, introduction: Message) -> list[Message]:
        messages: list[Message] = []
        key = spec.function.key
        if key in self._functions:
            self._functions.move_to_end(key)
        else:
            self._functions[key] = size = len(spec.function.blob)
            self._function_bytes += size
            messages.append((m.FUNCTION, key, spec.function.blob))
        messages.append(introduction)
        self._specs[spec.number] = spec
        if len(self._specs) > MAX_SPECS:
            number, _ = self._specs.popitem(last=False)
            messages.append((m.FORGET_SPEC, number))
        while len(self._functions) > MAX_FUNCTIONS or (
            self._function_bytes > MAX_FUNCTION_BYTES and len(self._functions) > FUNCTIONS_IN_USE
        ):
            messages.extend(self._forget_function(next(iter(self._functions))))
        self.latest = spec
        return messages

    def _forget_function(self, key: bytes) -> list[Message]:
        self._function_bytes -= self._functions.pop(key)
        numbers = [n for n, spec in self._specs.items() if spec.function.key == key]
        for number in numbers:
            del self._specs[number]
        return [*((m.FORGET_SPEC, number) for number in numbers), (m.FORGET_FUNCTION, key)]


def _packed_retry(spec: TaskSpec) -> bool | bytes:
    retry = spec.retry_exceptions
    if isinstance(retry, (bool, bytes)):
        return retry
    assert spec.retry_blob is not None, "classes come with their pickle"
    return spec.retry_blob
