"""What a handle knows of its actor: which methods there are and how they may be called.

The class itself stays where the actor is.  Its *manifest*, a few hundred bytes, travels with
every handle; from it each process makes one :class:`ActorFacts`, which also keeps the specs of
the calls.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

from taskloom._options import BACKPRESSURE, Request, count_returns, stream_limit
from taskloom._spec import Function, FunctionKey, Pace, TaskSpec

METHOD_MARK: Final = "__taskloom_method__"
"""Where ``@method`` leaves its options on a function."""

_VARARGS, _VARKEYWORDS = 0x04, 0x08
_GENERATOR: Final = 0x20 | 0x200
_COROUTINE: Final = 0x80 | 0x100 | 0x200  # what runs in an event loop
_MAX_SHAPES: Final = 64
_NO_METHODS: Final = frozenset(
    {"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__ray_shutdown__"}
)
_MAKE_METHODS: Final = frozenset({"partialmethod", "singledispatchmethod"})
"""Of ``functools``: cannot be called themselves, but what an instance has of them can."""
_MANY: Final = 1 << 30

Parameter = tuple[str, int, bool]
"""Name, kind as in ``inspect.Parameter.kind``, whether it has a default."""


class Method(NamedTuple):
    """One method as callers see it.  ``parameters`` is None when nobody can say."""

    name: str
    parameters: tuple[Parameter, ...] | None
    min_args: int
    max_args: int
    is_generator: bool
    is_coroutine: bool
    options: Mapping[str, Any]


class ActorFacts:
    """All that handles of one kind of actor share in a process.

    Args:
        manifest: made by :func:`make_manifest`.
    """

    def __init__(self, manifest: bytes) -> None:
        (self.class_name, self.module, methods, self.request, self.max_task_retries,
         self.max_pending_calls, self.groups, self.backpressure,
         ) = pickle.loads(manifest)  # fmt: skip
        self.manifest = manifest
        self.methods: dict[str, Method] = {method[0]: Method(*method) for method in methods}
        self._specs: dict[Any, TaskSpec] = {}
        self._shapes: set[tuple[object, ...]] = set()

    def check(self, method: Method, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Raise TypeError unless the method can be called like that."""
        shape = (method.name, len(args), *kwargs)
        if method.parameters is None or shape in self._shapes:
            return
        inspect = import_module("inspect")  # most programs never come here
        parameters = [
            inspect.Parameter(name, kind, default=None if has_default else inspect.Parameter.empty)
            for name, kind, has_default in method.parameters
        ]
        try:
            inspect.Signature(parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.class_name}.{method.name}(): {error}") from None
        if len(self._shapes) < _MAX_SHAPES:
            self._shapes.add(shape)

    def spec_of(self, method: Method, options: Mapping[str, Any]) -> TaskSpec:
        """What calls of a method with these options share.

        Raises:
            ValueError: there is no such concurrency group, or a stream is asked of a method that
                is no generator.
        """
        known = method.name if not options else (method.name, *map(repr, options.items()))
        spec = self._specs.get(known)
        if spec is None:
            spec = self._specs[known] = self._make_spec(method, {**method.options, **options})
            if len(self._specs) > _MAX_SHAPES + len(self.methods):
                del self._specs[next(iter(self._specs))]
        return spec

    def is_described(self, name: str, spec: TaskSpec) -> bool:
        """Whether it is the spec of calls of that name that ask for no options of their own."""
        return self._specs.get(name.rpartition(".")[2]) is spec

    def _make_spec(self, method: Method, options: Mapping[str, Any]) -> TaskSpec:
        name = f"{self.class_name}.{method.name}"
        group = options.get("concurrency_group") or ""
        if group not in self.groups:
            raise ValueError(
                f"{name}() asks for the concurrency group {group!r}, but the actor has "
                f"{[known for known in self.groups if known]}"
            )
        stream = stream_limit(options, is_generator=method.is_generator)
        if stream is not None and not any(options.get(name) for name in BACKPRESSURE):
            stream = max(self.backpressure or 0, 0)  # what the actor says for all its methods
        retries = options.get("max_task_retries")
        retry_exceptions, retry_blob = options.get("retry_exceptions") or False, None
        if isinstance(retry_exceptions, bytes):  # from the manifest
            retry_blob = retry_exceptions
            retry_exceptions = _serialization().loads(retry_blob)
        elif not isinstance(retry_exceptions, bool):
            retry_exceptions = tuple(retry_exceptions)
            retry_blob = _serialization().pack_retry(retry_exceptions, name)
        return TaskSpec(
            # The worker finds a method by its name: there is nothing to unpickle.
            function=Function(
                key=FunctionKey(f"method {name}".encode()),
                blob=b"",
                name=name,
                module=self.module,
                is_coroutine=method.is_coroutine,
            ),
            name=str.__str__(options.get("name") or name),
            num_returns=count_returns(options.get("num_returns"), is_generator=method.is_generator),
            request=self.request,
            max_retries=int(self.max_task_retries if retries is None else retries),
            retry_exceptions=retry_exceptions,
            retry_blob=retry_blob,
            priority=0,
            pace=Pace.of(options, retry_exceptions),
            group=str.__str__(group),
            stream=stream,
        )


_known: weakref.WeakValueDictionary[bytes, ActorFacts] = weakref.WeakValueDictionary()


def facts_of(manifest: bytes) -> ActorFacts:
    """The facts of a manifest: one object in a process, as long as there are handles."""
    facts = _known.get(manifest)
    if facts is None:
        facts = _known[manifest] = ActorFacts(manifest)
    return facts


def is_as_described(spec: TaskSpec, manifest: bytes) -> bool:
    """Whether it is what calls have that ask for no options of their own.

    Who has the manifest can make it of the name of the method: see :func:`described`.
    """
    name = spec.function.name
    return spec.name == name and facts_of(manifest).is_described(name, spec)


def described(name: str, manifest: bytes) -> TaskSpec:
    """The spec of calls of that name, as the class describes them."""
    facts = facts_of(manifest)
    return facts.spec_of(facts.methods[name.rpartition(".")[2]], {})


def make_manifest(
    cls: type,
    methods: Mapping[str, Method],
    *,
    request: Request,
    max_task_retries: int,
    max_pending_calls: int,
    groups: tuple[str, ...],
    backpressure: int | None,
) -> bytes:
    """What travels with a handle: nothing in it needs a module of the user's.

    Raises:
        TypeError: a class of exceptions cannot be pickled.
    """
    facts = [
        (*method[:-1], _plain_options(method.options, f"{cls.__name__}.{method.name}"))
        for method in methods.values()
    ]
    return pickle.dumps(
        (
            cls.__name__, cls.__module__, facts, request, max_task_retries, max_pending_calls,
            groups, backpressure,
        )
    )  # fmt: skip


def _plain_options(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    retry = options.get("retry_exceptions")
    if not retry or isinstance(retry, bool):
        return dict(options)
    return {**options, "retry_exceptions": _serialization().pack_retry(tuple(retry), name)}


def _serialization() -> Any:
    # Loaded here: to import a module of actor classes should not cost a pickler.
    return import_module("taskloom._wire.serialization")


# -- reading a class --------------------------------------------------------------------------


def read_methods(cls: type) -> tuple[dict[str, Method], bool]:
    """The methods of a class, and whether one of them is asynchronous."""
    methods: dict[str, Method] = {}
    is_async = False
    for name, value in _members(cls):
        function, bound = _function_of(value)
        code = getattr(function, "__code__", None)
        behind = getattr(function, "__wrapped__", None) or getattr(function, "func", function)
        inner = getattr(behind, "__code__", code)
        flags = inner.co_flags if inner is not None else 0
        is_coroutine = bool(flags & _COROUTINE) or hasattr(function, "_is_coroutine_marker")
        is_async = is_async or is_coroutine
        parameters = None if code is None else _parameters(function, code, bound)
        least, most = _positional_range(parameters)
        options = getattr(function, METHOD_MARK, {})
        is_generator = bool(flags & _GENERATOR)
        methods[name] = Method(name, parameters, least, most, is_generator, is_coroutine, options)
    for name, most in (("__ray_ready__", 0), ("__ray_terminate__", 0), ("__ray_call__", _MANY)):
        methods[name] = Method(name, _OWN_PARAMETERS[name], most and 1, most, False, False, {})
    return methods, is_async


_OWN_PARAMETERS: Final[dict[str, tuple[Parameter, ...]]] = {
    "__ray_ready__": (),
    "__ray_terminate__": (),
    "__ray_call__": (("function", 0, False), ("args", 2, False), ("kwargs", 4, False)),
}


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """What the user's classes define that can be called, the last definition of each name."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ not in {"builtins", "typing"}:
            found.update(vars(base))
    for name, value in found.items():
        if name in _NO_METHODS or isinstance(value, (type, property)):
            continue
        if callable(_function_of(value)[0]) or type(value).__name__ in _MAKE_METHODS:
            yield name, value


def _function_of(value: Any) -> tuple[Callable[..., Any] | Any, int]:
    """The function behind a member of a class, and how many arguments are filled in."""
    if isinstance(value, staticmethod):
        return value.__func__, 0
    if isinstance(value, classmethod):
        return value.__func__, 1
    return value, 1


def _parameters(function: Any, code: Any, bound: int) -> tuple[Parameter, ...] | None:
    count, names = code.co_argcount, code.co_varnames
    defaults = count - len(function.__defaults__ or ())
    found: list[Parameter] = [
        (name, 0 if index < code.co_posonlyargcount else 1, index >= defaults)
        for index, name in enumerate(names[:count])
    ]
    at = count + code.co_kwonlyargcount
    keyword_only = [(name, 3, name in (function.__kwdefaults__ or {})) for name in names[count:at]]
    if code.co_flags & _VARARGS:
        found.append((names[at], 2, False))
        at += 1
    found += keyword_only
    if code.co_flags & _VARKEYWORDS:
        found.append((names[at], 4, False))
    if bound and found and found[0][1] < 2:
        del found[0]  # self; without it the method takes *args
    return tuple(found)


def _positional_range(parameters: tuple[Parameter, ...] | None) -> tuple[int, int]:
    """(least, most) positional arguments of a call without keywords."""
    if parameters is None or any(kind == 3 and not default for _, kind, default in parameters):
        return 1, 0
    positional = [default for _, kind, default in parameters if kind < 2]
    endless = any(kind == 2 for _, kind, _ in parameters)
    return positional.count(False), _MANY if endless else len(positional)
