"""Asks every question of every contender, each time in a fresh process, interleaved.

The order is A B C A B C, so that a noisy minute of the machine hits everybody alike.  Nothing is
written into the source tree: byte code goes to a directory of the run's own and is cached for
all alike, as on a user's machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks import machine, processes
from benchmarks.child import COULD_NOT_START
from benchmarks.contenders import Entry
from benchmarks.question import Question
from benchmarks.questions import QUESTIONS
from benchmarks.sizes import Sizes

ROOT = Path(__file__).resolve().parent.parent
_RUN_MARK = "BENCHMARK_RUN"
_NO_START = f"exit code {COULD_NOT_START}"
_GRACE_S = 10.0
"""How long the processes of an answer may take to end after it."""


@dataclass(slots=True)
class Cell:
    """What one contender answered to one question, over all repeats."""

    answers: list[dict[str, float]] = field(default_factory=list)
    failure: str | None = None
    is_asked: bool = True  # False: the contender cannot do that (nest, say)


@dataclass(slots=True, kw_only=True)
class Run:
    """A whole run: facts and numbers, nothing computed yet."""

    taken: str
    facts: dict[str, str]
    versions: dict[str, str]
    sizes: Sizes
    repeats: int
    load_before: str
    load_after: str = ""
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line for each question, so that results stay small and differences readable."""
        data = {"format": 1, **asdict(self)}
        cells = [
            f"{json.dumps(name)}: {json.dumps(row)}" for name, row in data.pop("cells").items()
        ]
        head = json.dumps(data, indent=1).removesuffix("\n}")
        return head + ',\n "cells": {\n  ' + ",\n  ".join(cells) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Run:
        data: dict[str, Any] = json.loads(text)
        if data.pop("format") != 1:
            raise ValueError("these results were written by another version of the benchmark")
        data["sizes"] = Sizes(**data["sizes"])
        data["cells"] = {
            question: {name: Cell(**cell) for name, cell in row.items()}
            for question, row in data["cells"].items()
        }
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What shall be run."""

    questions: Sequence[Question]
    contenders: Sequence[Entry]
    sizes: Sizes
    repeats: int
    slow_repeats: int
    time_limit_s: float

    def repeats_of(self, entry: Entry, question: Question) -> int:
        repeats = min(self.repeats, self.slow_repeats) if entry.is_slow else self.repeats
        return min(repeats, question.most_repeats or repeats)

    def time_limit_of(self, question: Question) -> float:
        return max(self.time_limit_s, question.time_limit_s)


def execute(plan: Plan, say: Callable[[str], None]) -> Run:
    """Run ``plan``; ``say`` is told what is going on."""
    versions = {entry.name: entry.version() or "not installed" for entry in plan.contenders}
    run = Run(
        taken=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        facts=machine.describe(ROOT),
        versions=versions,
        sizes=plan.sizes,
        repeats=plan.repeats,
        load_before=machine.load(),
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        asker = _Asker(plan, Path(directory), say)
        if any(question.needs_warm_cache for question in plan.questions):
            asker.warm_cache()
        for question in plan.questions:
            if not any(question.suits(entry) for entry in plan.contenders):
                say(f"{question.name}: none of these contenders can answer it")
                continue
            run.cells[question.name] = asker.ask_all(question)
    run.load_after = machine.load()
    return run


class _Asker:
    """Starts the processes of one run."""

    def __init__(self, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._directory = directory
        self._say = say
        self._sizes = json.dumps(asdict(plan.sizes))

    def warm_cache(self) -> None:
        """Let everybody start once, so that all byte code and files are in their caches."""
        for entry in self._plan.contenders:
            started = time.perf_counter()
            outcome = self._ask(QUESTIONS["memory"], entry)
            elapsed_s = time.perf_counter() - started
            self._say(f"warm-up  {entry.title}: {_short(outcome)}  [{elapsed_s:.1f} s]")

    def ask_all(self, question: Question) -> dict[str, Cell]:
        """Ask one question of all, A B C A B C."""
        entries = self._plan.contenders
        cells = {entry.name: Cell(is_asked=question.suits(entry)) for entry in entries}
        for repeat in range(self._plan.repeats):
            for entry in entries:
                cell = cells[entry.name]
                if not cell.is_asked or cell.failure is not None:
                    continue
                if repeat >= self._plan.repeats_of(entry, question):
                    continue
                started = time.perf_counter()
                outcome = self._ask(question, entry)
                if outcome == _NO_START:  # a cluster may time out on a busy machine
                    self._say(f"{entry.title} could not start and is tried once more")
                    outcome = self._ask(question, entry)
                elapsed_s = time.perf_counter() - started
                if isinstance(outcome, str):
                    cell.failure = outcome
                else:
                    cell.answers.append(outcome)
                self._say(
                    f"{question.name} {repeat + 1}/{self._plan.repeats_of(entry, question)}  "
                    f"{entry.title}: {_short(outcome)}  [{elapsed_s:.1f} s]"
                )
        return cells

    def _ask(self, question: Question, entry: Entry) -> dict[str, float] | str:
        """One answer, or what went wrong in words."""
        mark = uuid4().hex
        limit_s = self._plan.time_limit_of(question)
        answer = self._directory / f"{mark}.json"
        output = self._directory / f"{mark}.txt"
        command = [sys.executable, "-m", "benchmarks.child", question.name, entry.name]
        with output.open("wb") as sink:
            child = subprocess.Popen(
                [*command, self._sizes, str(answer)],
                cwd=ROOT,
                env=self._environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
            grace_s = 0.0
            try:
                child.wait(limit_s)
                grace_s = _GRACE_S
                failure = f"exit code {child.returncode}" if child.returncode else None
            except subprocess.TimeoutExpired:
                failure = f"no answer within {limit_s:.0f} s"
            finally:
                left = self._end(mark, grace_s=grace_s)
                child.wait()
        if failure is not None:
            self._say(_indented(output.read_text(errors="replace")))
            return failure
        if left:
            self._say(f"{entry.title} left {left} processes behind; they were killed")
        numbers: dict[str, float] = json.loads(answer.read_text())
        return numbers

    def _end(self, mark: str, *, grace_s: float) -> int:
        """Wait until everybody who was started has ended, and kill who has not; how many."""
        left = processes.wait_for_end(mark, variable=_RUN_MARK, timeout_s=grace_s)
        processes.kill(left)
        return len(left)

    def _environment(self, mark: str) -> dict[str, str]:
        dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH", "PYTHONSTARTUP")
        environment = {key: text for key, text in os.environ.items() if key not in dropped}
        environment[_RUN_MARK] = mark
        environment["PYTHONPYCACHEPREFIX"] = str(self._directory / "byte-code")
        # The workers must find the functions of benchmarks.programs, whoever starts them.
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        environment["RAY_USAGE_STATS_ENABLED"] = "0"
        return environment


def _short(outcome: dict[str, float] | str) -> str:
    if isinstance(outcome, str):
        return outcome
    return "  ".join(f"{name} {value:,.5g}" for name, value in outcome.items())


def _indented(text: str) -> str:
    lines: Iterable[str] = text.rstrip().splitlines()[-40:]
    return "\n".join(f"    {line}" for line in lines)
