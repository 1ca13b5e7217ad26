"""ObjectRefGenerator: the refs of what a generator yields, as they come.

It is the only consumer of a *stream*.  The first ref in line is *claimed* from the backend before
it is done; so waiting for the next item is waiting for a ref, in all the ways there are, and a ref
that was waited for is the one that is handed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar

from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom.backends.base import Backend

T_co = TypeVar("T_co", covariant=True)

END: Final = b""
"""The outcome behind the last item of a stream: no value has an empty pickle."""
STOP: Final = b"stop"
"""The outcome of a *room* (see ``_core/streams``) when nothing that is yielded matters any more."""


class Source(Protocol):
    """A stream as its backend gives it to the consumer."""

    @property
    def home(self) -> Backend:
        """Whose stream it is."""

    @property
    def completed(self) -> ObjectRef[Any]:
        """The output of the call, done when the generator has ended."""

    def claim(self) -> ObjectRef[Any]:
        """The next in line: done, or not yet.  The one before must be done, and not the end."""

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        """True when a claimed ref is done.  Exact, at the price of a question if need be."""

    def is_end(self, ref: ObjectRef[Any]) -> bool:
        """True when a ref that is done is no item, but the end."""

    def wait(self, ref: ObjectRef[Any], timeout_s: float | None) -> None:
        """Block until a claimed ref is done or time is up; at once if it is done already."""

    def on_taken(self) -> None:
        """An item was handed out."""

    def share(self) -> ObjectRef[None]:
        """One more ref to ``completed``, which keeps the generator running."""

    def drop(self, *, for_good: bool) -> None:
        """Nothing more is wanted.  Takes no lock and calls no user code.

        ``for_good``: nor is ``completed``.
        """


class ObjectRefGenerator(Generic[T_co]):
    """What the call of a generator gives: the refs of its items, one by one, while it runs.

    ::

        for ref in f.remote(): print(taskloom.get(ref))
        async for ref in f.remote(): print(await ref)              # asyncio or trio

    An error of the generator comes as one more ref, which raises it; then the iteration ends.
    Dropping the generator, or :meth:`close`, stops the task.  For one consumer at a time; it cannot
    be passed to tasks.
    """

    __slots__ = ("__weakref__", "_closed", "_head", "_source")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._head: ObjectRef[Any] | None = None  # claimed, and not handed out yet
        self._closed = False

    # -- the next one -------------------------------------------------------------------------

    def __iter__(self) -> ObjectRefGenerator[T_co]:
        return self

    def __aiter__(self) -> ObjectRefGenerator[T_co]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        """The next ref; blocks until the item is there."""
        source = self._source
        while (head := self._claimed()) is not None:
            source.wait(head, None)
            if head is self._head:  # else somebody else has had it
                return self._hand_out(head, StopIteration)
        raise StopIteration

    async def __anext__(self) -> ObjectRef[T_co]:
        while (head := self._claimed()) is not None:
            await head.ready()
            if head is self._head:
                return self._hand_out(head, StopAsyncIteration)
        raise StopAsyncIteration

    def _claimed(self) -> ObjectRef[Any] | None:
        """The first in line; None when the generator was closed."""
        head = self._head
        if head is None and not self._closed:
            head = self._head = self._source.claim()
        return head

    def _hand_out(self, head: ObjectRef[Any], stop: type[Exception]) -> ObjectRef[Any]:
        source = self._source
        if source.is_end(head):
            raise stop
        self._head = None
        source.on_taken()
        return head

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[T_co]:
        """Ray's: the next ref, or ``ObjectRef.nil()`` when it is not there in time."""
        head = self._claimed()
        if head is None:
            raise StopIteration
        if not self._source.is_done(head):
            self._source.wait(head, None if timeout_s is None or timeout_s < 0 else timeout_s)
            if not self._source.is_done(head):
                return ObjectRef.nil()
        return self._hand_out(head, StopIteration)

    # -- questions ----------------------------------------------------------------------------

    def completed(self) -> ObjectRef[None]:
        """A ref that is done when the generator has ended, or raises its error.

        As long as it lives the generator goes on, even if this object is dropped.
        """
        return self._source.share()

    def next_ready(self) -> bool:
        """True when the next ref can be had without waiting; never blocks."""
        head = self._claimed()
        return head is not None and self._source.is_done(head) and not self._source.is_end(head)

    def is_finished(self) -> bool:
        """True when the generator has ended and all its refs were taken; never blocks."""
        head = self._claimed()
        return head is None or (self._source.is_done(head) and self._source.is_end(head))

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel the task, and let go of what was not taken; the iteration is over."""
        if not self._closed:
            source = self._source
            source.home.cancel(source.completed, force=False, recursive=True)
            self._closed = True
            self._head = None
            source.drop(for_good=False)

    async def aclose(self) -> None:
        """:meth:`close`, for ``contextlib.aclosing``."""
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._head = None
            self._source.drop(for_good=True)

    # -- what generators have, and this has not -----------------------------------------------

    def send(self, value: object) -> NoReturn:
        """Not possible: the generator runs in another process, ahead of its consumer."""
        raise NotImplementedError("`gen.send` is not supported.")

    def throw(self, *error: object) -> NoReturn:
        """Not possible, as :meth:`send`."""
        raise NotImplementedError("`gen.throw` is not supported.")

    async def asend(self, value: object) -> NoReturn:
        """Not possible, as :meth:`send`."""
        raise NotImplementedError("`gen.asend` is not supported.")

    async def athrow(self, *error: object) -> NoReturn:
        """Not possible, as :meth:`send`."""
        raise NotImplementedError("`gen.athrow` is not supported.")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "You cannot return or pass a generator to other task. "
            "Its refs, or a list of them, can be passed."
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._source.completed.hex()})"


DynamicObjectRefGenerator = ObjectRefGenerator
"""Ray's deprecated kind, of ``num_returns="dynamic"``: here it is the same."""


def waitable(item: Any) -> Any:
    """What ``wait`` has to wait for: a ref itself, of a generator the next one."""
    if not isinstance(item, ObjectRefGenerator):
        return item
    head = item._claimed()
    return item._source.completed if head is None else head


def call_of(item: Any) -> Any:
    """The ref that names a call: itself, or the output of a generator."""
    return item._source.completed if isinstance(item, ObjectRefGenerator) else item
