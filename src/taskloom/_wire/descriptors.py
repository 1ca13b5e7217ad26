"""Descriptors that travel through a socket between driver and zygote."""

from __future__ import annotations

import socket
from array import array
from typing import Final

_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def receive(sock: socket.socket, size_bytes: int, most: int) -> tuple[bytes, list[int]]:
    """One message, and the descriptors (at most ``most``) that came with it.

    ``socket.recv_fds`` leaves them open in every program that is started from here on: who
    inherits a worker's stream keeps its end from being seen.

    Raises:
        OSError: nothing can be received (BlockingIOError: now).
    """
    fds = array("i")
    space = socket.CMSG_SPACE(most * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(size_bytes, space, _CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
