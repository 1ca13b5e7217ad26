"""Actors: ``@remote`` on a class makes objects that live in processes of their own.

An :class:`ActorClass` is a class and its options; ``.remote(...)`` makes an actor and gives an
:class:`ActorHandle`, on which ``handle.method.remote(...)`` submits a call.  Handles are counted
like refs, wherever they are: an actor ends after its last handle is gone and its calls are done.

Typing: a handle is an ``ActorHandle[Counter]``, whose methods take and give anything, *or* the
class ``Counter`` itself, on which what :func:`method` decorates has ``.remote`` with the
parameters of the method (``ActorProxy``; as in Ray, methods without ``@method`` are not typed).
"""

# num_returns=1 is an int too, but what comes back for it is one ref, on purpose; and a generator
# method is a method too, but what it gives is a stream.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)

from taskloom import _current
from taskloom._actor_facts import METHOD_MARK, Method, facts_of, make_manifest
from taskloom._actor_facts import read_methods as _read_methods
from taskloom._actor_handle import (
    ActorHandle,
    ActorID,
    ActorMethod,
    ActorProxy,
    weak_handle,
)
from taskloom._actor_options import (
    METHOD_OPTIONS,
    check_together,
    make_groups,
    make_requests,
    validate_actor_options,
)
from taskloom._actor_warnings import warn_of_coroutine_hook, warn_of_detached
from taskloom._callee import Callee
from taskloom._spec import ActorSpec, TaskSpec
from taskloom.backends.base import ActorExit
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    AsyncioActorExit,
)

if TYPE_CHECKING:
    from taskloom._actor_options import ActorChoices, MethodOptions
    from taskloom._stream_types import (
        AsyncGeneratorMethod,
        AsyncStreamMethod,
        GeneratorMethod,
        Streaming,
        StreamMethod,
    )
    from taskloom.backends.base import Backend
    from taskloom.remote_function import ManyReturns

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
Rest = ParamSpec("Rest")

__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorID",
    "ActorMethod",
    "ActorProxy",
    "exit_actor",
    "method",
]


class ActorClassInheritanceException(TypeError):
    """A class cannot inherit from an actor class: inherit from the plain class."""


class ActorClass(Generic[T]):
    """A class whose objects are actors: ``Class.remote(...)`` makes one.

    Args:
        cls: the plain class.
        options: actor options that have been validated.
    """

    __slots__ = (
        "__dict__", "__weakref__", "_callee", "_is_async", "_methods", "_options", "_session",
        "_spec",
    )  # fmt: skip

    def __init__(self, cls: type[T], options: Mapping[str, Any] | None = None) -> None:
        methods, is_async = _read_methods(cls)
        warn_of_coroutine_hook(cls)
        self._fill(Callee(cls), methods, is_async, dict(options or {}))
        check_together(self._options, is_async=is_async)
        groups = ("", *(self._options.get("concurrency_groups") or {}))
        for wanted in methods.values():
            group = wanted.options.get("concurrency_group") or ""
            if group not in groups:
                raise ValueError(
                    f"{cls.__name__}.{wanted.name}() is in the concurrency group {group!r}, but "
                    f"concurrency_groups of the class are {list(groups[1:])}"
                )

    def _fill(
        self, callee: Callee, methods: dict[str, Method], is_async: bool, options: dict[str, Any]
    ) -> None:
        self._callee = callee
        self._methods = methods
        self._is_async = is_async
        self._options = options
        self._session: bytes | None = None
        functools.update_wrapper(self, callee.function, updated=())

    @property
    def func(self) -> type[T]:
        """The plain class."""
        cls: Any = self._callee.function
        return cls  # type: ignore[no-any-return]

    def remote(self, *args: Any, **kwargs: Any) -> ActorProxy[T]:
        """Make an actor and return its handle at once; the constructor runs in its process.

        Raises:
            TypeError: the constructor cannot be called with these arguments, or one of them
                cannot be pickled.
            ActorAlreadyExistsError: a living actor has the name.
        """
        backend = _current.require()
        options = self._options
        check_together(options, is_async=self._is_async)
        if not (options.get("get_if_exists") and self._exists(backend)):
            self._callee.check(args, kwargs)
        if self._session is not backend.session_id:
            self._prepare(backend)
        spec = self._spec
        facts = spec.actor
        assert facts is not None
        found = backend.create_actor(spec, args, kwargs)
        if found.ref is None and not facts.get_if_exists:
            raise ActorAlreadyExistsError(
                f"The name {facts.name!r} (namespace={facts.namespace!r}) is already taken. Please "
                "use a different name or get the existing actor with "
                f"get_actor({facts.name!r}, namespace={facts.namespace!r})"
            )
        return ActorHandle(found.key, backend.session_id, facts_of(found.manifest), found.ref)

    def _exists(self, backend: Backend) -> bool:
        """Whether an actor of the name is there, so that the arguments do not matter."""
        namespace = self._options.get("namespace") or backend.namespace
        return bool(backend.ask_about_actors("find", (namespace, self._options["name"])))

    def _prepare(self, backend: Backend) -> None:
        """Make the spec that all further actors of this session share."""
        options, is_async = self._options, self._is_async
        request, placement = make_requests(options)
        groups = make_groups(options, is_async=is_async)
        cls: Any = self._callee.function
        in_turn = not is_async and groups == (("", 1),)
        actor = ActorSpec(
            class_name=cls.__name__,
            # The plain values only: a subclass of str would bring its class along.
            name=str.__str__(options.get("name") or ""),
            namespace=str.__str__(options.get("namespace") or backend.namespace),
            detached=options.get("lifetime") == "detached",
            get_if_exists=bool(options.get("get_if_exists")),
            placement=placement,
            max_restarts=int(options.get("max_restarts") or 0),
            is_async=is_async,
            is_ordered=in_turn and not options.get("allow_out_of_order_execution"),
            groups=groups,
            max_task_retries=int(options.get("max_task_retries") or 0),
            manifest=make_manifest(
                cls,
                self._methods,
                request=request,
                max_task_retries=options.get("max_task_retries") or 0,
                max_pending_calls=options.get("max_pending_calls") or -1,
                groups=tuple(name for name, _ in groups),
                backpressure=options.get("_actor_generator_backpressure_num_objects"),
            ),
        )
        if actor.detached and not backend.may_outlive:
            warn_of_detached(actor)
        self._spec = TaskSpec(
            function=self._callee.pack(backend.session_id),
            name=f"{cls.__name__}.__init__",
            num_returns=1,
            request=request,
            max_retries=0,
            retry_exceptions=False,
            priority=0,
            actor=actor,
        )
        self._session = backend.session_id  # last: it says that the spec is there

    def options(self, **actor_options: Unpack[ActorChoices]) -> ActorClass[T]:
        """The same class with other options.

        Raises:
            ValueError: there is no such option, or its value is out of range.
            TypeError: a value has the wrong type.
        """
        validate_actor_options(actor_options, in_options_call=True)
        other = _blank()
        options: dict[str, Any] = {**self._options, **actor_options}
        check_together(options, is_async=self._is_async)
        other._fill(self._callee, self._methods, self._is_async, options)
        return other

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        name = self._callee.qualname
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"Inheriting from the actor class {self._callee.qualname} is not supported. Inherit "
            "from a plain class and make the subclass remote."
        )

    def __repr__(self) -> str:
        return f"ActorClass({self._callee.qualname})"

    # In two steps, as Callee is, and for the same reason.
    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (), (self._callee, self._methods, self._is_async, self._options)

    def __setstate__(self, state: tuple[Callee, dict[str, Method], bool, dict[str, Any]]) -> None:
        self._callee, self._methods, self._is_async, self._options = state
        self._session = None


def _blank() -> ActorClass[Any]:
    return ActorClass.__new__(ActorClass)


def make_actor_class(cls: type, options: dict[str, Any]) -> ActorClass[Any]:
    """What ``@remote`` makes of a class; see ``remote_function.remote``."""
    validate_actor_options(options, in_options_call=False)
    return ActorClass(cls, options)


# -- @method ----------------------------------------------------------------------------------


if TYPE_CHECKING:

    class _Method(Generic[P, R]):
        """A method that :func:`method` has decorated, as checkers see it."""

        @overload
        def __get__(self, instance: None, owner: Any) -> ActorMethod[P, R]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Callable[P, R]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...

    class _ManyMethod(Generic[P, R]):
        """The same with ``num_returns`` other than 1."""

        @overload
        def __get__(self, instance: None, owner: Any) -> ManyReturns: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Callable[P, R]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...

    class _Decorator:
        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> _Method[P, R]: ...
        @overload
        def __call__(self, function: GeneratorMethod[P, R], /) -> StreamMethod[P, R]: ...
        @overload
        def __call__(self, function: AsyncGeneratorMethod[P, R], /) -> AsyncStreamMethod[P, R]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> _Method[P, R]: ...
        def __call__(self, function: Any, /) -> Any: ...


@overload
def method(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> _Method[P, R]: ...
@overload
def method(function: GeneratorMethod[P, R], /) -> StreamMethod[P, R]: ...
@overload
def method(function: AsyncGeneratorMethod[P, R], /) -> AsyncStreamMethod[P, R]: ...
@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> _Method[P, R]: ...
@overload
def method(
    *, num_returns: Literal[1] | None = ..., **options: Unpack[MethodOptions]
) -> _Decorator: ...
@overload
def method(*, num_returns: Streaming, **options: Unpack[MethodOptions]) -> _Decorator: ...
@overload
def method(
    *, num_returns: int, **options: Unpack[MethodOptions]
) -> Callable[[Callable[Concatenate[Any, P], R]], _ManyMethod[P, R]]: ...
def method(*args: Any, **options: Any) -> Any:
    """Options of one method: ``@method(num_returns=2)``.  ``@method`` alone is for its types.

    Args:
        options: ``num_returns``, ``concurrency_group``, ``max_task_retries``,
            ``retry_exceptions``, ...; they hold for all calls that do not say otherwise.

    Raises:
        AssertionError: there is no such option (Ray's choice of an error).
        TypeError, ValueError: a value is wrong.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _mark(args[0], {})
    if args or not options:
        raise AssertionError("@method takes options by keyword, such as @method(num_returns=2)")
    for name, value in options.items():
        if name not in METHOD_OPTIONS:
            raise AssertionError(
                f"Invalid option keyword {name} for @method. Valid ones are {list(METHOD_OPTIONS)}."
            )
        METHOD_OPTIONS[name].validate(name, value)
    return lambda function: _mark(function, options)


def _mark(function: Any, options: dict[str, Any]) -> Any:
    setattr(getattr(function, "__func__", function), METHOD_MARK, options)
    return function


# -- around actors ----------------------------------------------------------------------------


def exit_actor() -> NoReturn:
    """End the actor that runs this, in good order: exit handlers run, queued calls fail.

    Raises:
        TypeError: this is no actor.
        SystemExit, AsyncioActorExit: what ends the actor; let it pass.
    """
    backend = _current.peek()
    facts = backend.context().actor_spec if backend is not None else None
    if facts is None:
        raise TypeError("exit_actor called on a non-actor worker.")
    asyncio = sys.modules.get("asyncio")
    if facts.is_async and asyncio is not None and asyncio._get_running_loop() is not None:
        raise AsyncioActorExit("exit_actor() was called")
    raise ActorExit


def kill(actor: ActorProxy[Any], *, no_restart: bool = True) -> None:
    """End an actor's process at once: no exit handler runs, and calls that are not done fail.

    Does nothing when it is dead.

    Args:
        actor: a handle.
        no_restart: also when restarts are left.

    Raises:
        ValueError: not a handle, or one of another session.
    """
    given: object = actor
    if not isinstance(given, ActorHandle):
        raise ValueError(
            "ray.kill() only supported for actors. For tasks, try ray.cancel(). "
            f"Got: {type(given)}."
        )
    backend = _current.require()
    if backend.session_id != actor._taskloom_session:
        raise ActorHandleNotFoundError(f"{actor!r} belongs to a session that has ended")
    backend.kill_actor(actor._taskloom_key, no_restart=no_restart)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The living actor of that name; the handle does not keep it alive.

    Args:
        name: as given to ``.options(name=...)``.
        namespace: where; by default that of the session.

    Raises:
        ValueError: the name is empty, or there is no such actor.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an actor must be str, got {name!r}")
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    if namespace is not None and not isinstance(namespace, str):
        raise TypeError(f"The namespace of an actor must be str, got {namespace!r}")
    if namespace == "":
        raise ValueError('"" is not a valid namespace. Pass None to not specify a namespace.')
    backend = _current.require()
    where = namespace or backend.namespace
    found = backend.ask_about_actors("find", (where, name))
    if not found:
        raise ValueError(
            f"Failed to look up actor with name '{name}' in the namespace {where!r}: you are "
            "either trying to look up a named actor you didn't create, or it has died."
        )
    key, manifest = found
    return weak_handle(key, backend.session_id, manifest)
