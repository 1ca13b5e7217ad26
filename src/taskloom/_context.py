"""What ``init`` returns: the facts of a session, and a way to end it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskloom._version import __commit__, __version__

if TYPE_CHECKING:
    from taskloom.backends.base import Backend


class BaseContext:
    """The facts that do not depend on where the session runs.

    Args:
        shutdown: ends the session.
    """

    def __init__(self, shutdown: Callable[[], None]) -> None:
        self._shutdown = shutdown
        self.dashboard_url: str | None = None
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.ray_version = __version__
        self.ray_commit = __commit__

    def disconnect(self) -> None:
        """End the session."""
        self._shutdown()

    def __enter__(self) -> BaseContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    async def __aenter__(self) -> BaseContext:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Loaded here: only programs with a loop come this way, and theirs may be asyncio's or
        # trio's.  The session ends although the program was cancelled, and off the loop.
        anyio = import_module("anyio")
        with anyio.CancelScope(shield=True):
            await import_module("anyio.to_thread").run_sync(self.disconnect)


class RayContext(BaseContext, Mapping[str, Any]):
    """The facts of a session of the embedded engine.

    ``with init() as context:`` and ``async with init() as context:`` end it at the end.

    Args:
        backend: whose session it is.
        shutdown: ends the session.
    """

    def __init__(self, backend: Backend, shutdown: Callable[[], None]) -> None:
        super().__init__(shutdown)
        self.address_info: dict[str, Any] = {
            "node_ip_address": "127.0.0.1",
            "node_id": backend.node_id,
            "job_id": backend.job_id,
            "namespace": backend.namespace,
            "address": getattr(backend, "address", "local"),  # only a cluster has one
            "gcs_address": "",
            "object_store_address": "",
            "raylet_socket_name": "",
            "session_dir": "",
            "session_name": f"session_{backend.session_id.hex()}",
            "webui_url": None,
            "metrics_export_port": None,
            "dashboard_agent_listen_port": None,
        }

    def __enter__(self) -> RayContext:
        return self

    async def __aenter__(self) -> RayContext:
        return self

    def __getitem__(self, key: str) -> Any:
        warnings.warn(
            f"Accessing the context like a dictionary is deprecated: use "
            f"context.address_info[{key!r}]",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __repr__(self) -> str:
        return (
            f"RayContext(dashboard_url={self.dashboard_url!r}, "
            f"python_version={self.python_version!r}, ray_version={self.ray_version!r})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "Python version": self.python_version,
            "taskloom version": self.ray_version,
            "Namespace": self.address_info["namespace"],
            "Node": self.address_info["node_id"],
        }
        escape = import_module("html").escape  # notebooks only
        lines = "".join(
            f"<tr><th style='text-align: left'>{name}</th><td>{escape(str(value))}</td></tr>"
            for name, value in rows.items()
        )
        return f"<table>{lines}</table>"
