"""What a worker knows of the calls it gets: functions, options, and the one that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskloom._wire import messages as m
from taskloom._wire.custom_serializers import serializers
from taskloom._wire.frames import Message
from taskloom._wire.serialization import unpack_function


class Spec:
    """What the worker knows of the calls of one remote function with one set of options."""

    __slots__ = (
        "actor", "function", "function_key", "function_name", "is_coroutine", "last_s", "name",
        "num_returns", "once", "request", "retry", "stream", "threads", "timed",
    )  # fmt: skip

    def __init__(self, message: Message) -> None:
        (_, _, self.function_key, self.function_name, self.name, self.num_returns, retry,
         self.threads, self.request, self.once, self.timed, self.actor,
         self.stream) = message  # fmt: skip
        # Pickled classes are loaded by the first failure: it is no matter of the message loop's.
        self.retry: bool | bytes | tuple[type[BaseException], ...] = retry
        self.last_s = 1.0  # seconds; long until it is known
        self.function: Callable[..., Any] | None = None  # unpickled by the first call


class Running:
    """The task that runs now, for those who ask from inside it."""

    __slots__ = ("accelerators", "attempt", "cancelled", "key", "seq", "spec")

    def __init__(
        self, spec: Spec, key: int, seq: int, attempt: int, accelerators: dict[str, Any] | None
    ) -> None:
        self.spec = spec
        self.key = key
        self.seq = seq
        self.attempt = attempt
        self.accelerators = accelerators or {}
        self.cancelled = False


class Functions:
    """The functions and specs that the driver has defined here."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self.specs: dict[int, Spec] = {}

    def on_message(self, message: Message) -> None:
        op = message[0]
        if op == m.SPEC:
            self.specs[message[1]] = Spec(message)
        elif op == m.FUNCTION:
            self._blobs[message[1]] = message[2]
        elif op == m.FORGET_SPEC:
            self.specs.pop(message[1], None)
        elif op == m.FORGET_FUNCTION:
            self._blobs.pop(message[1], None)
            self._functions.pop(message[1], None)
        elif op == m.SERIALIZER:
            serializers.receive(message[1])

    def get(self, spec: Spec) -> Callable[..., Any]:
        """The function of a spec, unpickled at its first call."""
        function = self._functions.get(spec.function_key)
        if function is None:
            function = unpack_function(self._blobs[spec.function_key])
            self._functions[spec.function_key] = function
            del self._blobs[spec.function_key]
        spec.function = function
        return function
