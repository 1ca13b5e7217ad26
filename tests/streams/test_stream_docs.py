"""The programs of ``docs/streams.md`` run, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.test_readme import read_blocks

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "streams.md"


def test_the_programs_of_the_page_print_what_it_says(run_driver):
    programs = [block.text for block in read_blocks(PAGE.read_text()) if block.language == "python"]
    done = run_driver("\n".join(programs), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *["0", "1", "4", "9", "16"], "[0,", "1,", "2]", "good", "RayTaskError(ValueError)", "45"
    ]  # fmt: skip
    assert len(programs) == 4
