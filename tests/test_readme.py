"""The README does what it says: its programs run, and its commands exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = ROOT / "README.md"

_FENCE: Final = re.compile(
    r"(?P<before>[^\n]*\n\s*)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```\s*$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN: Final = re.compile(r"<!-- not run: (?P<reason>\S.*) -->\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    not_run: str
    """Why it is not run; empty when it is."""


def read_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    blocks = []
    for match in _FENCE.finditer(text):
        skip = _NOT_RUN.match(match["before"] or "")
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(Block(match["language"], match["text"], line, skip["reason"] if skip else ""))
    return blocks


def read_commands(blocks: list[Block]) -> list[str]:
    """The commands after ``$`` in the console blocks."""
    return [
        line.removeprefix("$").strip()
        for block in blocks
        if block.language == "console"
        for line in block.text.splitlines()
        if line.startswith("$")
    ]


def read_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


BLOCKS: Final = read_blocks(README.read_text()) if README.exists() else []
PYTHON: Final = [block for block in BLOCKS if block.language == "python"]
no_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


@no_readme
@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"line {block.line}") for block in PYTHON]
)
def test_a_program_in_the_readme_runs(block, run_driver):
    if block.not_run:
        pytest.skip(block.not_run)
    done = run_driver(block.text, timeout=60)
    assert done.returncode == 0, f"README.md, line {block.line}:\n{done.stderr}"


@no_readme
def test_the_readme_has_programs_and_runs_most_of_them():
    run = [block for block in PYTHON if not block.not_run]
    assert len(run) > len(PYTHON) / 2


@no_readme
def test_the_make_commands_in_the_readme_exist():
    commands = [command.split() for command in read_commands(BLOCKS)]
    named = {words[1] for words in commands if words[0] == "make" and len(words) > 1}
    assert {"demo", "test"} <= named
    assert named <= read_targets()


def test_blocks_are_found_with_their_language_and_line():
    text = "# t\n\n```python\na = 1\n```\n\ntext\n```console\n$ make demo\nout\n```\n"
    assert read_blocks(text) == [
        Block("python", "a = 1\n", 4, ""),
        Block("console", "$ make demo\nout\n", 9, ""),
    ]
    assert read_commands(read_blocks(text)) == ["make demo"]


def test_a_block_after_a_comment_that_says_why_is_not_run():
    text = "<!-- not run: needs a cluster -->\n\n```python\nx\n```\n\n```python\ny\n```\n"
    assert [block.not_run for block in read_blocks(text)] == ["needs a cluster", ""]
