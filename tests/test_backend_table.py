"""docs/backends.json is about the suite as it is, and the table in docs/backends.md about it."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import pytest
from tests.conformance.matrix import behaviours_in

ROOT: Final = Path(__file__).resolve().parent.parent
ROWS: Final = json.loads((ROOT / "docs" / "backends.json").read_text(encoding="utf-8"))
AGAIN: Final = 'make test-backends ARGS="--matrix docs/backends.json", then make backend-table'


@pytest.fixture(scope="module")
def behaviours() -> dict[str, dict[str, str]]:
    """What the tests of the suite say of themselves."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "tests" / "conformance").glob("test_*_everywhere.py")):
        found.update(behaviours_in(import_module(f"tests.conformance.{path.stem}")))
    return found


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield import_module("backend_table")
    sys.modules.pop("backend_table")


def test_the_results_name_exactly_the_behaviours_of_the_suite(behaviours):
    assert set(ROWS) == set(behaviours), AGAIN


def test_each_behaviour_has_a_verdict_on_each_backend_and_none_has_failed():
    backends = {name for row in ROWS.values() for name in row}
    assert {"local", "local_mode", "ray"} <= backends
    for behaviour, row in ROWS.items():
        assert set(row) == backends, behaviour
        assert "failed" not in row.values(), behaviour


def test_reasons_in_the_results_are_those_of_the_marks(behaviours):
    for behaviour, row in ROWS.items():
        said = {name: verdict for name, verdict in row.items() if verdict != "passed"}
        marked = {name: why for name, why in behaviours[behaviour].items() if name in row}
        assert said == marked, f"{behaviour}: {AGAIN}"


def test_the_local_engine_does_all_of_it():
    assert {row["local"] for row in ROWS.values()} == {"passed"}


def test_the_table_is_made_of_the_results(tool):
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page == tool.with_table(page, tool.table(ROWS)), "make backend-table"


def test_the_table_counts_what_holds_and_tells_what_does_not(tool):
    text = tool.table(
        {
            "tasks: a": {"local": "passed", "ray": "passed"},
            "tasks: b": {"local": "passed", "ray": "refused: Ray has none"},
            "actors: c": {"local": "passed", "ray": "differs: it waits"},
        }
    )
    assert "| tasks | 2 of 2 | 1 of 2 |" in text
    assert "| all | 3 of 3 | 1 of 3 |" in text
    assert "| refused: Ray has none | tasks: b |" in text
    assert "| it waits | actors: c |" in text
    assert "On `local`" not in text


def test_a_page_without_the_marks_is_an_error(tool):
    with pytest.raises(ValueError, match="begin"):
        tool.with_table("no marks", "text")
