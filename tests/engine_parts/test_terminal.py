"""What tasks print cannot give orders to a terminal (FAULTS.md D row 28)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskloom
from taskloom._engine.terminal import harmless, is_terminal

ESC = "\x1b"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain text, ümlaut, 日本", "plain text, ümlaut, 日本"),
        ("a\tb \r50% \r60% \b\b", "a\tb \r50% \r60% \b\b"),
        (f"{ESC}]52;c;aGk=\x07", r"\x1b]52;c;aGk=\x07"),
        (f"{ESC}[2J{ESC}[H{ESC}c", r"\x1b[2J\x1b[H\x1bc"),
        (f"{ESC}[6n{ESC}[?1049h", r"\x1b[6n\x1b[?1049h"),
        ("\x9b2J \x9d0;title\x9c \x7f\x00\x05", r"\x9b2J \x9d0;title\x9c \x7f\x00\x05"),
        (f"{ESC}[31mred{ESC}[0m", f"{ESC}[31mred{ESC}[0m"),
        (f"{ESC}[1;38;2;1;2;3mbold{ESC}[m", f"{ESC}[1;38;2;1;2;3mbold{ESC}[m"),
        (f"{ESC}[31mred", f"{ESC}[31mred{ESC}[0m"),
        (f"{ESC}[0m{ESC}[7mturned", f"{ESC}[0m{ESC}[7mturned{ESC}[0m"),
        (f"{ESC}[3;1", r"\x1b[3;1"),
        (f"{ESC}[31{ESC}[2Km", r"\x1b[31\x1b[2Km"),
    ],
)
def test_orders_are_shown_and_colours_are_kept(printed: str, shown: str) -> None:
    assert harmless(printed) == shown


@given(st.text(st.sampled_from("\x1b[]m;0134HJc\x07\x9b\x9d\x18x\r\n\t")))
def test_nothing_but_colours_is_left_of_any_text(text: str) -> None:
    left = harmless(text)
    for part in left.split(ESC)[1:]:
        code, end, _ = part.partition("m")
        assert end
        assert code[0] == "["
        assert set(code[1:]) <= set("0123456789;:")
    assert not set(left) & set("\x07\x9b\x9d\x18")


def test_a_stream_that_cannot_be_asked_is_no_terminal() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, object(), closed, io.StringIO()):
        assert not is_terminal(stream)


PROGRAM = r"""
import os, sys
import taskloom as ray

@ray.remote
def says():
    print("\x1b]52;c;aGk=\x07 \x1b[31mred")
    os.write(2, b"\x1b[2J to stderr\n")

ray.init(num_cpus=1)
ray.get(says.remote())
ray.shutdown()
"""


def test_a_terminal_is_not_obedient_to_tasks_and_a_file_gets_all_bytes_SECURITY_28(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    source = str(Path(taskloom.__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": source, "TASKLOOM_COLOR_PREFIX": "0"}
    ours, theirs = os.openpty()
    with (tmp_path / "stderr").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(program)], stdout=theirs, stderr=file, env=environ
        )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 1000):
            seen += chunk
    except OSError:
        pass  # EIO: the program has ended
    finally:
        os.close(ours)
    assert process.wait(30) == 0
    assert seen.rstrip().endswith(b"\\x1b]52;c;aGk=\\x07 \x1b[31mred\x1b[0m"), seen
    assert (tmp_path / "stderr").read_bytes().rstrip().endswith(b"\x1b[2J to stderr")
