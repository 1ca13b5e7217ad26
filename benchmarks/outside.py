"""Questions whose answer is taken from outside: a user's small program, as the shell sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

from benchmarks.processes import MARK, marked, pss_bytes, voluntary_switches, wait_for_end
from benchmarks.timing import rounds, verify

_PROGRAMS = Path(__file__).parent / "first_result"
_FIRST_RESULT = "49"
_LOOK_EVERY_S = 0.5
_LOOKS = 20
_REST_S = 3.0
_WATCH_S = 5.0


def first_result(contender: str) -> dict[str, float]:
    """Seconds from before ``exec`` to the first result, and to the end of the program."""
    to_result_s, to_end_s = [], []
    for _ in rounds(most=5, budget_s=3.0):
        started = time.perf_counter()
        with _program(contender) as (process, _):
            _expect(process, _FIRST_RESULT)
            to_result_s.append(time.perf_counter() - started)
            process.wait()
            to_end_s.append(time.perf_counter() - started)
            verify("exit code", process.returncode, 0)
    return {"to_result": median(to_result_s) * 1e3, "to_end": median(to_end_s) * 1e3}


def memory(contender: str) -> dict[str, float]:
    """The memory of all processes of a program whose two workers were used and are idle."""
    with _idle_program(contender) as mark:
        sizes = _settled_sizes(mark)
    return {"pss": sum(sizes) / 1e6, "processes": float(len(sizes))}


def idle(contender: str) -> dict[str, float]:
    """How often a second anything wakes up in a program whose workers were used and are idle."""
    with _idle_program(contender) as mark:
        time.sleep(_REST_S)  # what follows upon work, such as a timer that finds nothing, is over
        pids = marked(mark)
        before = voluntary_switches(pids)
        started = time.perf_counter()
        time.sleep(_WATCH_S)
        after = voluntary_switches(marked(mark))
        elapsed_s = time.perf_counter() - started
    woken = sum(count - before.get(thread, 0) for thread, count in after.items())
    return {"rate": woken / elapsed_s, "processes": float(len(pids))}


def _settled_sizes(mark: str) -> list[int]:
    """PSS of each process, when whatever they do in the background has come to rest."""
    sizes: list[int] = []
    for _ in range(_LOOKS):
        time.sleep(_LOOK_EVERY_S)
        before = sizes
        sizes = [size for pid in marked(mark) if (size := pss_bytes(pid))]
        if len(sizes) == len(before) and abs(sum(sizes) - sum(before)) < sum(sizes) / 100:
            break
    return sizes


@contextmanager
def _idle_program(contender: str) -> Iterator[str]:
    """The mark of a program that has nothing to do until the block ends."""
    with _program(contender, "hold") as (process, mark):
        _expect(process, _FIRST_RESULT)
        _expect(process, "idle")
        yield mark
        verify("the program is running", process.poll(), None)
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        process.wait()
        verify("exit code", process.returncode, 0)


@contextmanager
def _program(contender: str, *args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    mark = uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(_PROGRAMS / f"with_{contender}.py"), *args],
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield process, mark
    finally:
        # The next start must not share its cores with the end of this one.
        wait_for_end(mark, timeout_s=10.0)


def _expect(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:  # a program may print lines of its own before
        if text.strip() == line:
            return
    raise AssertionError(f"the program ended without printing {line!r}")
