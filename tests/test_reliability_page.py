"""The page on reliability names tests that exist, and one at least for each promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:tests/)?[a-z]\w*/\w+\.py)(?:::(\w+))?[^`]*`", PAGE)))


@pytest.mark.parametrize("promise", [f"P{n}" for n in range(1, 14)])
def test_each_promise_has_a_test(promise: str) -> None:
    (row,) = re.findall(rf"^\| \*\*{promise} .*$", PAGE, re.MULTILINE)
    assert re.search(r"`\w+/test_\w+\.py", row), row


def test_what_is_not_promised_is_said() -> None:
    assert re.search(r"^## P14: not promised\n\n- ", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("file", "test"), NAMED, ids=["::".join(pair) for pair in NAMED])
def test_the_tests_that_it_names_exist(file: str, test: str) -> None:
    path = TESTS / file.removeprefix("tests/")
    assert path.exists()
    if test:
        assert re.search(rf"def {test}\b", path.read_text(encoding="utf-8"))
