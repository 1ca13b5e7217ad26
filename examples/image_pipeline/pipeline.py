"""The tasks and actors, and the graph that every image runs through.

::

    load ----> classify ----> mail the result      (or the problem, when the image is broken)
    mail a receipt                                 at the same time

What keeps nothing is a task: ``load`` reads one image.  What is worth keeping lives in an actor: a
``Classifier`` has loaded its model once, and the ``Postman`` keeps connections to the mail server
open and has many letters under way at once.  ``Tasks`` does the same without actors, for
comparison: each task gets the model anew, and each letter opens a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Final, Protocol

from aiosmtplib import SMTPException

import taskloom as tl
from examples.image_pipeline import classifier, images, mail
from examples.image_pipeline.classifier import Model, Verdict
from examples.image_pipeline.images import BadImage, Picture
from examples.image_pipeline.mail import Connections, PostOffice, Submission

# A mail server lets one client open so many connections.  The postman has no more letters under
# way than that.  Letters that are tasks take one of a resource named "smtp", of which there is
# this much.
CONNECTIONS: Final = 20


@tl.remote
def wake_up() -> None:
    """Do nothing: once this has run, the workers have imported what the tasks need."""


@tl.remote
def load(path: Path) -> Picture:
    """Read the image, or raise BadImage."""
    return images.load(path)


# -- with actors ----------------------------------------------------------------------------------


# Its calls do not depend on one another, so one whose picture is there need not wait for others.
@tl.remote(max_restarts=-1, max_task_retries=3, allow_out_of_order_execution=True)
class Classifier:
    """Says which digit it is; has loaded its model once."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @tl.method
    def classify(self, picture: Picture) -> Verdict:
        return classifier.classify(picture, self._model)


by_mail = tl.method(max_task_retries=3, retry_exceptions=[SMTPException])


@tl.remote(max_restarts=-1, max_concurrency=CONNECTIONS)
class Postman:
    """Hands letters to the mail server, over connections that stay open."""

    def __init__(self, office: PostOffice) -> None:
        self._connections = Connections(office)

    @by_mail
    async def send_receipt(self, submission: Submission) -> None:
        """Tell the sender that his image has arrived."""
        await self._connections.send(mail.receipt(submission))

    @by_mail
    async def send_result(self, submission: Submission, verdict: Verdict) -> None:
        """Tell the sender what his image shows."""
        await self._connections.send(mail.result(submission, verdict))

    @by_mail
    async def send_problem(self, submission: Submission, reason: str) -> None:
        """Tell the sender that his image cannot be read."""
        await self._connections.send(mail.problem(submission, reason))

    async def opened(self) -> int:
        """How many connections there were."""
        return self._connections.opened

    def __ray_shutdown__(self) -> None:
        self._connections.close()


class Hands(Protocol):
    """Who classifies and mails; each method submits one call."""

    def classify(self, picture: tl.ObjectRef[Picture]) -> tl.ObjectRef[Verdict]: ...
    def send_receipt(self, submission: Submission) -> tl.ObjectRef[None]: ...
    def send_result(
        self, submission: Submission, verdict: tl.ObjectRef[Verdict]
    ) -> tl.ObjectRef[None]: ...
    def send_problem(self, submission: Submission, reason: str) -> tl.ObjectRef[None]: ...


class Actors:
    """One postman, and as many classifiers as can compute at once.

    They end when this is forgotten.
    """

    def __init__(self, model: tl.ObjectRef[Model], office: PostOffice, classifiers: int) -> None:
        self.postman = Postman.remote(office)
        self.classifiers = [Classifier.remote(model) for _ in range(classifiers)]
        self._turns = cycle(self.classifiers)
        self.send_receipt = self.postman.send_receipt.remote
        self.send_result = self.postman.send_result.remote
        self.send_problem = self.postman.send_problem.remote

    async def ready(self) -> None:
        """All of them are constructed."""
        everybody = [self.postman, *self.classifiers]
        await asyncio.gather(*(actor.__ray_ready__.remote() for actor in everybody))

    def classify(self, picture: tl.ObjectRef[Picture]) -> tl.ObjectRef[Verdict]:
        return next(self._turns).classify.remote(picture)


# -- with tasks alone -----------------------------------------------------------------------------


@tl.remote
def classify(picture: Picture, model: Model) -> Verdict:
    """Say which digit it is."""
    return classifier.classify(picture, model)


# Coroutines: one worker has many of them under way at once.
mailing = tl.remote(resources={"smtp": 1}, max_retries=3, retry_exceptions=[SMTPException])


@mailing
async def mail_receipt(submission: Submission, office: PostOffice) -> None:
    """Tell the sender that his image has arrived."""
    await mail.send(mail.receipt(submission), office)


@mailing
async def mail_result(submission: Submission, verdict: Verdict, office: PostOffice) -> None:
    """Tell the sender what his image shows."""
    await mail.send(mail.result(submission, verdict), office)


@mailing
async def mail_problem(submission: Submission, reason: str, office: PostOffice) -> None:
    """Tell the sender that his image cannot be read."""
    await mail.send(mail.problem(submission, reason), office)


@dataclass(frozen=True, slots=True)
class Tasks:
    """The same without actors."""

    model: tl.ObjectRef[Model]
    office: PostOffice

    def classify(self, picture: tl.ObjectRef[Picture]) -> tl.ObjectRef[Verdict]:
        return classify.remote(picture, self.model)

    def send_receipt(self, submission: Submission) -> tl.ObjectRef[None]:
        return mail_receipt.remote(submission, self.office)

    def send_result(
        self, submission: Submission, verdict: tl.ObjectRef[Verdict]
    ) -> tl.ObjectRef[None]:
        return mail_result.remote(submission, verdict, self.office)

    def send_problem(self, submission: Submission, reason: str) -> tl.ObjectRef[None]:
        return mail_problem.remote(submission, reason, self.office)


# -- the graph ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What became of one image: a verdict or a problem, and the letters about it."""

    submission: Submission
    verdict: Verdict | None = None
    problem: str | None = None
    letters: int = 0  # that the mail server has accepted
    failures: list[str] = field(default_factory=list)


async def serve(submission: Submission, hands: Hands) -> Outcome:
    """One image: four calls are handed to the engine at once, which starts each when it can."""
    outcome = Outcome(submission)
    receipt = hands.send_receipt(submission)
    picture = load.remote(submission.path)
    verdict = hands.classify(picture)
    answer = hands.send_result(submission, verdict)
    try:
        await answer
        outcome.verdict = await verdict
    except BadImage as error:
        # Raised by load. The two calls that depend on it have failed and were never started.
        outcome.problem = error.reason
        answer = hands.send_problem(submission, error.reason)
    except SMTPException:
        outcome.verdict = await verdict  # it is known; only the letter about it was not taken
    except tl.exceptions.RayError:
        pass  # a worker has crashed, say; noted below
    for failure in await asyncio.gather(receipt, answer, return_exceptions=True):
        if failure is None:
            outcome.letters += 1
        else:
            why = str(failure).strip().splitlines()[-1]  # the lines before are its traceback
            outcome.failures.append(f"a letter to {submission.sender}: {why}")
    return outcome


async def serve_all(
    submissions: Sequence[Submission], hands: Hands, on_done: Callable[[Outcome], None]
) -> list[Outcome]:
    """All images at once."""

    async def serve_one(submission: Submission) -> Outcome:
        outcome = await serve(submission, hands)
        on_done(outcome)
        return outcome

    return await asyncio.gather(*map(serve_one, submissions))


async def serve_one_by_one(
    submissions: Sequence[Submission],
    model: Model,
    office: PostOffice,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """The same functions called plainly, one after another: what the engine is compared with."""
    outcomes: list[Outcome] = []
    for submission in submissions:
        outcome = Outcome(submission)
        await mail_receipt.func(submission, office)
        try:
            outcome.verdict = classify.func(load.func(submission.path), model)
        except BadImage as error:
            outcome.problem = error.reason
            await mail_problem.func(submission, error.reason, office)
        else:
            await mail_result.func(submission, outcome.verdict, office)
        outcome.letters = 2
        on_done(outcome)
        outcomes.append(outcome)
    return outcomes
