"""Before a cluster's own library is asked to connect: is anybody there at all?

The libraries try for minutes, some end the process when they give up, and what they say at last
names threads and channels.  So one plain connection is made first.
"""

from __future__ import annotations

import socket
from importlib import import_module
from time import monotonic
from types import ModuleType

from taskloom.backends._addresses import Address


def knock(address: Address, timeout_s: float) -> float:
    """Make sure that somebody listens at ``address``.

    Args:
        address: of a running cluster.
        timeout_s: how many seconds it has to answer.

    Returns:
        How many seconds are left, at least a tenth of them.

    Raises:
        ConnectionError: nobody does; the text says where and why.
    """
    began = monotonic()
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError as error:
        why = "it did not answer" if isinstance(error, TimeoutError) else str(error)
        raise ConnectionError(
            f"cannot connect to {address.text!r}: nothing that answers at {address.place} "
            f"({why}; connect_timeout={timeout_s:g} s)"
        ) from None
    return max(timeout_s - (monotonic() - began), timeout_s / 10)


def load_extra(name: str, extra: str) -> ModuleType:
    """The library ``name`` of a cluster.

    Args:
        name: of the package.
        extra: of taskloom, which brings it.

    Raises:
        ImportError: it is not installed; the text says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this address needs {name}, which cannot be imported here ({error}): install it "
            f"with  pip install 'taskloom[{extra}]'",
            name=name,
        ) from error
