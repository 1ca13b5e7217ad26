"""Users send images, and every user gets two e-mails.  ``python -m examples.image_pipeline``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import taskloom as tl
from examples.image_pipeline import classifier, pipeline, samples
from examples.image_pipeline.classifier import Model
from examples.image_pipeline.mail import PostOffice, Submission
from examples.image_pipeline.mail_server import MailServer
from examples.image_pipeline.report import Progress, Run, gain, say, table, write_results

FAILURES_SHOWN: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 0 when every sender got both letters."""
    options = _parse(arguments)
    try:
        with _home(options.keep) as home:
            return asyncio.run(_demo(options, home))
    except KeyboardInterrupt:
        say("\nStopped. The workers and the mail server are gone.")
        return 130


async def _demo(options: argparse.Namespace, home: Path) -> int:
    say("Users send images of digits. Each gets an e-mail that his image has arrived and, when")
    say("it has been classified, a second one with the result.\n")
    async with tl.init(
        num_cpus=options.workers,
        resources={"smtp": pipeline.CONNECTIONS},
        preload=["examples.image_pipeline.pipeline"],  # while this process makes its preparations
    ):
        folder = options.images or await asyncio.to_thread(_make_images, home / "sent", options)
        submissions = _submissions(folder, options.count if options.images else None)
        labels = samples.read_labels(folder)
        model = await asyncio.to_thread(classifier.train)
        say(f"The classifier has learned from {model.trained_on} other digits.")
        await pipeline.wake_up.remote()
        workers = round(tl.cluster_resources()["CPU"])
        say(f"\nServing all {len(submissions)} images at once, with {workers} CPUs:")
        run = await _actor_run(options, home / "mails", submissions, model, workers)
        runs = [run]
        failures = [failure for outcome in run.outcomes for failure in outcome.failures]
        if options.compare and not failures:
            say("\nThe same with tasks alone, which keep nothing:")
            runs.append(await _task_run(options, home / "mails-by-tasks", submissions, model))
    if options.compare and not failures:
        say("\nThe same functions without the engine, one image after another:")
        runs.append(await _plain_run(options, home / "mails-one-by-one", submissions, model))

    say(f"\n{table(runs, labels)}\n")
    if len(runs) > 1:
        say(f"{gain(runs[0], runs[1])}\n")
    say(
        "The seconds run from the first image to the last letter, once all is imported and trained."
    )
    if options.smtp is None and options.smtp_delay:
        say(f"The demo's own mail server takes {options.smtp_delay} ms to welcome a client and to")
        say("accept a letter, as one across a network does; with --smtp-delay 0 none at all.")
    if options.keep is None:
        say("With --keep FOLDER the images and the e-mails stay, for you to look at.")
    else:
        write_results(home / "results.csv", run.outcomes, labels)
        say(f"Everything is in {home}.")
    for failure in failures[:FAILURES_SHOWN]:
        say(f"Failed: {failure}")
    if len(failures) > FAILURES_SHOWN:
        say(f"... and {len(failures) - FAILURES_SHOWN} more failures.")
    return 1 if failures else 0


async def _actor_run(
    options: argparse.Namespace,
    folder: Path,
    submissions: Sequence[Submission],
    model: Model,
    classifiers: int,
) -> Run:
    shared = tl.put(model)  # pickled once, however many actors it goes to
    progress = Progress(len(submissions))
    with _post_office(options, folder) as office:
        actors = pipeline.Actors(shared, office, classifiers)
        await actors.ready()
        start = time.perf_counter()
        outcomes = await pipeline.serve_all(submissions, actors, progress.on_done)
        seconds = time.perf_counter() - start
        opened = await actors.postman.opened.remote()
    return Run("with actors", outcomes, seconds, classifiers, opened)


async def _task_run(
    options: argparse.Namespace, folder: Path, submissions: Sequence[Submission], model: Model
) -> Run:
    shared = tl.put(model)
    progress = Progress(len(submissions), lines=4, name_broken=False)
    with _post_office(options, folder) as office:
        tasks = pipeline.Tasks(shared, office)
        start = time.perf_counter()
        outcomes = await pipeline.serve_all(submissions, tasks, progress.on_done)
        seconds = time.perf_counter() - start
    loaded = sum(outcome.verdict is not None for outcome in outcomes)
    return Run("tasks alone", outcomes, seconds, loaded, 2 * len(outcomes))


async def _plain_run(
    options: argparse.Namespace, folder: Path, submissions: Sequence[Submission], model: Model
) -> Run:
    progress = Progress(len(submissions), lines=4, name_broken=False)
    with _post_office(options, folder) as office:
        start = time.perf_counter()
        outcomes = await pipeline.serve_one_by_one(submissions, model, office, progress.on_done)
        seconds = time.perf_counter() - start
    return Run("one by one", outcomes, seconds, 1, 2 * len(outcomes))


@contextmanager
def _post_office(options: argparse.Namespace, folder: Path) -> Iterator[PostOffice]:
    """The mail server that the user has named, or one of our own that keeps the letters."""
    if options.smtp is not None:
        yield options.smtp
        return
    with MailServer(folder, options.smtp_delay / 1000) as server:
        yield server.office


@contextmanager
def _home(keep: Path | None) -> Iterator[Path]:
    """The folder of this run: the one to keep, or one that is removed at the end."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="image-pipeline-") as name:
        yield Path(name)


def _make_images(folder: Path, options: argparse.Namespace) -> Path:
    samples.write_photos(folder, options.count, options.broken)
    say(f"{options.count} images have been sent, and {options.broken} files that are broken.")
    return folder


def _submissions(folder: Path, limit: int | None) -> list[Submission]:
    """One user for each image of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")[:limit]
    return [
        Submission(path, f"user-{number:03d}@pipeline.example")
        for number, path in enumerate(paths, start=1)
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.image_pipeline",
        description="Users send images; each gets an e-mail that it has arrived and another with "
        "the digit that it shows. Computing and e-mail run side by side on taskloom.",
    )
    add = parser.add_argument
    add("--count", type=_at_least(1), default=60, metavar="N", help="how many images (60)")
    add("--broken", type=_at_least(0), metavar="N", help="how many broken files besides (2)")
    add("--images", type=_folder, metavar="DIR", help="take the PNG files of this folder instead")
    add("--workers", type=_at_least(1), metavar="N", help="how many CPUs to use (all)")
    add(
        "--smtp-delay",
        type=_at_least(0),
        metavar="MS",
        help="time the demo's own mail server takes to welcome a client, and to accept a letter, "
        "in milliseconds (50)",
    )
    add(
        "--smtp",
        type=_address,
        metavar="HOST:PORT",
        help="use this mail server; its login, if "
        "it wants one, is read from the variables SMTP_USER and SMTP_PASSWORD",
    )
    add(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="do the same once more without the engine, letters included (yes, with --smtp no)",
    )
    add("--keep", type=_empty_folder, metavar="DIR", help="store images, e-mails and results here")
    options = parser.parse_args(arguments)
    if options.images is not None and options.broken is not None:
        parser.error("--broken is about the images that are made, and --images takes yours")
    if options.smtp is not None and options.smtp_delay is not None:
        parser.error("--smtp-delay is about the demo's own mail server, and --smtp names another")
    options.broken = 2 if options.broken is None else options.broken
    options.smtp_delay = 50 if options.smtp_delay is None else options.smtp_delay
    options.compare = options.smtp is None if options.compare is None else options.compare
    return options


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number from {least} on, not {text!r}")
        return int(text)

    return number


def _address(text: str) -> PostOffice:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"HOST:PORT, not {text!r}")
    return PostOffice(host.strip("[]"), int(port))


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    if not any(entry.suffix.lower() == ".png" for entry in path.iterdir()):
        raise argparse.ArgumentTypeError(f"there is no PNG file in {text}")
    return path


def _empty_folder(text: str) -> Path:
    path = Path(text).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{text} exists and is not an empty folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
