"""Very many tasks, very many refs, and nothing at all: what an engine holds and does over time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import outside, programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.processes import anonymous_bytes, children_pss_bytes, pss_bytes
from benchmarks.question import Answer, Metric, Question
from benchmarks.sizes import Sizes
from benchmarks.timing import verify

_PARTS = 10
_SLICE = 10_000
_LOOK_EVERY_S = 0.1
_MOST_LOOKS = 600


def backlog(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """All tasks are queued while the workers are held; the driver is weighed; then all run."""
    submit = contender.submitter(programs.inc)
    with held_workers(contender, sizes.workers) as gate:
        before = anonymous_bytes(os.getpid())
        started = time.perf_counter()
        handles = [submit(n) for n in range(sizes.backlog)]
        submitted = time.perf_counter()
        _wait_for_rest()
        weighed = anonymous_bytes(os.getpid())
        queued = time.perf_counter()
        os.write(gate, b"x" * sizes.workers)
        values = contender.fetch(handles)
        ended = time.perf_counter()
    verify("inc", values, list(range(1, sizes.backlog + 1)))
    return {
        "seconds": ended - started,
        "bytes": (weighed - before) / sizes.backlog,
        "submit": submitted - started,
        "queue": queued - submitted,
        "run": ended - queued,
    }


@contextmanager
def held_workers(contender: Contender, workers: int) -> Iterator[int]:
    """The writing end of a gate; a worker goes on when a byte for it has been written."""
    hold = contender.submitter(programs.wait_at_gate)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "gate")
        os.mkfifo(path)
        gate = os.open(path, os.O_RDWR)  # open at both ends: nobody waits for anybody in open()
        try:
            held = [hold(str(path)) for _ in range(workers)]
            yield gate
            verify("held tasks", contender.fetch(held), [None] * workers)
        finally:
            os.close(gate)


def _wait_for_rest() -> None:
    """Return when this process has stopped working: its engine has taken in what it was given."""
    before = time.process_time()
    for _ in range(_MOST_LOOKS):
        time.sleep(_LOOK_EVERY_S)
        now = time.process_time()
        if now - before < _LOOK_EVERY_S / 10:
            return
        before = now
    raise AssertionError("the driver does not come to rest while its workers are held")


def live_refs(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Refs of small results are kept; what each of them adds to the driver."""
    submit = contender.submitter(programs.inc)
    slice_size = max(1, sizes.live_refs // 100)  # few at a time: what is pending leaves no holes
    verify("inc", contender.fetch([submit(n) for n in range(slice_size)])[-1], slice_size)
    kept = []
    before = anonymous_bytes(os.getpid())
    for start in range(0, sizes.live_refs, slice_size):
        handles = [submit(n) for n in range(start, start + slice_size)]
        values = contender.fetch(handles)
        verify("inc", values, list(range(start + 1, start + slice_size + 1)))
        kept.append(handles)
    grown = anonymous_bytes(os.getpid()) - before
    verify("the last", contender.fetch_one(kept[-1][-1]), sizes.live_refs)
    return {"bytes": grown / (len(kept) * slice_size)}


def soak(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Tasks in a loop, ten thousand at a time; memory and rate after each tenth of them all."""
    submit = contender.submitter(programs.inc)
    part_size = sizes.soak // _PARTS
    slice_size = min(_SLICE, part_size)
    rates, sizes_bytes = [], []
    for _ in range(_PARTS):
        started = time.perf_counter()
        for start in range(0, part_size, slice_size):
            values = contender.fetch([submit(n) for n in range(start, start + slice_size)])
            verify("inc", values, list(range(start + 1, start + slice_size + 1)))
        rates.append(part_size / (time.perf_counter() - started))
        sizes_bytes.append(pss_bytes(os.getpid()) + children_pss_bytes(os.getpid()))
    answer = {
        "growth": sizes_bytes[-1] / sizes_bytes[0],
        "pace": rates[-1] / rates[1],
        "rate": sizes.soak / sum(part_size / rate for rate in rates),
    }
    for part, (rate, size) in enumerate(zip(rates, sizes_bytes, strict=True), start=1):
        answer[f"rate_{part}"] = rate
        answer[f"memory_{part}"] = size / 1e6
    return answer


def _of_each_part(name: str, title: str, unit: str) -> list[Metric]:
    return [
        Metric(name=f"{name}_{part}", title=f"{title} {part}", unit=unit, is_main=False)
        for part in range(1, _PARTS + 1)
    ]


QUESTIONS = (
    Question(
        name="idle",
        title="wake-ups of all processes, 2 workers used and idle",
        metrics=(
            Metric(name="rate", title="wake-ups/s", unit="1/s"),
            Metric(name="processes", title="processes", unit="", is_main=False),
        ),
        outside=outside.idle,
        needs_warm_cache=True,
    ),
    Question(
        name="live_refs",
        title="memory of the driver for the ref of a small result",
        metrics=(Metric(name="bytes", title="a ref", unit="B"),),
        inside=live_refs,
        only=("taskloom", "ray", "floor"),
    ),
    Question(
        name="backlog",
        title="big: tasks queued behind held workers, then run",
        metrics=(
            Metric(name="seconds", title="seconds", unit="s"),
            Metric(name="bytes", title="a pending task", unit="B"),
            Metric(name="submit", title="to submit", unit="s", is_main=False),
            Metric(name="queue", title="to come to rest", unit="s", is_main=False),
            Metric(name="run", title="to run", unit="s", is_main=False),
        ),
        inside=backlog,
        only=("taskloom", "floor"),
        is_big=True,
        time_limit_s=600.0,
    ),
    Question(
        name="soak",
        title="soak: tasks in a loop",
        metrics=(
            Metric(name="pace", title="rate, last / second part", unit="x", better="higher"),
            Metric(name="growth", title="memory, last / first part", unit="x"),
            Metric(name="rate", title="tasks/s", unit="1/s", better="higher"),
            *_of_each_part("rate", "tasks/s, part", "1/s"),
            *_of_each_part("memory", "after part", "MB"),
        ),
        inside=soak,
        only=("taskloom",),
        is_soak=True,
        time_limit_s=3600.0,
        most_repeats=1,
    ),
)
