"""Options of tasks: which there are, which values they take, and what they ask for.

``TASK_OPTIONS`` is the whole list.  Ray's names, types, defaults and texts; ``priority``,
``timeout`` and ``retry_delay`` with its companions are ours.

An option that taskloom cannot honour raises at once.  The exceptions are hints that mean nothing
on one machine (``cluster_only`` in the table): they are checked, leave a debug line in the log
and change nothing.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom import _config
from taskloom._caller import level_of_caller
from taskloom._ids import MAX_RETURNS
from taskloom.exceptions import RayDeprecationWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Request = tuple[tuple[str, int], ...]
"""(resource name, units of 0.0001), sorted by name, without zeros."""

UNITS_PER_RESOURCE: Final = 10_000
"""Resources are counted in whole units of 0.0001, as in Ray: no float ever drifts."""

DEFAULT_MAX_RETRIES: Final = 3
BACKPRESSURE: Final = ("backpressure", "_generator_backpressure_num_objects")
"""Our name for it, and Ray's private one."""
LARGEST: Final = sys.float_info.max
"""A number above it is infinite or, as an int, of no use: it has no float."""
_SMALLEST: Final = 1 / UNITS_PER_RESOURCE
_RESERVED: Final = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what it takes, and what it is when not given.

    Attributes:
        types: the classes of its values; None in it means any.
        default: the value when not given.
        check: raises ValueError (never possible) or NotImplementedError (not possible yet).
        cluster_only: means nothing on one machine.
    """

    types: tuple[type, ...]
    default: object = None
    check: Callable[[str, Any], None] | None = None
    cluster_only: bool = False

    def validate(self, name: str, value: object) -> None:
        """Check one value.

        Raises:
            TypeError: it is of another type.
            ValueError: its type is right, but the value makes no sense.
            NotImplementedError: taskloom cannot do it.
        """
        if not isinstance(value, self.types):
            kinds = [kind.__name__ if kind is not _NONE else "None" for kind in self.types]
            raise TypeError(
                f"The type of keyword '{name}' must be {' or '.join(kinds)}, "
                f"but received type {type(value).__name__}: {value!r}"
            )
        if self.check is not None and value is not None:
            self.check(name, value)
        if self.cluster_only and value != self.default:
            _config.log_debug("option %s=%r has no effect on one machine", name, value)


_NONE: Final = type(None)


# -- checks of values -------------------------------------------------------------------------


def check_quantity(name: str, quantity: float) -> None:
    """How much of a resource: finite, not negative, not finer than 0.0001.

    Raises:
        ValueError: it is none of these.
    """
    if not quantity >= 0:  # NaN, too
        what = "cannot be negative" if quantity < 0 else "must be a number"
        raise ValueError(f"The quantity of resource {name} {what}, got {quantity!r}")
    if math.isinf(quantity):
        raise ValueError(f"The quantity of resource {name} must be finite, got {quantity!r}")
    if 0 < quantity < _SMALLEST:
        raise ValueError(
            f"The precision of the fractional quantity of resource {name} "
            f"cannot go beyond 0.0001, got {quantity!r}"
        )
    if name in ("GPU", "num_gpus") and quantity > 1 and quantity != int(quantity):
        raise ValueError(
            f"The quantity of resource {name} must be a whole number when above 1, got {quantity!r}"
        )


def check_resources(name: str, resources: Mapping[object, object]) -> None:
    """Custom resources: names that are free to use, and quantities.

    Raises:
        TypeError: a name is no string, or a quantity no number.
        ValueError: a name is reserved, or a quantity makes no sense.
    """
    for resource, quantity in resources.items():
        if not isinstance(resource, str):
            raise TypeError(f"The names in '{name}' must be str, got {resource!r}")
        if resource in _RESERVED:
            raise ValueError(
                "Use the 'num_cpus' and 'num_gpus' keyword instead of 'CPU' and 'GPU' in "
                f"'resources' keyword, and 'memory' for memory (got {resource!r})"
            )
        if not resource:
            raise ValueError(f"A name in '{name}' is empty")
        if not isinstance(quantity, (int, float)):
            raise TypeError(f"The quantity of resource {resource} must be a number: {quantity!r}")
        check_quantity(resource, quantity)


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(
            f"The keyword '{name}' only accepts None, 0 or a positive integer, got {value!r}"
        )


def _check_retries(name: str, value: int) -> None:
    if value < -1:
        raise ValueError(
            f"The keyword '{name}' only accepts None, 0, -1 or a positive integer, "
            f"where -1 represents infinity, got {value!r}"
        )


def _check_timeout(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 < value <= LARGEST:  # NaN, too
        raise ValueError(
            f"The keyword '{name}' only accepts None or a finite number of seconds > 0, "
            f"got {value!r}"
        )


def _check_delay(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 <= value <= LARGEST:
        raise ValueError(
            f"The keyword '{name}' only accepts None or a finite number of seconds >= 0, "
            f"got {value!r}"
        )


def _check_backoff(name: str, value: float) -> None:
    _check_number(name, value)
    if not 1 <= value <= LARGEST:
        raise ValueError(
            f"The keyword '{name}' is the factor by which each pause is longer than the one "
            f"before: a finite number >= 1, got {value!r}"
        )


def _check_jitter(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(
            f"The keyword '{name}' is the part of each pause that is left to chance: "
            f"a number from 0 to 1, got {value!r}"
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool):
        raise TypeError(f"The type of keyword '{name}' must be float or int, but received {value}")


def _check_max_calls(name: str, value: int) -> None:
    _check_count(name, value)
    if value:
        raise NotImplementedError(
            f"max_calls={value}: taskloom cannot end a worker after a number of calls yet"
        )


def _check_num_returns(name: str, value: int | str) -> None:
    if isinstance(value, str):
        if value not in ("streaming", "dynamic"):
            raise TypeError(
                f"The type of keyword '{name}' must be int, or 'streaming' or 'dynamic' for "
                f"generators, got {value!r}"
            )
        if value == "dynamic":
            warnings.warn(
                "num_returns='dynamic' is deprecated: use num_returns='streaming', which is what "
                "generator functions do by default",
                RayDeprecationWarning,
                stacklevel=level_of_caller(),
            )
    elif not 0 <= value <= MAX_RETURNS:
        raise ValueError(f"{name} must be >= 0 and at most {MAX_RETURNS}, but got {value}")


def _check_retry_exceptions(name: str, value: object) -> None:
    if isinstance(value, bool):
        return
    for item in cast("list[object]", value):
        if not (isinstance(item, type) and issubclass(item, Exception)):
            raise ValueError(
                f"{name} must be either a boolean or a list of exceptions, got {item!r} in it"
            )


def _check_strategy(name: str, value: object) -> None:
    if isinstance(value, str):
        if value not in ("DEFAULT", "SPREAD"):
            raise ValueError(f"Invalid {name} {value!r}: it is 'DEFAULT' or 'SPREAD'")
    elif type(value).__name__.endswith("SchedulingStrategy"):
        raise NotImplementedError(f"{name}={value!r}: taskloom cannot do this yet")
    else:
        raise TypeError(
            f"The type of keyword '{name}' must be None, str or a scheduling strategy, "
            f"but received type {type(value).__name__}"
        )


def _check_runtime_env(name: str, value: Mapping[str, object]) -> None:
    if value:
        raise NotImplementedError(
            f"{name}={dict(value)!r}: taskloom has no runtime environments of tasks yet"
        )


def _check_unset(name: str, value: object) -> None:
    raise ValueError(f"Setting '{name}' is not implemented for tasks")


def _check_placement_group(name: str, value: object) -> None:
    if value != "default":
        raise NotImplementedError(f"{name}={value!r}: taskloom has no placement groups yet")


def _check_bundle_index(name: str, value: int) -> None:
    if value != -1:
        raise NotImplementedError(f"{name}={value!r}: taskloom has no placement groups yet")


def _check_backpressure(name: str, value: int) -> None:
    if value < 1 and value != -1:
        raise ValueError(
            f"{name}={value} is not allowed: use a value > 0 (1 makes an item whenever one is "
            "taken), or -1 for no limit"
        )


def _check_per_yield(name: str, value: int) -> None:
    if value != 1:
        raise NotImplementedError(f"{name}={value}: taskloom yields one object at a time")


# -- the table --------------------------------------------------------------------------------

_NUMBER: Final = (float, int, _NONE)
_STR: Final = (str, _NONE)
_INT: Final = (int, _NONE)
_DICT: Final = (dict, _NONE)

TASK_OPTIONS: Final[dict[str, Option]] = {
    "num_cpus": Option(_NUMBER, 1, check_quantity),  # 0 for `async def`
    "num_gpus": Option(_NUMBER, None, check_quantity),
    "memory": Option(_NUMBER, None, check_quantity),  # bytes
    "resources": Option(_DICT, None, check_resources),
    "name": Option(_STR),
    "num_returns": Option((int, str, _NONE), None, _check_num_returns),
    "max_retries": Option(_INT, DEFAULT_MAX_RETRIES, _check_retries),
    "retry_exceptions": Option((bool, list, tuple), False, _check_retry_exceptions),
    "priority": Option((int,), 0),  # higher first
    "timeout": Option(_NUMBER, None, _check_timeout),  # seconds, for each attempt
    "retry_delay": Option(_NUMBER, None, _check_delay),  # seconds before the second attempt
    "retry_backoff": Option(_NUMBER, None, _check_backoff),
    "retry_jitter": Option(_NUMBER, None, _check_jitter),
    "max_calls": Option(_INT, 0, _check_max_calls),
    "runtime_env": Option(_DICT, None, _check_runtime_env),
    "scheduling_strategy": Option((object,), None, _check_strategy),
    "object_store_memory": Option(_INT, None, _check_unset),
    "accelerator_type": Option(_STR, cluster_only=True),
    "label_selector": Option(_DICT, cluster_only=True),
    "fallback_strategy": Option((list, _NONE), cluster_only=True),
    "enable_task_events": Option((bool,), True, cluster_only=True),
    "placement_group": Option((object,), "default", _check_placement_group),
    "placement_group_bundle_index": Option((int,), -1, _check_bundle_index),
    "placement_group_capture_child_tasks": Option((bool, _NONE), cluster_only=True),
    "_labels": Option(_DICT, cluster_only=True),
    "backpressure": Option(_INT, None, _check_backpressure),  # items not taken; generators only
    "_generator_backpressure_num_objects": Option(_INT, None, _check_backpressure),
    "_num_objects_per_yield": Option((int,), 1, _check_per_yield),
}


def validate_task_options(
    options: Mapping[str, object],
    *,
    in_options_call: bool,
    is_generator: bool | None = None,
) -> dict[str, Any]:
    """Check the options of a remote function.

    Args:
        options: what the user gave to ``@remote(...)`` or ``.options(...)``.
        in_options_call: it was ``.options(...)``.
        is_generator: the function is a generator function, if that is known.

    Returns:
        The options as a ``TaskSpec`` wants them.  Those of ``@remote(...)`` are completed with
        ``max_retries``, ``retry_exceptions`` and ``priority``; those of ``.options(...)`` are
        only what was given, to be merged over the former.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: unknown option, a value that makes no sense, or options that contradict.
        NotImplementedError: an option of Ray that taskloom cannot honour.
    """
    if (
        options.get("placement_group", "default") not in ("default", None)
        and options.get("scheduling_strategy") is not None
    ):
        raise ValueError(
            "Placement groups should be specified via the scheduling_strategy option. "
            "The placement_group option is deprecated."
        )
    for name, value in options.items():
        option = TASK_OPTIONS.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for remote functions. "
                f"Valid ones are {list(TASK_OPTIONS)}."
            )
        if in_options_call and name == "max_calls":
            raise ValueError("Setting 'max_calls' is not supported in '.options()'.")
        option.validate(name, value)
    if is_generator is not None:
        count_returns(options.get("num_returns"), is_generator=is_generator)
    checked = dict(options)
    for name in ("max_retries", "retry_exceptions", "priority"):
        if not in_options_call or name in options:
            checked[name] = option_value(options, name)
    if isinstance(checked.get("retry_exceptions"), list):
        checked["retry_exceptions"] = tuple(cast("list[object]", checked["retry_exceptions"]))
    return checked


def count_returns(num_returns: object, *, is_generator: bool) -> int:
    """How many ordinary outputs a call has; that of a stream has one, which tells of its end.

    Args:
        num_returns: a value that has passed :func:`validate_task_options`.
        is_generator: the function is a generator function.

    Raises:
        ValueError: a stream is asked of a function that is not a generator function.
    """
    if isinstance(num_returns, str) and not is_generator:
        raise ValueError(
            f"num_returns={num_returns!r} can only be used with generator functions, and this "
            "function has no yield"
        )
    return 1 if num_returns is None or isinstance(num_returns, str) else cast("int", num_returns)


def stream_limit(options: Mapping[str, object], *, is_generator: bool) -> int | None:
    """How many items of a stream may wait to be taken, 0 for any number; None: it is no stream.

    Args:
        options: that have passed :func:`validate_task_options`.
        is_generator: the function is a generator function.

    Raises:
        ValueError: a limit for what is no stream, or two different limits.
    """
    num_returns = options.get("num_returns")
    limits = {cast("int", options[name]) for name in BACKPRESSURE if options.get(name) is not None}
    if len(limits) > 1:
        raise ValueError(
            "backpressure= and _generator_backpressure_num_objects= are the same option, and they "
            f"say {sorted(limits)}"
        )
    limit = max(limits.pop(), 0) if limits else 0
    if isinstance(num_returns, str) or (num_returns is None and is_generator):
        return limit
    if limit:
        raise ValueError(f"backpressure={limit} is for streams of generator functions")
    return None


def option_value(options: Mapping[str, object], name: str) -> Any:
    """The value of an option, or its default where it is absent or None."""
    value = options.get(name)
    if value is not None:
        return value
    if name == "max_retries":
        return default_max_retries()
    return TASK_OPTIONS[name].default


def check_pauses(options: Mapping[str, object]) -> None:
    """Options that shape a pause need one to shape.

    Raises:
        ValueError: ``retry_backoff`` or ``retry_jitter`` without ``retry_delay``.
    """
    if options.get("retry_delay") is None:
        for name in ("retry_backoff", "retry_jitter"):
            if options.get(name) is not None:
                raise ValueError(f"The keyword '{name}' needs 'retry_delay', which is not given")


def default_max_retries() -> int:
    """How often a task whose worker dies is tried again: TASKLOOM_TASK_MAX_RETRIES, or 3.

    Raises:
        ValueError: the variable holds something else than -1 (no limit), 0 or a number.
    """
    retries = _config.env_int("TASK_MAX_RETRIES", DEFAULT_MAX_RETRIES)
    if retries < -1:
        raise ValueError(f"TASKLOOM_TASK_MAX_RETRIES must be >= -1, got {retries}")
    return retries


def make_request(options: Mapping[str, object], *, is_coroutine: bool) -> Request:
    """The resources that a call holds while it runs.

    Args:
        options: options that have passed :func:`validate_task_options`.
        is_coroutine: the function is an ``async def``; those need no CPU unless they say so.

    Raises:
        ValueError: GPUs for an ``async def``.
    """
    amounts = dict(cast("Mapping[str, float]", options.get("resources") or {}))
    cpus = cast("float | None", options.get("num_cpus"))
    amounts["CPU"] = (0 if is_coroutine else 1) if cpus is None else cpus
    amounts["GPU"] = cast("float | None", options.get("num_gpus")) or 0
    # Whole bytes: rounded down, as in Ray.
    amounts["memory"] = int(cast("float | None", options.get("memory")) or 0)
    if amounts["GPU"] and is_coroutine:
        raise ValueError(
            f"num_gpus={amounts['GPU']!r} is not possible for an 'async def' function: "
            "CUDA_VISIBLE_DEVICES belongs to a whole process, and many coroutines share one"
        )
    units = ((name, to_units(amount)) for name, amount in amounts.items())
    return tuple(sorted(pair for pair in units if pair[1]))


def to_units(amount: float) -> int:
    """``amount`` in units of 0.0001, rounded down: six times 1/6 fits into one CPU."""
    if isinstance(amount, int):
        return amount * UNITS_PER_RESOURCE
    # The nudge is for 0.29 * 10000 == 2900 - 4e-13; it is far below a unit.
    return math.floor(amount * UNITS_PER_RESOURCE + 1e-6)


def from_units(units: int) -> float:
    """Units of 0.0001 as the number users see."""
    return units / UNITS_PER_RESOURCE
