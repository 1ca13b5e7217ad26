"""Who takes part: one module each, with the same small interface (``base.Contender``).

The modules are loaded one by one and only in the process that measures, so that no contender
pays for the imports of another.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.contenders.base import Contender


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What can be known of a contender without importing it."""

    name: str
    title: str
    module: str
    package: str | None  # None: part of the standard library or of the benchmark
    takes_refs: bool = False  # its handles may be arguments: it keeps a graph itself
    nests: bool = False  # its tasks may submit tasks and wait for them
    is_slow: bool = False  # takes seconds to start, or milliseconds for a task

    def version(self) -> str | None:
        """The version that would be measured; None when it is not installed."""
        if self.name == "floor" and not hasattr(os, "eventfd"):
            return None  # its bell is an eventfd, which only Linux has
        if self.package is None:
            return f"Python {platform.python_version()}"
        if find_spec(self.package) is None:
            return None
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "source tree"

    def load(self) -> Contender:
        """Import the contender's module, and with it the contender's package."""
        contender: Contender = import_module(f"benchmarks.contenders.{self.module}").make()
        return contender


_ENTRIES = (
    Entry(
        name="taskloom",
        title="taskloom",
        module="taskloom",
        package="taskloom",
        takes_refs=True,
        nests=True,
    ),
    Entry(name="floor", title="bare floor", module="floor", package=None, takes_refs=True),
    Entry(name="ppe", title="ProcessPoolExecutor", module="ppe", package=None),
    Entry(name="pool", title="multiprocessing.Pool", module="pool", package=None),
    Entry(name="loky", title="loky", module="loky", package="loky"),
    Entry(
        name="ray",
        title="Ray",
        module="ray",
        package="ray",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
    Entry(
        name="on_ray",
        title="taskloom on Ray",
        module="on_ray",
        package="ray",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
    Entry(
        name="on_ray_single",
        title="taskloom on Ray, one by one",
        module="on_ray_single",
        package="ray",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
    Entry(
        name="dask",
        title="Dask",
        module="dask",
        package="distributed",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
    Entry(
        name="on_dask",
        title="taskloom on Dask",
        module="on_dask",
        package="distributed",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
    Entry(
        name="on_dask_single",
        title="taskloom on Dask, one by one",
        module="on_dask_single",
        package="distributed",
        takes_refs=True,
        nests=True,
        is_slow=True,
    ),
)

CONTENDERS = {entry.name: entry for entry in _ENTRIES}
