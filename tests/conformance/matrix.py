"""What passed where, as JSON: ``{behaviour: {backend: verdict}}``.

A verdict is ``passed``, ``refused: why``, ``differs: why`` or, which is never committed,
``failed``.  A behaviour is named after its test: ``tasks: several returns are a list of refs``.
``tools/backend_table.py`` makes of it the table in ``docs/backends.md``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

HOME: Final = Path(__file__).resolve().parent
FAILED: Final = "failed"

Rows = dict[str, dict[str, str]]


def name_of(file: Path, test: str) -> str:
    """How the matrix calls the behaviour of a test."""
    subject = file.stem.removeprefix("test_").removesuffix("_everywhere").replace("_", " ")
    return f"{subject}: {test.removeprefix('test_').replace('_', ' ')}"


def behaviour_of(item: pytest.Item) -> str:
    """The same, for a collected test."""
    assert isinstance(item, pytest.Function)
    return name_of(item.path, item.originalname)


def behaviours_in(module: ModuleType) -> Iterator[tuple[str, dict[str, str]]]:
    """All that the tests of a module say before they run: their names, and where they do not pass.

    Yields:
        The name of the behaviour, and the verdict for each backend that is marked.
    """
    assert module.__file__ is not None
    common = _marks_of(module)
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_"):
            marks = [*common, *_marks_of(function)]
            yield name_of(Path(module.__file__), name), dict(_verdicts(marks))


def _marks_of(thing: object) -> list[pytest.Mark]:
    marks = getattr(thing, "pytestmark", [])
    return [getattr(mark, "mark", mark) for mark in (marks if isinstance(marks, list) else [marks])]


def _verdicts(marks: Iterable[pytest.Mark]) -> Iterator[tuple[str, str]]:
    for mark in marks:
        if mark.name in _WORDS:
            backend, why = mark.args
            yield backend, f"{_WORDS[mark.name]}: {why}"


_WORDS: Final = {"lacks": "refused", "differs": "differs"}


class Matrix:
    """The matrix of one run, which is written over what earlier runs have left in the file.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._collected: dict[str, dict[str, str]] = {}
        self._seen: Rows = {}

    def collected(self, item: pytest.Function) -> None:
        """One test that the run knows of, whether it will run or not."""
        self._collected[behaviour_of(item)] = dict(_verdicts(item.iter_markers()))

    def record(self, behaviour: str, backend: str, report: pytest.TestReport) -> None:
        """How one phase of a test has ended."""
        row = self._seen.setdefault(behaviour, {})
        if not report.passed:
            row[backend] = FAILED  # a skipped test has shown nothing either
        elif report.when == "call":
            row.setdefault(backend, self._collected[behaviour].get(backend, "passed"))

    def write(self) -> None:
        """Merge into the file: what this run did not do stays, what is gone is dropped."""
        rows: Rows = json.loads(self._path.read_text()) if self._path.exists() else {}
        subjects = {_subject(behaviour) for behaviour in self._collected}
        kept = {
            behaviour: row
            for behaviour, row in rows.items()
            if behaviour in self._collected or _subject(behaviour) not in subjects
        }
        for behaviour, marks in self._collected.items():
            row = kept.setdefault(behaviour, {})
            row |= {backend: why for backend, why in marks.items() if why.startswith("differs")}
            row |= self._seen.get(behaviour, {})
        text = json.dumps(kept, indent=2, sort_keys=True)
        self._path.write_text(text + "\n")


def _subject(behaviour: str) -> str:
    return behaviour.partition(":")[0]
