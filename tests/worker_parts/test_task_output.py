"""What a worker prints, on its way to the driver: both ends of real pipes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskloom._pool.worker_output import LAST_LINES, MAX_LINE_BYTES, OutputPipe
from taskloom._worker.output import Output

PIPE_BYTES = 64 * 1024


class Stream:
    """One stream of a worker, from ``print`` to the driver's lines."""

    def __init__(self, output: Output | None = None) -> None:
        reading, self.fd = os.pipe()
        self.output = output or Output()
        self.text = self.output._open(self.fd)
        self.lines: list[tuple[str, str]] = []
        self.pipe = OutputPipe(reading, lambda speaker, line: self.lines.append((speaker, line)))

    def print(self, *what: object, end: str = "\n") -> None:
        print(*what, end=end, file=self.text)

    def says(self, task: str, *what: object, end: str = "\n") -> None:
        """A task runs and prints; its output is flushed before its result goes out."""
        self.output.task = task
        self.print(*what, end=end)
        self.text.flush()

    def arrived(self) -> list[tuple[str, str]]:
        """The lines that came since this was asked last, as the driver has them at a result."""
        self.pipe.drain()
        self.pipe.flush()
        lines, self.lines[:] = self.lines[:], []
        return lines

    def close(self) -> None:
        self.text.flush()
        self.text.detach().detach().close()  # type: ignore[attr-defined]
        os.close(self.fd)
        self.pipe.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


def test_a_line_arrives_with_the_name_of_the_task_that_printed_it(stream: Stream) -> None:
    stream.says("load", "hello")
    assert stream.arrived() == [("load", "hello")]


@pytest.mark.parametrize(
    "write",
    [
        lambda text: print("word", end="", file=text),
        lambda text: text.write("word"),
        lambda text: text.writelines(["wo", "rd"]),
        lambda text: text.buffer.write(b"word"),
        lambda text: text.buffer.writelines([b"wo", b"rd"]),
        lambda text: text.buffer.raw.write(b"word"),
    ],
    ids=["print", "write", "writelines", "buffer", "buffer lines", "raw"],
)
def test_a_word_without_a_newline_is_flushed_however_it_was_written(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any], object]
) -> None:
    monkeypatch.setattr(stream.output, "_out", stream.text)
    monkeypatch.setattr(sys, "stdout", stream.text)
    monkeypatch.setattr(sys, "stderr", stream.output._err)
    stream.output.flush()
    for _ in range(2):  # a flush that found something to do does not end the watch
        stream.output.task = "spell"
        write(stream.text)
        stream.output.flush()
        assert stream.arrived() == [("spell", "word")]


def test_a_stream_that_takes_the_place_of_ours_is_flushed_too(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    class Own:
        def flush(self) -> None:
            flushed.append("own")

    monkeypatch.setattr(sys, "stdout", Own())
    stream.output.flush()
    assert flushed == ["own"]


def test_the_next_task_has_its_own_name(stream: Stream) -> None:
    stream.says("load", "one")
    stream.says("load", "two")
    stream.says("save", "three")
    stream.says("load", "four")
    assert stream.arrived() == [
        ("load", "one"), ("load", "two"), ("save", "three"), ("load", "four")
    ]  # fmt: skip


def test_a_name_is_sent_only_when_it_changes(stream: Stream) -> None:
    for _ in range(3):
        stream.says("load", "x")
    data = os.read(stream.pipe.fd, 1000)
    assert data.count(b"load") == 1


def test_output_without_a_task_has_no_name(stream: Stream) -> None:
    stream.says("", "setting up")
    assert stream.arrived() == [("", "setting up")]


def test_a_line_without_an_end_is_a_line_when_its_task_has_ended(stream: Stream) -> None:
    stream.says("load", "no newline", end="")
    assert stream.arrived() == [("load", "no newline")]
    stream.says("save", "next")
    assert stream.arrived() == [("save", "next")]


def test_a_line_without_an_end_is_not_mixed_with_that_of_the_next_task(stream: Stream) -> None:
    stream.says("load", "no newline", end="")
    stream.says("save", "next")
    assert stream.arrived() == [("load", "no newline"), ("save", "next")]


def test_a_line_may_come_in_pieces(stream: Stream) -> None:
    stream.output.task = "load"
    for piece in ("a", "b", "c"):
        stream.print(piece, end="")
        stream.text.flush()
        stream.pipe.drain()
    stream.print()
    assert stream.arrived() == [("load", "abc")]


def test_empty_lines_are_lines(stream: Stream) -> None:
    stream.says("load", "\n\na\n")
    assert [line for _, line in stream.arrived()] == ["", "", "a", ""]


def test_a_carriage_return_at_the_end_is_dropped(stream: Stream) -> None:
    stream.says("load", "dos\r")
    stream.says("load", "50%\r100%")
    assert [line for _, line in stream.arrived()] == ["dos", "50%\r100%"]


def test_what_others_write_belongs_to_the_task_that_spoke_last(stream: Stream) -> None:
    stream.says("load", "mine")
    os.write(stream.fd, b"from C\n")
    assert stream.arrived() == [("load", "mine"), ("load", "from C")]


def test_what_others_write_before_any_task_has_no_name(stream: Stream) -> None:
    os.write(stream.fd, b"from C\n")
    assert stream.arrived() == [("", "from C")]


def test_bytes_that_are_no_text_are_replaced(stream: Stream) -> None:
    os.write(stream.fd, b"\xff\xfe ok\n")
    assert stream.arrived() == [("", "\ufffd\ufffd ok")]


def test_text_that_cannot_be_written_is_replaced(stream: Stream) -> None:
    stream.says("load", "\ud800 ok")
    assert stream.arrived() == [("load", "? ok")]


@pytest.mark.parametrize("name", ["größe", "任務", "a b", "x:y[0]", "\ud800", "mo\x1ere"])
def test_a_task_may_have_any_name(stream: Stream, name: str) -> None:
    stream.says(name, "hello")
    ((speaker, line),) = stream.arrived()
    assert line == "hello"
    assert speaker == name.replace("\ud800", "?")


def test_a_name_of_two_lines_leaves_no_line_of_its_own(stream: Stream) -> None:
    stream.says("two\nlines", "hello")
    stream.says("next", "hello")
    assert [line for _, line in stream.arrived()] == ["hello", "hello"]


def test_stdout_and_stderr_name_their_speakers_independently() -> None:
    output = Output()
    out, err = Stream(output), Stream(output)
    output.task = "load"
    out.print("to out")
    output.task = "save"
    err.print("to err")
    out.print("again")
    assert out.arrived() == [("load", "to out"), ("save", "again")]
    assert err.arrived() == [("save", "to err")]
    out.close()
    err.close()


def test_in_a_loop_each_coroutine_speaks_for_itself(stream: Stream) -> None:
    names = iter(["a", "b", "a"])
    stream.output.speaker = lambda: next(names)
    for _ in range(3):
        stream.print("x")
    assert stream.arrived() == [("a", "x"), ("b", "x"), ("a", "x")]


# -- large -------------------------------------------------------------------------------------


def read_all(stream: Stream, write: object) -> list[tuple[str, str]]:
    """The lines of a writer that prints more than the pipe holds."""
    done = threading.Event()

    def work() -> None:
        write()  # type: ignore[operator]
        stream.text.flush()
        done.set()

    writer = threading.Thread(target=work)
    writer.start()
    while not done.is_set():
        stream.pipe.read()
    writer.join()
    return stream.arrived()


@pytest.mark.parametrize("size", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 300_000])
def test_a_long_line_arrives_in_pieces_and_nothing_is_lost(stream: Stream, size: int) -> None:
    stream.output.task = "load"
    lines = read_all(stream, lambda: stream.print("x" * size))
    assert {speaker for speaker, _ in lines} == {"load"}
    assert "".join(line for _, line in lines) == "x" * size
    assert all(len(line) <= MAX_LINE_BYTES for _, line in lines)


def test_a_long_line_without_an_end_is_not_kept_in_memory(stream: Stream) -> None:
    read_all(stream, lambda: stream.print("x" * 1_000_000, end=""))
    assert len(stream.pipe.rest) <= MAX_LINE_BYTES


def test_the_next_task_is_named_after_a_long_line_without_an_end(stream: Stream) -> None:
    def write() -> None:
        stream.says("load", "x" * (MAX_LINE_BYTES + 5000), end="")
        stream.says("save", "hello")

    lines = read_all(stream, write)
    assert lines[-1] == ("save", "hello")
    assert "".join(line for speaker, line in lines if speaker == "load") == "x" * (
        MAX_LINE_BYTES + 5000
    )


@pytest.mark.parametrize("before_mark", [MAX_LINE_BYTES - n for n in (16, 10, 1, 0, -1)])
def test_a_name_is_found_wherever_a_long_line_is_cut(before_mark: int) -> None:
    reading, writing = os.pipe()
    lines: list[tuple[str, str]] = []
    pipe = OutputPipe(reading, lambda speaker, line: lines.append((speaker, line)))
    # Read in two: the first read ends in the middle of the name.
    pipe._take(b"x" * before_mark + b"\x1etaskloom long na")
    pipe._take(b"me\x1e\nhello\n")
    pipe.close()
    os.close(writing)
    assert lines[-1] == ("long name", "hello")
    assert "".join(line for speaker, line in lines if not speaker) == "x" * before_mark


def test_characters_are_not_cut_where_a_long_line_is(stream: Stream) -> None:
    text = "x" + "é" * MAX_LINE_BYTES
    lines = read_all(stream, lambda: stream.print(text))
    assert "".join(line for _, line in lines) == text


def test_ten_thousand_lines_arrive_in_order(stream: Stream) -> None:
    def write() -> None:
        for number in range(10_000):
            stream.output.task = f"task {number % 7}"
            stream.print(number)

    lines = read_all(stream, write)
    assert lines == [(f"task {number % 7}", str(number)) for number in range(10_000)]


def test_the_last_lines_are_remembered(stream: Stream) -> None:
    for number in range(LAST_LINES + 5):
        stream.says("load", number)
    stream.arrived()
    assert list(stream.pipe.last_lines) == [str(number) for number in range(5, LAST_LINES + 5)]


# -- the end -----------------------------------------------------------------------------------


def test_what_is_left_is_a_line_when_the_pipe_is_closed(stream: Stream) -> None:
    os.write(stream.fd, b"last words")
    stream.pipe.drain()
    stream.pipe.close()
    assert stream.lines == [("", "last words")]


def test_the_reader_notices_when_nobody_can_write_any_more() -> None:
    reading, writing = os.pipe()
    lines: list[str] = []
    pipe = OutputPipe(reading, lambda _speaker, line: lines.append(line))
    assert pipe.read()
    os.write(writing, b"bye\n")
    os.close(writing)
    assert pipe.read()
    assert not pipe.read()
    pipe.close()
    pipe.drain()
    assert lines == ["bye"]


def test_draining_takes_what_is_there_and_does_not_wait_for_more(stream: Stream) -> None:
    stream.pipe.drain()
    os.write(stream.fd, b"x" * 1000 + b"\n")
    stream.pipe.drain()
    assert len(stream.lines) == 1


def test_the_streams_of_a_process_are_flushed_and_a_closed_one_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    class Closed:
        def flush(self) -> None:
            raise ValueError("closed")

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", stream.text)
    stream.print("not yet", end="")
    stream.output.flush()
    assert stream.arrived() == [("", "not yet")]
    monkeypatch.setattr(sys, "stderr", None)
    stream.output.flush()


# -- anything ----------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "long name", "ü"])
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(names, st.lists(texts, max_size=3), st.booleans()), max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_every_line_arrives_once_with_its_speaker_however_it_is_cut(
    prints: list[tuple[str, list[str], bool]], sizes: list[int]
) -> None:
    stream = Stream()
    expected: list[tuple[str, str]] = []
    spoken = ""  # an unfinished line
    speaker = None
    for name, lines, ends in prints:
        text = "\n".join(lines) + ("\n" if ends else "")
        if not text:
            continue
        if speaker != name and spoken:
            expected.append((speaker or "", spoken))
            spoken = ""
        speaker = name
        *whole, spoken = (spoken + text).split("\n")
        expected += [(name, line) for line in whole]
        stream.says(name, text, end="")
    if spoken:
        expected.append((speaker or "", spoken))
    stream.pipe.drain = lambda: None  # type: ignore[method-assign]
    turn = 0
    os.set_blocking(stream.pipe.fd, False)
    while True:
        try:
            stream.pipe._take(os.read(stream.pipe.fd, sizes[turn % len(sizes)]))
        except BlockingIOError:
            break
        turn += 1
    assert stream.arrived() == expected
    stream.close()
