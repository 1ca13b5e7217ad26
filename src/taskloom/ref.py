"""ObjectRef: a promise of a value, which can be awaited, fetched, passed on and compared.

A ref is a name (a key), the backend that keeps the object, and the backend's own record of it.
It knows nothing of graphs and workers.  Waiting is built on one primitive of the backend,
``subscribe``; values are unpickled by the one who asks, on his thread.

A ref has the duck type of an ``asyncio.Future`` (``done``, ``result``, ``add_done_callback``
and so on), which is all that ``asyncio.wait`` needs.  It is on purpose not *taken* for a
Future by ``asyncio.isfuture``: then ``gather`` and ``wait_for`` wrap it in a Task of their
own, and cancelling that Task does not reach into the ref.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from taskloom import _current, _ids
from taskloom.exceptions import TaskCancelledError

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from contextvars import Context

    from taskloom.backends.base import Backend

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ObjectRef(Generic[T_co]):
    """The future value of a task or the value of a ``put``.

    ``await ref`` gives the value in any asyncio or trio program, ``taskloom.get(ref)`` in any
    thread.  Refs are hashable, compare by identity of the object, and can be passed to tasks:
    as an argument they are replaced by their value, inside a container they stay refs.

    Args:
        id: the 28 bytes of :meth:`binary`, for a ref to an object of the current session.
    """

    __slots__ = ("__weakref__", "_home", "_key", "_record")

    _home: Backend | None
    _key: int
    _record: Any  # the backend's own record of the object; opaque here

    def __init__(self, id: bytes | int, home: Backend | None = None, record: Any = None) -> None:
        if home is not None:  # the engine's own way: a key, who keeps it, his record
            self._key = id  # type: ignore[assignment]  # a cast() is a call, for each ref
            self._home = home
            self._record = record
            return
        self._home = None
        self._record = None
        if not isinstance(id, bytes):
            raise TypeError(f"an ObjectRef is made from {_ids.OBJECT_BYTES} bytes, got {id!r}")
        session, self._key = _ids.parse_object_bytes(id)
        backend = _current.peek()
        if backend is not None and session == backend.session_id:
            twin = backend.adopt(self._key)
            self._home, self._record = twin._home, twin._record
            twin._home = None  # its hold on the object is ours now

    # -- identity -----------------------------------------------------------------------------

    def binary(self) -> bytes:
        """The id as 28 bytes."""
        home = self._home
        return _ids.object_bytes(home.session_id if home else b"\xff" * 12, self._key)

    def hex(self) -> str:
        """The id as 56 hex digits."""
        return self.binary().hex()

    def task_id(self) -> str:
        """The id of the task that makes this object, as 48 hex digits."""
        return self.binary()[: _ids.TASK_BYTES].hex()

    def job_id(self) -> str:
        """The id of the program (the session) this object belongs to."""
        return self._home.job_id if self._home else ""

    def owner_address(self) -> str:
        """Who keeps the object: always the session's driver."""
        return self._home.node_id if self._home else ""

    def call_site(self) -> str:
        """Where the ref was made; empty: creation sites are not recorded."""
        return ""

    def is_nil(self) -> bool:
        return self._key == _ids.NIL_KEY

    @classmethod
    def size(cls) -> int:
        """Bytes of an id."""
        return _ids.OBJECT_BYTES

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        return cls(b"\xff" * _ids.OBJECT_BYTES)

    @classmethod
    def from_random(cls) -> ObjectRef[Any]:
        """A ref to no object, for tests."""
        return cls(os.urandom(24) + (1).to_bytes(4, "little"))

    @classmethod
    def from_binary(cls, id: bytes) -> ObjectRef[Any]:
        return cls(id)

    @classmethod
    def from_hex(cls, id: str) -> ObjectRef[Any]:
        return cls(bytes.fromhex(id))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectRef):
            return NotImplemented
        return self._key == other._key and self._home is other._home

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __copy__(self) -> ObjectRef[T_co]:
        return self  # a name: a copy of it would be the same

    def __deepcopy__(self, _memo: object) -> ObjectRef[T_co]:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Only pickles that the engine does not see come here: nobody can tell how long such
        # bytes live, so the object is kept for the whole session (REF-6).
        if self._home is not None:
            self._home.pin(self)
        return ObjectRef, (self.binary(),)

    def __del__(self) -> None:
        try:
            home = self._home
        except AttributeError:
            return  # Ctrl-C came while it was made
        if home is not None:
            home.drop(self)

    # -- waiting ------------------------------------------------------------------------------

    def _keeper(self) -> Backend:
        if self._home is None:
            raise ValueError(f"{self!r} does not name an object of the current session")
        return self._home

    def __await__(self) -> Generator[Any, None, T_co]:
        home = self._keeper()
        if not home.is_done(self):
            awaiting = _awaiting_module or _awaiting()
            yield from awaiting.until_done(self, home)
        return home.result(self)  # type: ignore[return-value]  # a cast() is a call, each time

    async def ready(self) -> None:
        """Wait until the value or the error is there, without fetching it."""
        home = self._keeper()
        if not home.is_done(self):
            await (_awaiting_module or _awaiting()).UntilDone(self, home)

    def future(self) -> concurrent.futures.Future[T_co]:
        """A ``concurrent.futures.Future`` of the value, for threads and ``as_completed``.

        Cancelling it does not reach the task, and it never says that it is running (REF-5).
        The value is unpickled, and callbacks run, on a thread of their own.
        """
        return cast("concurrent.futures.Future[T_co]", _waiting().ref_future(self, self._keeper()))

    def why(self) -> str:
        """What the value is waiting for, in one sentence, for people to read.

        For example ``"train#2a waits for its argument: load#29, which is queued: it needs 4 CPU,
        and 2 of 4 are free (held by f#3 on worker 812)"``.  The digits after ``#`` are the end of
        :meth:`task_id`.  It does not wait; the wording may change.
        """
        home = self._keeper()
        return home.why(self)

    # -- the duck type of asyncio.Future ------------------------------------------------------

    def done(self) -> bool:
        return self._keeper().is_done(self)

    def cancelled(self) -> bool:
        """True when the task was cancelled."""
        return self.done() and isinstance(self.exception(), TaskCancelledError)

    def result(self) -> T_co:
        """The value, or raises the error.

        Raises:
            asyncio.InvalidStateError: not done yet (use ``await`` or ``get`` to wait).
        """
        home = self._keeper()
        if not home.is_done(self):
            raise _waiting().not_ready()
        return cast("T_co", home.result(self))

    def exception(self) -> BaseException | None:
        """The error, or None when there is a value.

        Raises:
            asyncio.InvalidStateError: not done yet.
        """
        home = self._keeper()
        if not home.is_done(self):
            raise _waiting().not_ready()
        try:
            home.result(self)
        except BaseException as error:
            return error
        return None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", _waiting().running_loop())

    def add_done_callback(
        self, callback: Callable[[ObjectRef[T_co]], object], *, context: Context | None = None
    ) -> None:
        """Call ``callback(ref)`` in the running loop when done.

        Raises:
            RuntimeError: there is no running loop (use ``ref.future()`` in threads).
        """
        _waiting().add_done_callback(self, self._keeper(), callback, context)

    def remove_done_callback(self, callback: Callable[[ObjectRef[T_co]], object]) -> int:
        """Forget ``callback``; how many were forgotten."""
        return cast("int", _waiting().remove_done_callback(self, callback))


_new: Final[Any] = object.__new__


def new_ref(key: int, home: Backend, record: Any) -> ObjectRef[Any]:
    """A ref to an object that ``home`` keeps.

    Fast path, see ``new_call``.  Plain twin: ``ObjectRef()``.
    """
    ref: ObjectRef[Any] = _new(ObjectRef)
    ref._key = key
    ref._record = record
    ref._home = home  # last: before that there is nothing to drop
    return ref


_waiting_module: Any = None


def _waiting() -> Any:
    # Loaded by the first who waits: it needs asyncio, which a worker for plain tasks never
    # loads: it is slow to import.
    global _waiting_module
    _waiting_module = import_module("taskloom._waiting")
    return _waiting_module


_awaiting_module: Any = None


def _awaiting() -> Any:
    """The module ``_awaiting``, loaded by the first ``await``: it brings asyncio along."""
    global _awaiting_module
    _awaiting_module = import_module("taskloom._awaiting")
    return _awaiting_module
