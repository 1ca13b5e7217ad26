"""``@remote``: a function becomes a task that can be called from anywhere.

A :class:`RemoteFunction` is a function and its options.  What all wrappers of one function share
(``f`` and every ``f.options(...)``) is in one ``Callee``.  ``.remote()`` runs a hundred thousand
times a second: in the steady state it counts the arguments, takes the spec made by the first call,
and hands both to the backend.

Typing: ``P`` keeps names and defaults of the parameters.  A ``ParamSpec`` cannot say "each of
these, or a ref to it", so the overloads of ``remote`` peel off up to six positional parameters
and say it for those; further and keyword arguments are typed as the function has them.
"""

# num_returns=1 is an int too, but what comes back for it is one ref, on purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from taskloom import _current
from taskloom._actor_options import ACTOR_OPTIONS, ActorOptions
from taskloom._callee import Callee
from taskloom._options import (
    TASK_OPTIONS,
    check_pauses,
    count_returns,
    make_request,
    option_value,
    stream_limit,
    validate_task_options,
)
from taskloom._spec import Pace, TaskSpec
from taskloom.actor import ActorClass, make_actor_class
from taskloom.ref import ObjectRef

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")

_NOT_A_FUNCTION: Final = (
    "The @ray.remote decorator must be applied to either a function or a class."
)


class TaskOptions(TypedDict, total=False):
    """The options of a task besides ``num_returns`` (which decides what ``.remote()`` returns)."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: dict[str, float] | None
    accelerator_type: str | None
    name: str | None
    max_calls: int
    max_retries: int
    retry_exceptions: bool | Sequence[type[BaseException]]
    priority: int
    timeout: float | None
    retry_delay: float | None
    retry_backoff: float | None
    retry_jitter: float | None
    backpressure: int | None
    runtime_env: dict[str, Any] | None
    scheduling_strategy: object
    label_selector: dict[str, str] | None
    fallback_strategy: list[dict[str, Any]] | None
    enable_task_events: bool
    placement_group: object
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool | None


class RemoteFunction(Generic[P, R]):
    """A function that runs as a task: ``f.remote(...)`` submits one call and returns its ref.

    Made by :func:`remote`.  It can be passed to tasks and called there.

    Args:
        function: anything that can be called.
        options: task options that have been validated.
    """

    # Slots, beside the __dict__ in which __name__, __doc__ and the like of the function are kept.
    __slots__ = ("__dict__", "__weakref__", "_callee", "_options", "_session", "_spec")

    _callee: Callee
    _options: dict[str, Any]
    _session: bytes | None
    _spec: TaskSpec

    def __init__(
        self, function: Callable[..., Any], options: Mapping[str, Any] | None = None
    ) -> None:
        self._fill(Callee(function), dict(options or {}))

    def _fill(self, callee: Callee, options: dict[str, Any]) -> None:
        self._callee = callee
        self._options = options
        self._session = None
        for name in functools.WRAPPER_ASSIGNMENTS:
            try:
                setattr(self, name, getattr(callee.function, name))
            except Exception:
                continue  # it has none, or an object that can be called answers as it likes
        self.__wrapped__ = callee.function

    @property
    def func(self) -> Callable[P, Any]:
        """The plain function."""
        return self._callee.function

    @property
    def _function(self) -> Callable[P, Any]:
        # Ray's private name for it, which programs use in tests.
        return self._callee.function

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
    @overload
    def remote(
        self: _Takes4[A, B, C, D, Rest, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: _Takes5[A, B, C, D, E, Rest, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: _Takes6[A, B, C, D, E, F, Rest, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        e: E | ObjectRef[E],
        f: F | ObjectRef[F],
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> ObjectRef[R]: ...
    # The ignore: mypy takes *args of a ParamSpec for something that *args: Any does not accept.
    def remote(self: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
        """Submit one call and return at once.

        Arguments that are refs are replaced by their values before the function runs; refs
        inside containers stay refs.

        Returns:
            A ref; a list of refs for ``num_returns`` > 1, None for 0.

        Raises:
            TypeError: the function cannot be called with these arguments, or one of them
                cannot be pickled.
        """
        backend = _current._backend  # hot: peek() would be one more call
        if backend is None:
            backend = _current.require()
        callee = self._callee
        if kwargs or not callee.min_args <= len(args) <= callee.max_args:
            callee.check(args, kwargs)
        if self._session is not backend.session_id:
            self._prepare(backend.session_id)
        return backend.submit(self._spec, args, kwargs)

    def _prepare(self, session: bytes) -> None:
        """Make the spec that all further calls in this session share."""
        callee = self._callee
        options = self._options
        retry_exceptions = option_value(options, "retry_exceptions")
        retry_blob = None
        if not isinstance(retry_exceptions, bool):
            retry_exceptions = tuple(retry_exceptions)
            retry_blob = callee.pack_retry(retry_exceptions)
        request = make_request(options, is_coroutine=callee.is_coroutine)
        # All this travels in the engine's own messages, where a subclass of str or int would bring
        # its class along: so only the plain value of each is taken.
        self._spec = TaskSpec(
            num_returns=int(
                count_returns(options.get("num_returns"), is_generator=callee.is_generator)
            ),
            request=tuple((str.__str__(name), int(units)) for name, units in request),
            function=callee.pack(session),
            name=str.__str__(options.get("name") or callee.name),
            max_retries=int(option_value(options, "max_retries")),
            retry_exceptions=retry_exceptions,
            retry_blob=retry_blob,
            priority=int(option_value(options, "priority")),
            pace=Pace.of(options, retry_exceptions),
            stream=stream_limit(options, is_generator=callee.is_generator),
        )
        self._session = session  # last: it says that the spec is there

    if TYPE_CHECKING:

        @overload
        def options(
            self, *, num_returns: Literal[1] | None = ..., **task_options: Unpack[TaskOptions]
        ) -> RemoteFunction[P, R]: ...
        @overload
        def options(
            self, *, num_returns: int | str, **task_options: Unpack[TaskOptions]
        ) -> ManyReturns: ...
        def options(self, **task_options: Any) -> Any: ...

    else:

        def options(self, **task_options: Any) -> RemoteFunction:
            """The same function with other options.

            Raises:
                ValueError: there is no such option, or its value is out of range.
                TypeError: a value has the wrong type.
            """
            validate_task_options(task_options, in_options_call=True)
            merged = {**self._options, **task_options}
            check_pauses(merged)
            other = _blank()
            other._fill(self._callee, merged)
            return other

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        name = f"{self._callee.module}.{self._callee.qualname}"
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{name}()', "
            f"try '{name}.remote()'."
        )

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._callee.module}.{self._callee.qualname}>"

    # In two steps, as Callee is, and for the same reason.
    def __reduce__(self) -> tuple[Any, ...]:
        manners = {name: self.__dict__[name] for name in _MANNERS if name in self.__dict__}
        return _blank, (), (self._callee, self._options, manners)

    def __setstate__(self, state: tuple[Callee, dict[str, Any], dict[str, Any]]) -> None:
        self._callee, self._options, manners = state
        self._session = None
        self.__dict__.update(manners)


_MANNERS: Final = ("__name__", "__qualname__", "__module__", "__doc__", "__wrapped__")


def _blank() -> RemoteFunction[..., Any]:
    return RemoteFunction.__new__(RemoteFunction)


@overload
def remote(function: type[A], /) -> ActorClass[A]: ...
@overload
def remote(function: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteFunction[P, R]: ...
@overload
def remote(function: GeneratorFunction[P, R], /) -> StreamFunction[P, R]: ...
@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(
    *, num_returns: Literal[1] | None = ..., **task_options: Unpack[TaskOptions]
) -> _Decorator: ...
@overload
def remote(*, num_returns: Streaming, **task_options: Unpack[TaskOptions]) -> _Decorator: ...
@overload
def remote(
    *, num_returns: int, **task_options: Unpack[TaskOptions]
) -> Callable[[Callable[..., Any]], ManyReturns]: ...
@overload
def remote(**actor_options: Unpack[ActorOptions]) -> Callable[[type[A]], ActorClass[A]]: ...
def remote(*args: Any, **task_options: Any) -> Any:
    """Make a remote function or an actor class: ``@remote``, ``@remote(num_cpus=2)``.

    Args:
        function: a class, or anything else that can be called, ``async def`` included.
        task_options: how its tasks run.  ``num_cpus``, ``max_retries``, ``num_returns`` and
            others as in Ray, and: ``timeout``, seconds that each attempt may run, from when a
            worker begins it, loading the function and waiting for others included (then
            ``TaskTimeoutError``); ``retry_delay``, seconds
            between an attempt and the next, multiplied by ``retry_backoff`` each further time;
            ``retry_jitter``, by which part of it, up or down, a pause is left to chance.
            Those of actors are ``max_restarts``, ``max_concurrency``, ``name`` and others.

    Raises:
        ValueError: there is no such option, or its value is out of range.
        TypeError: not a function, or a value has the wrong type.
    """
    if len(args) == 1 and not task_options:
        return _make_remote(args[0], {})
    if args:
        raise TypeError(
            f"remote() takes one function and nothing else, or options by keyword, got {args!r}"
        )
    if not any(name in ACTOR_OPTIONS and name not in TASK_OPTIONS for name in task_options):
        validate_task_options(task_options, in_options_call=False)
        check_pauses(task_options)
    return lambda function: _make_remote(function, task_options)


def _make_remote(
    function: Any, options: dict[str, Any]
) -> RemoteFunction[..., Any] | ActorClass[Any]:
    if isinstance(function, type):
        return make_actor_class(function, options)
    if isinstance(function, ActorClass):
        raise TypeError(f"{function!r} is an actor class already: use .options() to change it")
    validate_task_options(options, in_options_call=False)
    if isinstance(function, RemoteFunction):
        raise TypeError(f"{function!r} is a remote function already: use .options() to change it")
    if not callable(function):
        raise TypeError(_NOT_A_FUNCTION)
    return RemoteFunction(function, options)


if TYPE_CHECKING:
    from taskloom._stream_types import GeneratorFunction, StreamFunction, Streaming

    A_contra = TypeVar("A_contra", contravariant=True)
    B_contra = TypeVar("B_contra", contravariant=True)
    C_contra = TypeVar("C_contra", contravariant=True)
    D_contra = TypeVar("D_contra", contravariant=True)
    E_contra = TypeVar("E_contra", contravariant=True)
    F_contra = TypeVar("F_contra", contravariant=True)

    class _Decorator(Protocol):
        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, R]], /
        ) -> RemoteFunction[P, R]: ...
        @overload
        def __call__(self, function: GeneratorFunction[P, R], /) -> StreamFunction[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> RemoteFunction[P, R]: ...

    class ManyReturns(Protocol):
        """A remote function with ``num_returns`` other than 1: a list of refs for each call."""

        @property
        def func(self) -> Callable[..., Any]: ...
        def remote(self, /, *args: Any, **kwargs: Any) -> list[ObjectRef[Any]]: ...
        def options(self, **task_options: Any) -> ManyReturns: ...

    class _Takes1(Protocol[A_contra, Rest, R_co]):
        @property
        def _call(self) -> Callable[Concatenate[A_contra, Rest], R_co]: ...

    class _Takes2(Protocol[A_contra, B_contra, Rest, R_co]):
        @property
        def _call(self) -> Callable[Concatenate[A_contra, B_contra, Rest], R_co]: ...

    class _Takes3(Protocol[A_contra, B_contra, C_contra, Rest, R_co]):
        @property
        def _call(self) -> Callable[Concatenate[A_contra, B_contra, C_contra, Rest], R_co]: ...

    class _Takes4(Protocol[A_contra, B_contra, C_contra, D_contra, Rest, R_co]):
        @property
        def _call(
            self,
        ) -> Callable[Concatenate[A_contra, B_contra, C_contra, D_contra, Rest], R_co]: ...

    class _Takes5(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, Rest, R_co]):
        @property
        def _call(
            self,
        ) -> Callable[
            Concatenate[A_contra, B_contra, C_contra, D_contra, E_contra, Rest], R_co
        ]: ...

    class _Takes6(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, F_contra, Rest, R_co]):
        @property
        def _call(
            self,
        ) -> Callable[
            Concatenate[A_contra, B_contra, C_contra, D_contra, E_contra, F_contra, Rest], R_co
        ]: ...
