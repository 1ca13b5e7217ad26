"""A mail server on this machine, which keeps every letter as a file."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from examples.image_pipeline.mail import PostOffice


class MailServer:
    """An SMTP server on a free port of the loopback interface, in a thread of its own.

    Use it in a ``with`` block.

    Args:
        folder: where the letters go, one ``.eml`` file each, numbered in order of arrival.
        delay_s: how long the server thinks before it welcomes a client, and before it takes a
            letter, as one does that is further away than this machine.
    """

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        self.folder = folder
        self.delivered = 0
        self.connections = 0
        self._clients: set[asyncio.BaseTransport] = set()  # who has been welcomed
        self._delay_s = delay_s
        folder.mkdir(parents=True, exist_ok=True)
        # Bound here and not by the controller, which cannot tell which free port it got.
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._controller = _Controller(self, listener)
        self.office = PostOffice("127.0.0.1", listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._controller.stop()

    def hang_up(self) -> None:
        """Close all connections, as servers do that have waited for long."""
        loop = self._controller.loop
        while self._clients:
            loop.call_soon_threadsafe(self._clients.pop().close)

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, name: str, responses: list[str]
    ) -> list[str]:
        """Called by aiosmtpd when a client has introduced itself: once in a connection."""
        await asyncio.sleep(self._delay_s)
        self.connections += 1
        session.host_name = name
        self._clients.add(server.transport)
        return responses

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Called by aiosmtpd when a letter has been transmitted; the answer goes to the sender."""
        await asyncio.sleep(self._delay_s)
        assert isinstance(envelope.content, bytes)
        self.delivered += 1
        receiver = re.sub(r"[^\w.@+-]", "_", envelope.rcpt_tos[0])
        path = self.folder / f"{self.delivered:05d}-{receiver}.eml"
        path.write_bytes(envelope.content)
        return "250 OK"


class _Controller(Controller):
    """aiosmtpd's thread and loop, listening on a socket that is bound already."""

    def __init__(self, handler: MailServer, listener: socket.socket) -> None:
        host, port = listener.getsockname()
        super().__init__(handler, hostname=host, port=port)
        self._listener = listener

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        return self.loop.create_server(self._factory_invoker, sock=self._listener, backlog=512)
