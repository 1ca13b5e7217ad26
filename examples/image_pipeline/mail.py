"""The letters that a sender gets, and how they are handed to a mail server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Final

import aiosmtplib

from examples.image_pipeline.classifier import Verdict

FROM: Final = "digits@pipeline.example"
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Submission:
    """What a user has sent, and the address that hears about it."""

    path: Path
    sender: str


@dataclass(frozen=True, slots=True)
class PostOffice:
    """The SMTP server that takes the letters."""

    host: str
    port: int


def receipt(submission: Submission) -> EmailMessage:
    """The first letter: your image has arrived."""
    return _letter(
        submission,
        f"We have received {submission.path.name}",
        "Thank you for your image. It has arrived safely and is being looked at;\n"
        "a second e-mail will tell you which digit it shows.\n",
    )


def result(submission: Submission, verdict: Verdict) -> EmailMessage:
    """The second letter: what is on the image."""
    return _letter(
        submission,
        f"Your image {submission.path.name} shows a {verdict.digit}",
        f"Digit: {verdict.digit}\n"
        f"Agreement: {verdict.votes} of {verdict.copies} looks at the image\n",
    )


def problem(submission: Submission, reason: str) -> EmailMessage:
    """The second letter when there is nothing to look at."""
    return _letter(
        submission,
        f"Your image {submission.path.name} could not be read",
        f"We are sorry, nobody could look at your image:\n{reason}.\n\nPlease send it once more.\n",
    )


async def send(letter: EmailMessage, office: PostOffice) -> None:
    """Hand one letter to the mail server; it is the server's when this returns.

    Raises:
        aiosmtplib.SMTPException: the server is not there or does not take the letter.
    """
    client = await _connect(office)
    try:
        await client.send_message(letter)
        await client.quit()
    finally:
        client.close()


class Connections:
    """Connections to a mail server that stay open for the next letter.

    ``opened`` is how many there were.  To be used in one event loop.
    """

    def __init__(self, office: PostOffice) -> None:
        self.opened = 0
        self._office = office
        self._idle: list[aiosmtplib.SMTP] = []

    async def send(self, letter: EmailMessage) -> None:
        """As the function ``send``, over a connection that is free, or a new one."""
        if self._idle:
            client = self._idle.pop()
            try:
                await client.send_message(letter)
            except aiosmtplib.SMTPServerDisconnected:
                pass  # the server has grown tired of waiting for us: once more, on a new one
            except BaseException:
                client.close()
                raise
            else:
                self._idle.append(client)
                return
        client = await _connect(self._office)
        self.opened += 1
        try:
            await client.send_message(letter)
        except BaseException:
            client.close()
            raise
        self._idle.append(client)

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().close()


async def _connect(office: PostOffice) -> aiosmtplib.SMTP:
    """A server that asks for a login gets the one in the environment: SMTP_USER, SMTP_PASSWORD."""
    client = aiosmtplib.SMTP(
        hostname=office.host,
        port=office.port,
        username=os.environ.get("SMTP_USER"),
        password=os.environ.get("SMTP_PASSWORD"),
        use_tls=office.port == 465,  # other ports change to TLS when the server offers it
        timeout=TIMEOUT_S,
    )
    await client.connect()
    return client


def _letter(submission: Submission, subject: str, body: str) -> EmailMessage:
    letter = EmailMessage()
    letter["From"] = FROM
    letter["To"] = submission.sender
    letter["Subject"] = subject
    letter["Date"] = formatdate()
    letter["Message-ID"] = make_msgid(domain=FROM.partition("@")[2])
    letter.set_content(f"Hello {submission.sender},\n\n{body}")
    return letter
