"""The tasks, and the graph that every image runs through.

::

    load ----> classify ----> mail_result          (mail_problem when the image is broken)
    mail_receipt                                   at the same time

``load`` and ``classify`` compute, so they are plain functions and each has a CPU of its own while
it runs.  The letters wait for a mail server, so they are coroutines: one worker has many of them
under way at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiosmtplib import SMTPException

import taskloom as tl
from examples.image_pipeline import classifier, images, mail
from examples.image_pipeline.classifier import Model, Verdict
from examples.image_pipeline.images import BadImage, Picture
from examples.image_pipeline.mail import PostOffice, Submission

# A mail server lets one client open so many connections.  The engine holds the letters to it: it
# has this much of a resource named "smtp", and every letter takes one while it is being sent.
CONNECTIONS: Final = 20


@tl.remote
def wake_up() -> None:
    """Do nothing: once this has run, the workers have imported what the tasks need."""


@tl.remote
def load(path: Path) -> Picture:
    """Read the image, or raise BadImage."""
    return images.load(path)


@tl.remote
def classify(picture: Picture, model: Model) -> Verdict:
    """Say which digit it is."""
    return classifier.classify(picture, model)


by_mail = tl.remote(resources={"smtp": 1}, max_retries=3, retry_exceptions=[SMTPException])


@by_mail
async def mail_receipt(submission: Submission, office: PostOffice) -> None:
    """Tell the sender that his image has arrived."""
    await mail.send(mail.receipt(submission), office)


@by_mail
async def mail_result(submission: Submission, verdict: Verdict, office: PostOffice) -> None:
    """Tell the sender what his image shows."""
    await mail.send(mail.result(submission, verdict), office)


@by_mail
async def mail_problem(submission: Submission, reason: str, office: PostOffice) -> None:
    """Tell the sender that his image cannot be read."""
    await mail.send(mail.problem(submission, reason), office)


@dataclass(slots=True)
class Outcome:
    """What became of one image: a verdict or a problem, and the letters about it."""

    submission: Submission
    verdict: Verdict | None = None
    problem: str | None = None
    letters: int = 0  # that the mail server has accepted
    failures: list[str] = field(default_factory=list)


async def serve(submission: Submission, model: tl.ObjectRef[Model], office: PostOffice) -> Outcome:
    """One image: four tasks are handed to the engine at once, which starts each when it can."""
    outcome = Outcome(submission)
    receipt = mail_receipt.remote(submission, office)
    picture = load.remote(submission.path)
    verdict = classify.remote(picture, model)
    answer = mail_result.remote(submission, verdict, office)
    try:
        await answer
        outcome.verdict = await verdict
    except BadImage as error:
        # Raised by load. classify and mail_result have failed with it and were never started.
        outcome.problem = error.reason
        answer = mail_problem.remote(submission, error.reason, office)
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
    submissions: Sequence[Submission],
    model: tl.ObjectRef[Model],
    office: PostOffice,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """All images at once."""

    async def serve_one(submission: Submission) -> Outcome:
        outcome = await serve(submission, model, office)
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
