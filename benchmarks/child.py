"""One question, one contender, one process: ``python -m benchmarks.child`` (started by the runner).

The answer goes to a file, because standard output belongs to the contenders.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from benchmarks import programs
from benchmarks.contenders import CONTENDERS, Entry
from benchmarks.contenders.base import Contender
from benchmarks.question import Answer, Question
from benchmarks.questions import QUESTIONS
from benchmarks.ray_rows import ROWS
from benchmarks.sizes import Sizes
from benchmarks.timing import verify

COULD_NOT_START = 75
"""The exit code when no worker ever ran: nothing was measured, so it may be tried again."""

_WARM_UP_ROUNDS = 50
_WARM_UP_TASKS = 200


def main(question_name: str, contender_name: str, sizes_json: str, answer_path: str) -> None:
    question, entry = (QUESTIONS | ROWS)[question_name], CONTENDERS[contender_name]
    answer = measure(question, entry, Sizes(**json.loads(sizes_json)))
    missing = {metric.name for metric in question.metrics} - answer.keys()
    verify("metrics that are missing", missing, set())
    Path(answer_path).write_text(json.dumps(answer))


def measure(question: Question, entry: Entry, sizes: Sizes) -> Answer:
    """Ask ``question`` of ``entry`` in this process."""
    if question.outside is not None:
        return question.outside(entry.name)
    assert question.inside is not None, f"{question.name} is measured by nobody"
    contender = entry.load()
    try:
        contender.prepare(**(question.init(sizes) if question.init is not None else {}))
        contender.start(sizes.workers)
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(COULD_NOT_START) from error
    try:
        warm_up(contender, sizes.workers)
        return question.inside(contender, entry, sizes)
    finally:
        contender.close()


def warm_up(contender: Contender, workers: int) -> None:
    """Return when every worker has run a task and the first-time costs have been paid."""
    where = contender.submitter(programs.where)
    pids: set[int] = set()
    for _ in range(_WARM_UP_ROUNDS):
        pids.update(contender.fetch([where() for _ in range(2 * workers)]))
        if len(pids) >= workers:
            break
    else:
        raise AssertionError(f"only {len(pids)} of {workers} workers ever ran a task")
    inc = contender.submitter(programs.inc)
    values = contender.fetch([inc(n) for n in range(_WARM_UP_TASKS)])
    verify("inc", list(values), list(range(1, _WARM_UP_TASKS + 1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
