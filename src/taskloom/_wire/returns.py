"""From what a function returned to the values of its refs: the rules of ``num_returns`` (REM-7)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import cast


def split_returns(value: object, num_returns: int, name: str) -> list[object]:
    """The ``num_returns`` objects that ``value`` stands for.

    One return is the value itself.  For several the value must be an iterable of exactly that
    many; a generator is driven to its end here, and never past one value too many.

    Args:
        value: what the function returned.
        num_returns: how many refs wait for a value.
        name: the task, for texts.

    Returns:
        A list of length ``num_returns``.

    Raises:
        ValueError: there are more or fewer values than refs, or it cannot be iterated over.
        BaseException: whatever a generator raised on the way.
    """
    if num_returns == 1:
        return [value]
    if num_returns == 0:
        if value is not None:
            warnings.warn(
                f"Task '{name}' has num_returns=0 but returned a non-None value of type "
                f"{type(value).__qualname__}. The return value will be ignored.",
                RuntimeWarning,
                stacklevel=2,
            )
        return []
    try:
        rest = iter(cast("Iterable[object]", value))
    except TypeError:
        raise ValueError(
            f"Task '{name}' returned an object of type {type(value).__qualname__}, which is not "
            f"iterable, but num_returns={num_returns}."
        ) from None
    values: list[object] = []
    for item in rest:
        if len(values) == num_returns:
            raise ValueError(f"Task returned more than num_returns={num_returns} objects.")
        values.append(item)
    if len(values) < num_returns:
        raise ValueError(f"Task returned {len(values)} objects, but num_returns={num_returns}.")
    return values
