"""The programs of ``docs/structured-concurrency.md`` run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from tests.test_readme import read_blocks

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "structured-concurrency.md"
PROGRAMS: Final = [block for block in read_blocks(PAGE.read_text()) if block.language == "python"]


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"line {block.line}") for block in PROGRAMS]
)
def test_a_program_of_the_page_runs(block, run_driver):
    done = run_driver(block.text, timeout=60)
    assert done.returncode == 0, f"{PAGE.name}, line {block.line}:\n{done.stderr}"


def test_the_page_has_programs():
    assert len(PROGRAMS) >= 6
