"""The backends that the suite runs on: how each one starts, and what is asked of it afterwards.

A process has one session at a time, so the backends take turns: pytest runs all tests of one, and
then all tests of the next.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from tests.gates import eventually

SETTLE_S: Final = 30.0

SMALL: Final[Mapping[str, Any]] = {"num_cpus": 2, "resources": {"slot": 4}}
"""What tests may count on: two CPUs, and four of a resource that nothing else uses."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One backend.

    Attributes:
        name: as ``--backends`` and the matrix call it.
        arguments: of ``init`` for the session that all tests share.
        needs: modules without which it is left out.
        is_cluster: other processes than ours own the queue, and keep what they like.
        address: of the running session, for programs that run beside it; None: they start a
            session of their own.
        prepare: called before the start.
    """

    name: str
    arguments: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    is_cluster: bool = False
    address: Callable[[], str] | None = None
    prepare: Callable[[], None] = field(default=_nothing)

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        return all(find_spec(module) is not None for module in self.needs)

    def ensure(self) -> ModuleType:
        """Start the session, unless it runs: a test that failed may have ended it."""
        taskloom = import_module("taskloom")
        if not taskloom.is_initialized():
            self.prepare()
            taskloom.init(**self.arguments)
        return taskloom

    def end(self) -> None:
        """End the session."""
        import_module("taskloom").shutdown()

    def init_line(self) -> str:
        """What stands between the parentheses of ``init()`` in a program that runs here."""
        if self.address is not None:
            return repr(self.address())
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    def calls(self) -> set[object]:
        """The calls that a cluster has not ended yet."""
        running: Any = import_module("taskloom._current").peek().calls.running
        return set(running.values())

    def calls_left(self, before: set[object]) -> set[object]:
        """Those of a test that has ended; ``before``: what it had found running."""
        eventually(lambda: gc.collect() >= 0 and not self.calls() - before, SETTLE_S)
        return self.calls() - before


def _prepare_ray() -> None:
    # A Ray of our own: nobody attaches to what else runs on the machine.
    os.environ["RAY_ADDRESS"] = "local"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_DEDUP_LOGS"] = "0"


def _ray_address() -> str:
    ray = import_module("ray")
    return f"ray+gcs://{ray.get_runtime_context().gcs_address}"


def _dask_address() -> str:
    session: Any = import_module("taskloom._current").peek()
    return str(session.driver.client.scheduler.address).replace("tcp://", "dask://")


STAGES: Final[Mapping[str, Stage]] = {
    stage.name: stage
    for stage in (
        Stage(name="local", arguments={"address": "local", **SMALL}),
        Stage(name="local_mode", arguments={"address": "local", "local_mode": True, **SMALL}),
        Stage(
            name="ray",
            arguments={
                "address": "ray",
                **SMALL,
                "object_store_memory": 200 * 2**20,
                "include_dashboard": False,
            },
            needs=("ray",),
            is_cluster=True,
            address=_ray_address,
            prepare=_prepare_ray,
        ),
        Stage(
            name="dask",
            arguments={"address": "dask", **SMALL},
            needs=("distributed", "taskloom.backends.dask"),
            is_cluster=True,
            address=_dask_address,
        ),
    )
}

USUAL: Final = ("local", "local_mode")
"""Those that need nothing but taskloom, and so are part of every run of the tests."""


def chosen(said: str) -> list[Stage]:
    """The backends that ``--backends`` names.

    Args:
        said: names with commas between them, or "all": those that are installed.

    Raises:
        ValueError: one is unknown, or is not installed.
    """
    if said == "all":
        return [stage for stage in STAGES.values() if stage.is_installed]
    names = [name.strip() for name in said.split(",")] if said else list(USUAL)
    for name in names:
        if name not in STAGES:
            raise ValueError(f"--backends knows all, {', '.join(STAGES)}; not {name!r}")
        if not STAGES[name].is_installed:
            raise ValueError(f"--backends {name}: needs {' and '.join(STAGES[name].needs)}")
    return [STAGES[name] for name in names]
