"""Where a session runs: what ``init(address)`` and ``TASKLOOM_ADDRESS`` may say.

=========================  =======================================================================
address                    meaning
=========================  =======================================================================
None, "local"              the engine of taskloom, on this machine
"ray"                      what ``ray.init()`` finds: a cluster that this machine is part of, or a
                           Ray of this process's own
"ray://host:10001"         a running Ray cluster, through its client server
"ray+gcs://host:6379"      a running Ray cluster that this machine is part of
"dask"                     a Dask cluster of this process's own, on this machine
"dask://host:8786"         a running Dask scheduler
"dask+tls://host:8786"     the same with TLS
=========================  =======================================================================

Nothing here imports Ray or Dask, or talks to anybody.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

CONNECT_TIMEOUT_S: Final = 10.0
_FORMS: Final = (
    "None, 'local', 'ray', 'ray://host:port', 'ray+gcs://host:port', 'dask', 'dask://host:port' "
    "or 'dask+tls://host:port'"
)
_PORTS: Final = {"ray": 10001, "ray+gcs": 6379, "dask": 8786, "dask+tls": 8786}
LOCAL_ONLY: Final = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
"""Arguments of ``init`` that describe this machine: a running cluster has its own."""

Kind = Literal["local", "ray", "dask"]


@dataclass(frozen=True, slots=True)
class Address:
    """One address, taken apart.

    Attributes:
        text: as it was given.
        kind: which engine runs the tasks.
        scheme: what stands before ``://``; the kind itself where nothing does.
        host: of a running cluster; empty: there is none, or it is to be found.
        port: of it; 0 without a host.
    """

    text: str
    kind: Kind
    scheme: str
    host: str = ""
    port: int = 0

    @property
    def is_running(self) -> bool:
        """True when it names a cluster that is there already."""
        return bool(self.host)

    @property
    def place(self) -> str:
        """``host:port``; an IPv6 host is in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(address: object) -> Address:
    """The address that ``init`` was given, or ``TASKLOOM_ADDRESS`` where that is None.

    ``RAY_ADDRESS`` is not asked: it names a cluster for programs that use Ray itself.  With
    ``"ray"`` Ray asks it, as ``ray.init()`` does.

    Raises:
        TypeError: no string.
        ConnectionError: "auto".
        ValueError: nothing that is known; the text lists what is.
    """
    said = "address"
    if address is None:
        address = os.environ.get("TASKLOOM_ADDRESS") or "local"
        said = "TASKLOOM_ADDRESS"
    if not isinstance(address, str):
        raise TypeError(f"address must be a string or None, got {address!r}")
    if address in ("local", "ray", "dask"):
        kind: Kind = address  # type: ignore[assignment]  # mypy does not narrow str by "in"
        return Address(address, kind, address)
    if address == "auto":
        raise ConnectionError(
            f"{said}='auto' asks for a running cluster, and taskloom never attaches to one that "
            "it happens to find. Use address=None or 'local' for the engine in this process, "
            "'ray' for what ray.init() finds"
        )
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in _PORTS:
        raise ValueError(f"{said} must be {_FORMS}, got {address!r}")
    host, port = _host_and_port(rest, _PORTS[scheme], f"{said}={address!r}")
    return Address(address, "ray" if scheme.startswith("ray") else "dask", scheme, host, port)


def _host_and_port(text: str, usual: int, said: str) -> tuple[str, int]:
    host, separator, digits = text.rpartition(":")
    if text.startswith("["):  # IPv6
        host, bracket, after = text[1:].partition("]")
        separator, digits = after[:1], after[1:]
        if not bracket or separator not in ("", ":"):
            raise ValueError(f"{said}: an IPv6 host stands in brackets, as in [::1]:{usual}")
    elif not separator:
        host, digits = text, ""
    if not host or "/" in text or "@" in text or (":" in host and not text.startswith("[")):
        raise ValueError(f"{said} must have the form scheme://host:port, such as host:{usual}")
    if not separator:
        return host, usual
    if not digits.isdecimal() or not 0 < int(digits) < 65536:
        raise ValueError(f"{said}: the port must be a number from 1 to 65535, got {digits!r}")
    return host, int(digits)


def refuse_local_arguments(address: Address, arguments: Mapping[str, object]) -> None:
    """Refuse what makes no sense together with ``address`` (INIT-10).

    Raises:
        ValueError: a running cluster has its resources already, or is no debugger.
    """
    if address.kind != "local" and arguments.get("local_mode"):
        raise ValueError(
            f"local_mode=True runs tasks in this process, and address={address.text!r} asks for "
            "a cluster: only one of them is possible"
        )
    if not address.is_running:
        return
    for name in LOCAL_ONLY:
        if arguments.get(name) is not None:
            raise ValueError(
                f"When connecting to an existing cluster, {name} must not be provided."
            )


def check_connect_timeout(value: object) -> float:
    """The ``connect_timeout`` of ``init``, in seconds.

    Raises:
        TypeError, ValueError: it is no number > 0.
    """
    if value is None:
        return CONNECT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"connect_timeout must be a number of seconds, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"connect_timeout must be > 0 and finite, got {value!r}")
    return float(value)
