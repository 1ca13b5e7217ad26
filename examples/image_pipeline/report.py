"""What the demo prints: a few lines on the way, and the table at the end."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.image_pipeline.pipeline import Outcome


def say(text: str = "") -> None:
    """Print now, also into a pipe."""
    print(text, flush=True)


class Progress:
    """Says a few times how far the work is.

    Args:
        total: how many images there are.
        lines: about how many times.
        name_broken: whether every broken image has a line too.
    """

    def __init__(self, total: int, *, lines: int = 10, name_broken: bool = True) -> None:
        self.done = 0
        self._total = total
        self._step = max(1, total // lines)
        self._name_broken = name_broken

    def on_done(self, outcome: Outcome) -> None:
        """One more image is finished and both letters about it are with the mail server."""
        self.done += 1
        broken = self._name_broken and outcome.problem is not None
        if broken or self.done % self._step == 0 or self.done == self._total:
            say(f"{self.done:7} of {self._total}   {_in_words(outcome)}")


@dataclass(frozen=True, slots=True)
class Run:
    """One way through all images: what came out, how long it took, and what was made for it."""

    name: str
    outcomes: Sequence[Outcome]
    seconds: float
    models_loaded: int
    connections: int


def table(runs: Sequence[Run], labels: Mapping[str, int]) -> str:
    """The table of the runs, side by side; the last of several is what they are compared with."""
    rows = [
        ["", *(each.name for each in runs)],
        ["images", *(str(len(each.outcomes)) for each in runs)],
        ["broken images", *(str(_broken(each)) for each in runs)],
        ["accuracy", *(_accuracy(each, labels) for each in runs)],
        ["e-mails delivered", *(_delivered(each) for each in runs)],
        ["classifier loaded", *(_times(each.models_loaded) for each in runs)],
        ["mail connections", *(str(each.connections) for each in runs)],
        ["seconds", *(f"{each.seconds:.2f}" for each in runs)],
        ["images per second", *(f"{len(each.outcomes) / each.seconds:.1f}" for each in runs)],
    ]
    if len(runs) > 1:
        *faster, slow = runs
        rows.append(["speed-up", *(f"{slow.seconds / each.seconds:.1f} x" for each in faster)])
    rule = "  " + "-" * (20 + 14 * len(runs))
    lines = [
        f"  {name:20}{''.join(f'{cell:>14}' for cell in cells)}".rstrip() for name, *cells in rows
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def gain(actors: Run, tasks: Run) -> str:
    """What it gained that actors keep the classifier and the connections."""
    loaded, before = _times(actors.models_loaded), _times(tasks.models_loaded)
    return (
        f"Kept by actors, the classifier was loaded {loaded} instead of {before}, and\n"
        f"{actors.connections} connections to the mail server were opened instead of "
        f"{tasks.connections}. That took {actors.seconds:.2f} s\ninstead of {tasks.seconds:.2f} s: "
        f"{tasks.seconds / actors.seconds:.2f} x as fast."
    )


def write_results(path: Path, outcomes: Sequence[Outcome], labels: Mapping[str, int]) -> None:
    """One line for each image, for a spreadsheet."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "sender", "digit", "votes", "truth", "problem"])
        for outcome in outcomes:
            name, verdict = outcome.submission.path.name, outcome.verdict
            seen = [verdict.digit, verdict.votes] if verdict else ["", ""]
            truth = labels.get(name, "")
            writer.writerow([name, outcome.submission.sender, *seen, truth, outcome.problem or ""])


def _in_words(outcome: Outcome) -> str:
    name, verdict = outcome.submission.path.name, outcome.verdict
    if outcome.problem is not None:
        return f"{name} could not be read: {outcome.problem}"
    if verdict is None:
        return f"{name} has no answer, see below"
    return f"{name} shows a {verdict.digit} ({verdict.votes} of {verdict.copies} votes)"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"


def _broken(run: Run) -> int:
    return sum(outcome.problem is not None for outcome in run.outcomes)


def _delivered(run: Run) -> str:
    """Letters that the mail server has accepted, of two for every image."""
    letters = sum(outcome.letters for outcome in run.outcomes)
    return f"{letters} of {2 * len(run.outcomes)}"


def _accuracy(run: Run, labels: Mapping[str, int]) -> str:
    right = [
        outcome.verdict.digit == labels[outcome.submission.path.name]
        for outcome in run.outcomes
        if outcome.verdict and outcome.submission.path.name in labels
    ]
    return f"{100 * sum(right) / len(right):.1f} %" if right else "unknown"
