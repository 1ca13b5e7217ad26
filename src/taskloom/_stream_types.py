"""What type checkers know of generator functions and methods.  Nothing here exists at run time.

``@remote`` on a generator function gives a :class:`StreamFunction`, ``@method`` on a generator
method an :class:`ActorStreamMethod`: their ``.remote()`` gives an ``ObjectRefGenerator``.  What is
declared to return an ``Iterator`` or an ``AsyncIterator`` is taken for a generator.
"""

# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)

if TYPE_CHECKING:
    from taskloom._actor_options import CallOptions
    from taskloom.generator import ObjectRefGenerator
    from taskloom.ref import ObjectRef
    from taskloom.remote_function import (
        ManyReturns,
        TaskOptions,
        _Takes1,
        _Takes2,
        _Takes3,
        _Takes4,
        _Takes5,
        _Takes6,
    )

    P = ParamSpec("P")
    Rest = ParamSpec("Rest")
    T = TypeVar("T")
    A = TypeVar("A")
    B = TypeVar("B")
    C = TypeVar("C")
    D = TypeVar("D")
    E = TypeVar("E")
    F = TypeVar("F")
    Streaming = Literal["streaming", "dynamic"]

    class AnyResult(ObjectRef[Any], ObjectRefGenerator[Any]):  # type: ignore[misc]  # both at once
        """What the call of a method gives of which nothing is known: mostly a ref."""

    class _Remote(Generic[P, T]):
        """``.remote()`` of what streams."""

        @property
        def _call(self) -> Callable[P, T]: ...
        @overload
        def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes1[A, Rest, T],
            a: A | ObjectRef[A],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes2[A, B, Rest, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes3[A, B, C, Rest, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes4[A, B, C, D, Rest, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            d: D | ObjectRef[D],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes5[A, B, C, D, E, Rest, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            d: D | ObjectRef[D],
            e: E | ObjectRef[E],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        @overload
        def remote(
            self: _Takes6[A, B, C, D, E, F, Rest, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            d: D | ObjectRef[D],
            e: E | ObjectRef[E],
            f: F | ObjectRef[F],
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> ObjectRefGenerator[T]: ...
        # The ignore: as in ``remote_function``.
        def remote(self: Any, *args: Any, **kwargs: Any) -> Any: ...  # type: ignore[misc]

    class StreamFunction(_Remote[P, T]):
        """A remote generator function."""

        @property
        def func(self) -> Callable[P, Any]: ...
        @overload
        def options(
            self, *, num_returns: Streaming | None = ..., **task_options: Unpack[TaskOptions]
        ) -> StreamFunction[P, T]: ...
        @overload
        def options(
            self, *, num_returns: int, **task_options: Unpack[TaskOptions]
        ) -> ManyReturns: ...
        def options(self, **task_options: Any) -> Any: ...

    class ActorStreamMethod(_Remote[P, T]):
        """A generator method of an actor."""

        @overload
        def options(
            self, *, num_returns: Streaming | None = ..., **method_options: Unpack[CallOptions]
        ) -> ActorStreamMethod[P, T]: ...
        @overload
        def options(
            self, *, num_returns: int, **method_options: Unpack[CallOptions]
        ) -> ManyReturns: ...
        def options(self, **method_options: Any) -> Any: ...

    class AnyMethod:
        """A method of an actor of which nothing is known."""

        def remote(self, /, *args: Any, **kwargs: Any) -> AnyResult: ...
        @overload
        def options(
            self, *, num_returns: Literal[1] | None = ..., **method_options: Unpack[CallOptions]
        ) -> AnyMethod: ...
        @overload
        def options(
            self, *, num_returns: Streaming, **method_options: Unpack[CallOptions]
        ) -> AnyMethod: ...
        @overload
        def options(
            self, *, num_returns: int | str, **method_options: Unpack[CallOptions]
        ) -> ManyReturns: ...
        def options(self, **method_options: Any) -> Any: ...

    class StreamMethod(Generic[P, T]):
        """A generator method that ``@method`` has decorated."""

        @overload
        def __get__(self, instance: None, owner: Any) -> ActorStreamMethod[P, T]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Callable[P, Iterator[T]]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...

    class AsyncStreamMethod(Generic[P, T]):
        """The same for an async generator."""

        @overload
        def __get__(self, instance: None, owner: Any) -> ActorStreamMethod[P, T]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Callable[P, AsyncIterator[T]]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...

    GeneratorFunction = Callable[P, Iterator[T]] | Callable[P, AsyncIterator[T]]
    GeneratorMethod = Callable[Concatenate[Any, P], Iterator[T]]
    AsyncGeneratorMethod = Callable[Concatenate[Any, P], AsyncIterator[T]]
