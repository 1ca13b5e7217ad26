"""When memory counts as running out, and how often a task that was ended for it is tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

USAGE_THRESHOLD: Final = 0.95
REFRESH_S: Final = 0.25
TASK_OOM_RETRIES: Final = 3
SYSTEM_CONFIG_NAMES: Final = frozenset(
    {"memory_usage_threshold", "memory_monitor_refresh_ms", "task_oom_retries"}
)
"""What ``init(_system_config=...)`` may say about memory; Ray's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """Of one session.

    Attributes:
        usage_threshold: the share of the memory, of the machine or of a container around this
            process, above which a worker is ended.
        refresh_s: seconds between two looks while tasks run; 0: nobody looks.
        task_oom_retries: how often a task is tried again after its worker was ended for memory;
            -1 for ever.  Tasks with ``max_retries=0`` never are.
    """

    usage_threshold: float = USAGE_THRESHOLD
    refresh_s: float = REFRESH_S
    task_oom_retries: int = TASK_OOM_RETRIES


def read_memory_settings(
    system_config: Mapping[object, object], env: Callable[[str], str | None]
) -> MemorySettings:
    """The settings from ``init(_system_config=...)``, else from the environment.

    The names are Ray's: ``memory_usage_threshold``, ``memory_monitor_refresh_ms`` and
    ``task_oom_retries``; the variables are ``TASKLOOM_MEMORY_USAGE_THRESHOLD`` and so on, or
    Ray's own ``RAY_memory_usage_threshold``.

    Args:
        system_config: as it was given.
        env: reads a variable, see ``_config.env``.

    Raises:
        TypeError, ValueError: a value makes no sense; the text says whose.
    """

    def number(name: str, default: float) -> tuple[float, str]:
        """The value, and who gave it."""
        if name in system_config:
            where = f"_system_config[{name!r}]"
            value = system_config[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{where} must be a number, got {value!r}")
            return value, where
        where = f"the variable TASKLOOM_{name.upper()}"
        text = env(name.upper()) or env(name)
        try:
            return (default if text is None else float(text)), where
        except ValueError:
            raise ValueError(f"{where} must be a number, got {text!r}") from None

    threshold, where = number("memory_usage_threshold", USAGE_THRESHOLD)
    if not 0 < threshold <= 1:
        raise ValueError(f"{where} must be more than 0 and at most 1, got {threshold!r}")
    refresh_ms, where = number("memory_monitor_refresh_ms", REFRESH_S * 1000)
    if not 0 <= refresh_ms <= 3_600_000:
        raise ValueError(
            f"{where} must be between 0 (nobody looks) and 3600000 milliseconds, got {refresh_ms!r}"
        )
    retries, where = number("task_oom_retries", TASK_OOM_RETRIES)
    if not -1 <= retries < 2**31 or retries != int(retries):
        raise ValueError(f"{where} must be a whole number >= -1 (-1: for ever), got {retries!r}")
    return MemorySettings(
        usage_threshold=threshold, refresh_s=refresh_ms / 1000, task_oom_retries=int(retries)
    )
