"""Options of actors and of their methods: which there are, and which values they take.

As for tasks (``_options``) the tables are the whole list, with Ray's names, defaults and texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, cast

from taskloom import _options
from taskloom._options import TASK_OPTIONS, Option, to_units

ASYNC_CONCURRENCY: Final = 1000
"""How many calls of an async actor run at once unless it says otherwise."""
_NONE: Final = type(None)


class ActorChoices(TypedDict, total=False):
    """What ``.options(...)`` of an actor class takes."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    object_store_memory: int | None
    resources: dict[str, float] | None
    accelerator_type: str | None
    name: str | None
    namespace: str | None
    lifetime: str | None
    get_if_exists: bool
    max_restarts: int
    max_task_retries: int
    max_concurrency: int | None
    max_pending_calls: int
    allow_out_of_order_execution: bool | None
    runtime_env: dict[str, Any] | None
    scheduling_strategy: object
    label_selector: dict[str, str] | None
    fallback_strategy: list[dict[str, Any]] | None
    enable_task_events: bool
    enable_tensor_transport: bool | None


class ActorOptions(ActorChoices, total=False):
    """The options of an actor class."""

    concurrency_groups: dict[str, int] | None


class MethodOptions(TypedDict, total=False):
    """The options of a method besides ``num_returns``, which decides what ``.remote()`` gives."""

    concurrency_group: str | None
    max_task_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]]
    timeout: float | None
    backpressure: int | None
    enable_task_events: bool
    tensor_transport: str | None


class CallOptions(MethodOptions, total=False):
    """The same for one call."""

    name: str | None


def _check_name(name: str, value: str) -> None:
    if not value:
        raise ValueError(f"The actor {name} cannot be an empty string")


def _check_lifetime(name: str, value: str) -> None:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"actor `{name}` must be one of 'detached', 'non_detached', None")


def _check_repeats(name: str, value: int) -> None:
    if value < -1:
        raise ValueError(
            f"The keyword '{name}' only accepts None, 0, -1 or a positive integer, "
            f"where -1 represents infinity, got {value!r}"
        )


def _check_concurrency(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"The keyword '{name}' must be at least 1, got {value!r}")


def _check_pending(name: str, value: int) -> None:
    if value != -1 and value < 1:
        raise ValueError(f"The keyword '{name}' must be -1 (no limit) or at least 1, got {value!r}")


def _check_groups(name: str, value: Mapping[object, object]) -> None:
    for group, size in value.items():
        if not isinstance(group, str) or not group:
            raise TypeError(f"The names in '{name}' must be non-empty str, got {group!r}")
        if not isinstance(size, int):
            raise TypeError(f"The size of concurrency group {group!r} must be int, got {size!r}")
        if size < 1:
            raise ValueError(f"The size of concurrency group {group!r} must be >= 1, got {size}")


def _check_tensor_transport(name: str, value: bool) -> None:
    if value:
        raise NotImplementedError(f"{name}={value!r}: taskloom has no tensor transports")


_SHARED: Final = (
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "scheduling_strategy",
    "runtime_env",
    "accelerator_type",
    "label_selector",
    "fallback_strategy",
    "enable_task_events",
    "placement_group",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
    "_labels",
)

ACTOR_OPTIONS: Final[dict[str, Option]] = {
    **{name: TASK_OPTIONS[name] for name in _SHARED},
    "num_cpus": Option((float, int, _NONE), None, _options.check_quantity),
    "name": Option((str, _NONE), None, _check_name),
    "namespace": Option((str, _NONE), None, _check_name),
    "lifetime": Option((str, _NONE), None, _check_lifetime),
    "get_if_exists": Option((bool,), False),
    "max_restarts": Option((int, _NONE), 0, _check_repeats),
    "max_task_retries": Option((int, _NONE), 0, _check_repeats),
    "max_concurrency": Option((int, _NONE), None, _check_concurrency),  # 1, async 1000
    "max_pending_calls": Option((int, _NONE), -1, _check_pending),
    "concurrency_groups": Option((dict, _NONE), None, _check_groups),
    "allow_out_of_order_execution": Option((bool, _NONE), None),
    "object_store_memory": Option((int, _NONE), None, cluster_only=True),
    "enable_tensor_transport": Option((bool, _NONE), None, _check_tensor_transport),
    "_actor_generator_backpressure_num_objects": TASK_OPTIONS[
        "_generator_backpressure_num_objects"
    ],
}

METHOD_OPTIONS: Final[dict[str, Option]] = {
    "num_returns": TASK_OPTIONS["num_returns"],
    "concurrency_group": Option((str, _NONE)),
    "max_task_retries": Option((int, _NONE), None, _check_repeats),  # that of the actor
    "retry_exceptions": TASK_OPTIONS["retry_exceptions"],
    "timeout": TASK_OPTIONS["timeout"],
    "enable_task_events": TASK_OPTIONS["enable_task_events"],
    "tensor_transport": Option((str, _NONE), None, _check_tensor_transport),
    "backpressure": TASK_OPTIONS["backpressure"],
    "_generator_backpressure_num_objects": TASK_OPTIONS["_generator_backpressure_num_objects"],
    "_num_objects_per_yield": TASK_OPTIONS["_num_objects_per_yield"],
}
_CALL_OPTIONS: Final[dict[str, Option]] = {"name": Option((str, _NONE)), **METHOD_OPTIONS}


def validate_actor_options(options: Mapping[str, object], *, in_options_call: bool) -> None:
    """Check the options of an actor class.

    Args:
        options: what the user gave to ``@remote(...)`` or ``.options(...)``.
        in_options_call: it was ``.options(...)``.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: unknown option, a value that makes no sense, or options that contradict.
        NotImplementedError: an option of Ray that taskloom cannot honour.
    """
    for name, value in options.items():
        option = ACTOR_OPTIONS.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for actors. Valid ones are {list(ACTOR_OPTIONS)}."
            )
        if in_options_call and name == "concurrency_groups":
            raise ValueError("Setting 'concurrency_groups' is not supported in '.options()'.")
        option.validate(name, value)


def check_together(options: Mapping[str, object], *, is_async: bool) -> None:
    """Check all options of an actor that is about to be created against one another.

    Raises:
        ValueError: they contradict.
    """
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("The actor name must be specified to use `get_if_exists`.")
    concurrent = is_async or (cast("int", options.get("max_concurrency")) or 1) > 1
    if options.get("allow_out_of_order_execution") is False and concurrent:
        raise ValueError(
            "allow_out_of_order_execution=False is not possible for async and threaded actors: "
            "their calls run side by side"
        )


def validate_call_options(options: Mapping[str, object]) -> None:
    """Check the options of one call of a method.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: unknown option, or a value that makes no sense.
        NotImplementedError: an option of Ray that taskloom cannot honour.
    """
    for name, value in options.items():
        option = _CALL_OPTIONS.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for actor methods. "
                f"Valid ones are {list(_CALL_OPTIONS)}."
            )
        option.validate(name, value)


def make_requests(options: Mapping[str, object]) -> tuple[_options.Request, _options.Request]:
    """What an actor holds while it lives, and what it holds besides until it is constructed.

    When nothing is asked for that is one CPU to construct it and nothing afterwards; when
    anything is, ``num_cpus`` is 1 unless it says otherwise (ACT-5).
    """
    asked = ("num_cpus", "num_gpus", "memory", "resources")
    if not any(options.get(name) is not None for name in asked):
        return (), (("CPU", to_units(1)),)
    return _options.make_request(options, is_coroutine=False), ()


def make_groups(options: Mapping[str, Any], *, is_async: bool) -> tuple[tuple[str, int], ...]:
    """The concurrency groups of an actor, the default one first."""
    default = options.get("max_concurrency") or (ASYNC_CONCURRENCY if is_async else 1)
    return (("", default), *(options.get("concurrency_groups") or {}).items())
