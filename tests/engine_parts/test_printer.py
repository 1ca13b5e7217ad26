"""Lines of workers on their way to the driver's streams."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from taskloom._engine import printer as printer_module
from taskloom._engine.printer import Printer


class Held:
    """A stream that holds up whoever writes to it."""

    def __init__(self) -> None:
        self.text = ""
        self.written_to = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> None:
        self.written_to.set()
        assert self.go_on.wait(30)
        self.text += text

    def flush(self) -> None:
        pass


@pytest.fixture
def printer() -> Iterator[Printer]:
    printer = Printer()
    yield printer
    printer.close()


class Captured:
    """All that came to one of pytest's streams so far."""

    def __init__(self, which: int, capsys: pytest.CaptureFixture[str]) -> None:
        self._which = which
        self._capsys = capsys

    def getvalue(self) -> str:
        for index, text in enumerate(self._capsys.readouterr()):
            _seen[self._capsys][index] += text
        return _seen[self._capsys][self._which]


_seen: defaultdict[object, list[str]] = defaultdict(lambda: ["", ""])


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(0, capsys)


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(1, capsys)


def test_lines_go_to_the_stream_they_came_from(
    printer: Printer, out: Captured, err: Captured
) -> None:
    printer.push(1, "to out")
    printer.push(2, "to err")
    printer.flush()
    assert (out.getvalue(), err.getvalue()) == ("to out\n", "to err\n")


def test_on_return_of_a_flush_all_that_came_before_is_written(
    printer: Printer, out: Captured
) -> None:
    for number in range(1000):
        printer.push(1, str(number))
    printer.flush()
    assert out.getvalue().split() == [str(number) for number in range(1000)]
    assert not printer.backlog


def test_lines_are_written_without_being_asked_for(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Held()
    monkeypatch.setattr(sys, "stdout", stream)
    stream.go_on.set()
    printer.push(1, "line")
    assert stream.written_to.wait(30)


def test_who_pushes_is_never_held_up_by_a_slow_stream(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Held()
    monkeypatch.setattr(sys, "stdout", stream)
    printer.push(1, "first")
    assert stream.written_to.wait(30)
    for _ in range(1000):
        printer.push(1, "more")
    assert stream.text == ""
    stream.go_on.set()
    printer.flush()
    assert stream.text == "first\n" + "more\n" * 1000


def test_a_line_that_is_being_written_counts_as_not_written(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has taken it from the backlog; ``get`` must wait for it all the same (LOG-3)."""
    stream = Held()
    monkeypatch.setattr(sys, "stdout", stream)
    printer.push(1, "a line")
    assert stream.written_to.wait(30)
    assert not printer.backlog
    assert printer.writing
    stream.go_on.set()
    printer.flush()
    assert stream.text == "a line\n"
    assert not printer.writing


def test_a_costly_text_is_made_by_who_writes_it(printer: Printer, out: Captured) -> None:
    makers: list[threading.Thread] = []

    def text() -> str:
        makers.append(threading.current_thread())
        return "costly"

    with printer._lock:  # nobody writes yet
        printer.push(1, text)
        assert not makers
    printer.flush()
    assert out.getvalue() == "costly\n"
    assert len(makers) == 1


def test_a_text_that_cannot_be_made_does_not_hold_up_the_others(
    printer: Printer, out: Captured, err: Captured
) -> None:
    def bad() -> str:
        raise ZeroDivisionError("no text")

    with printer._lock:
        printer.push(1, "before")
        printer.push(2, bad)
        printer.push(1, "after")
    printer.flush()
    assert out.getvalue() == "before\nafter\n"
    printer.push(1, "later")
    printer.flush()
    assert out.getvalue().endswith("later\n")


@pytest.mark.parametrize("failure", [OSError("gone"), ValueError("closed"), AttributeError("x")])
def test_a_stream_that_is_gone_is_forgiven(
    printer: Printer, err: Captured, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    class Gone:
        def write(self, *_text: str) -> None:
            raise failure

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    printer.push(1, "lost")
    printer.push(2, "kept")
    printer.flush()
    assert err.getvalue() == "kept\n"


def test_a_program_without_streams_is_forgiven(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    printer.push(1, "lost")
    printer.flush()


def test_what_a_stream_cannot_encode_is_replaced(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    printer.push(1, "größer")
    printer.flush()
    assert raw.getvalue() == b"gr??er\n"


def test_too_many_lines_are_dropped_and_counted(
    printer: Printer, out: Captured, err: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printer_module, "MAX_BACKLOG", 10)
    with printer._lock:
        for number in range(15):
            printer.push(1, str(number))
    printer.flush()
    assert out.getvalue().split() == [str(number) for number in range(10)]
    assert err.getvalue() == "(taskloom) 5 lines of workers were dropped\n"
    printer.push(1, "again")
    printer.flush()
    assert err.getvalue().count("dropped") == 1


def test_many_may_flush_at_once_and_lines_stay_whole(printer: Printer, out: Captured) -> None:
    threads = [
        threading.Thread(target=lambda: [printer.flush() for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for number in range(2000):
        printer.push(1, f"line {number}")
    for thread in threads:
        thread.join()
    printer.flush()
    assert out.getvalue().splitlines() == [f"line {number}" for number in range(2000)]


def test_closing_writes_what_is_left_and_ends_the_thread(out: Captured) -> None:
    printer = Printer()
    printer.push(1, "last")
    thread = printer._thread
    assert thread is not None
    printer.close()
    assert out.getvalue() == "last\n"
    assert not thread.is_alive()


def test_a_printer_that_was_not_used_has_no_thread() -> None:
    printer = Printer()
    assert printer._thread is None
    printer.close()
    printer.close()


def test_a_stream_that_asks_for_a_flush_itself_does_not_hang(
    run_driver: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    # In write() the program's own stdout may do anything, get() of some ref included; so may a
    # signal handler that strikes while the main thread writes.
    done = run_driver(
        """
import sys
from taskloom._engine.printer import Printer

class Curious:
    def write(self, text):
        sys.__stdout__.write(text)
        printer.flush()
    def flush(self):
        sys.__stdout__.flush()

printer = Printer()
sys.stdout = Curious()
printer.backlog.extend([(1, "one"), (1, "two")])
printer.flush()
""",
        timeout=20,
    )
    assert sorted(done.stdout.split()) == ["one", "two"]
