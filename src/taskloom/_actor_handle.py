"""Handles of actors, and the methods on them; users find them in ``actor``."""

# num_returns=1 is an int too, but what comes back for it is one ref, on purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Unpack,
    overload,
)

from taskloom import _current, _ids
from taskloom._actor_facts import ActorFacts, Method, facts_of
from taskloom._actor_options import validate_call_options
from taskloom.exceptions import ActorHandleNotFoundError, PendingCallsLimitExceeded
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom._actor_options import CallOptions
    from taskloom._stream_types import AnyMethod
    from taskloom.backends.base import Backend
    from taskloom.remote_function import ManyReturns, _Takes1, _Takes2, _Takes3

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
Rest = ParamSpec("Rest")


class ActorID:
    """The id of an actor: 16 bytes, shown as 32 hex digits."""

    __slots__ = ("_data",)

    def __init__(self, id: bytes) -> None:
        if len(id) != _ids.ACTOR_BYTES:
            raise ValueError(f"an actor id has {_ids.ACTOR_BYTES} bytes, got {len(id)}")
        self._data = id

    def binary(self) -> bytes:
        """The id as 16 bytes."""
        return self._data

    def hex(self) -> str:
        """The id as 32 hex digits."""
        return self._data.hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorID) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        return f"ActorID({self.hex()})"


class ActorMethod(Generic[P, R]):
    """A method of an actor: ``handle.method.remote(...)`` submits one call.

    It keeps the actor alive, so ``Actor.remote().method.remote()`` is safe.
    """

    __slots__ = ("_handle", "_method", "_options")

    def __init__(
        self, handle: ActorHandle[Any], method: Method, options: Mapping[str, Any] | None = None
    ) -> None:
        self._handle = handle
        self._method = method
        self._options = options or {}

    if TYPE_CHECKING:

        @property
        def _call(self) -> Callable[P, R]:
            """What the overloads of ``remote`` match; for type checkers only."""
            raise NotImplementedError

    @overload
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: _Takes1[A, Rest, R], a: A | ObjectRef[A], /, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: _Takes2[A, B, Rest, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: _Takes3[A, B, C, Rest, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> ObjectRef[R]: ...
    # The ignore: mypy takes *args of a ParamSpec for something that *args: Any does not accept.
    def remote(self: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
        """Submit one call and return at once.

        Returns:
            A ref; a list of refs for ``num_returns`` > 1, None for 0.

        Raises:
            TypeError: the method cannot be called with these arguments, or one of them cannot
                be pickled.
            PendingCallsLimitExceeded: ``max_pending_calls`` calls are not done.
        """
        handle: ActorHandle[Any] = self._handle
        wanted: Method = self._method
        backend = _current._backend or _current.require()  # hot: peek() would be one more call
        facts = handle._taskloom_facts
        if kwargs or not wanted.min_args <= len(args) <= wanted.max_args:
            facts.check(wanted, args, kwargs)
        if backend.session_id != handle._taskloom_session:
            raise ActorHandleNotFoundError(f"{handle!r} belongs to a session that has ended")
        spec = facts.spec_of(wanted, self._options)
        if facts.max_pending_calls > 0:
            handle._taskloom_count_call(backend)
        return backend.call_actor(handle._taskloom_key, spec, args, kwargs)

    @overload
    def options(
        self, *, num_returns: Literal[1] | None = ..., **method_options: Unpack[CallOptions]
    ) -> ActorMethod[P, R]: ...
    @overload
    def options(
        self, *, num_returns: int | str, **method_options: Unpack[CallOptions]
    ) -> ManyReturns: ...
    def options(self, **method_options: Any) -> Any:
        """The same method with other options for its calls.

        Args:
            method_options: ``name``, ``num_returns``, ``max_task_retries``,
                ``retry_exceptions``, ``concurrency_group``, ...

        Raises:
            ValueError: there is no such option, or its value is out of range.
            TypeError: a value has the wrong type.
        """
        validate_call_options(method_options)
        return ActorMethod(self._handle, self._method, {**self._options, **method_options})

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        name = self._method.name
        raise TypeError(
            "Actor methods cannot be called directly. Instead of running "
            f"'object.{name}()', try 'object.{name}.remote()'."
        )

    def __repr__(self) -> str:
        return f"<ActorMethod {self._handle._taskloom_facts.class_name}.{self._method.name}>"


class ActorHandle(Generic[T]):
    """Names an actor; its methods are attributes.

    Handles can be passed to tasks and other actors, alone or inside anything.  Two handles of
    one actor are equal.  A handle from ``get_actor`` or of ``current_actor`` does not keep the
    actor alive.
    """

    __slots__ = (
        "__weakref__",
        "_taskloom_calls",
        "_taskloom_facts",
        "_taskloom_key",
        "_taskloom_ref",
        "_taskloom_session",
    )

    def __init__(
        self, key: int, session: bytes, facts: ActorFacts, ref: ObjectRef[Any] | None
    ) -> None:
        self._taskloom_key = key
        self._taskloom_session = session
        self._taskloom_facts = facts
        self._taskloom_ref = ref  # keeps the actor alive
        self._taskloom_calls = 0  # submitted since somebody counted

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> AnyMethod: ...

    else:

        def __getattr__(self, name: str) -> ActorMethod[..., Any]:
            found = self._taskloom_facts.methods.get(name)
            if found is None:
                raise AttributeError(f"'ActorHandle' object has no attribute {name!r}")
            return ActorMethod(self, found)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._taskloom_facts.methods})

    @property
    def _actor_id(self) -> ActorID:
        # Ray's private name for it, which programs use.
        return ActorID(_ids.actor_bytes(self._taskloom_session, self._taskloom_key))

    _ray_actor_id = _actor_id

    def _taskloom_count_call(self, backend: Backend) -> None:
        """Refuse the call when too many are pending; asks only when there may be."""
        limit = self._taskloom_facts.max_pending_calls
        if self._taskloom_calls >= limit:
            pending = backend.ask_about_actors("pending", self._taskloom_key)
            self._taskloom_calls = pending
            if pending >= limit:
                raise PendingCallsLimitExceeded(
                    f"{self!r} has {pending} calls that are not done, and max_pending_calls={limit}"
                )
        self._taskloom_calls += 1

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ActorHandle)
            and self._taskloom_key == other._taskloom_key
            and self._taskloom_session == other._taskloom_session
        )

    def __hash__(self) -> int:
        return hash((self._taskloom_key, self._taskloom_session))

    def __repr__(self) -> str:
        return f"Actor({self._taskloom_facts.class_name}, {self._actor_id.hex()})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # The ref inside is pickled as refs are: that is how handles are counted.
        ref = self._taskloom_ref
        key = self._taskloom_key if ref is None else 0
        return _rebuild, (ref, key, self._taskloom_session, self._taskloom_facts.manifest)


ActorProxy: TypeAlias = ActorHandle[T] | type[T]
"""What ``.remote()`` gives: an ``ActorHandle``; see the top of the module."""


def _rebuild(
    ref: ObjectRef[Any] | None, key: int, session: bytes, manifest: bytes
) -> ActorHandle[Any]:
    return ActorHandle(ref._key if ref is not None else key, session, facts_of(manifest), ref)


def weak_handle(key: int, session: bytes, manifest: bytes) -> ActorHandle[Any]:
    """A handle that does not keep the actor alive."""
    return ActorHandle(key, session, facts_of(manifest), None)
