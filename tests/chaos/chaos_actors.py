"""Actors whose processes are killed and stopped: what must hold, and what may be lost.

The actors of the session live from round to round, so that they are old enough to be hurt again
and again.  A ledger writes what is reported to it to a file, which its deaths leave alone; so the
file says what has really run, how often, and in which order.  Workers import this module.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_workloads import digest, leaf

import taskloom as tl
from taskloom.exceptions import ActorUnavailableError

REPORTERS = 2


def linger(token: str, times: int = 150) -> str:
    """Some work between what was done and the answer: here a call is most often hurt."""
    found = token
    for _ in range(times):
        found = digest(found)
    return found


@tl.remote
class Ledger:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def report(self, token: str) -> None:
        os.write(self._file, f"{token}\n".encode())  # one call of the kernel's: whole or not at all
        linger(token)


@tl.remote
class Reporter:
    def __init__(self, ledger: tl.ActorHandle[Any]) -> None:
        self._ledger = ledger

    def report(self, token: str) -> str:
        tl.get(self._ledger.report.remote(token))
        return linger(token)


@tl.remote
class Summer:
    async def total(self, first: int, width: int) -> int:
        total = 0
        for ref in [leaf.remote(number) for number in range(first, first + width)]:
            total += await ref
        return total


@tl.remote(max_concurrency=4)
class Threads:
    def total(self, first: int, width: int) -> int:
        return sum(tl.get([leaf.remote(number) for number in range(first, first + width)]))


@tl.remote(max_restarts=-1, max_task_retries=-1)
class Errand:
    def __init__(self, factor: int) -> None:
        self._factor = factor

    def times(self, number: int) -> int:
        return self._factor * number


@tl.remote(max_retries=-1)
def run_errand(box: list[tl.ActorHandle[Any]], number: int) -> int:
    result: int = tl.get(box[0].times.remote(number))
    return result


@dataclass(kw_only=True)
class Cast:
    """Who plays in all rounds."""

    path: Path
    reporters: list[Any]
    summer: Any
    threads: Any


_casts: dict[int, Cast] = {}  # by max_task_retries


def cast(retries: int) -> Cast:
    if retries not in _casts:
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": retries}
        path = Path(tempfile.mkdtemp(prefix="taskloom-chaos-")) / "ledger"
        ledger = Ledger.options(**options).remote(str(path))
        _casts[retries] = Cast(
            path=path,
            reporters=[Reporter.options(**options).remote(ledger) for _ in range(REPORTERS)],
            summer=Summer.options(**options).remote(),
            threads=Threads.options(**options).remote(),
        )
    return _casts[retries]


def dismiss() -> None:
    """The actors end, and their files."""
    for one in _casts.values():
        shutil.rmtree(one.path.parent)
    _casts.clear()


def _reported(path: Path, prefix: str) -> list[list[int]]:
    """The numbers in a ledger that belong to a round, of each reporter, as they were written."""
    numbers: list[list[int]] = [[] for _ in range(REPORTERS)]
    for line in path.read_text().splitlines():
        of, _, rest = line.partition("/")
        if of == prefix:
            reporter, _, number = rest.partition("/")
            numbers[int(reporter)].append(int(number))
    return numbers


def _report(retries: int, salt: int, count: int) -> tuple[Cast, str, list[list[tuple[str, Any]]]]:
    """Have numbers reported: for each reporter the tokens and the refs of its calls."""
    actors, prefix = cast(retries), f"{os.urandom(4).hex()}.{salt}"
    calls: list[list[tuple[str, Any]]] = [[] for _ in range(REPORTERS)]
    for number in range(count):
        for index, reporter in enumerate(actors.reporters):
            token = f"{prefix}/{index}/{number}"
            calls[index].append((token, reporter.report.remote(token)))
    return actors, prefix, calls


def ledger_with_retries(salt: int, count: int = 150) -> int:
    """Each number is in the ledger, and the first reports of each are in order."""
    actors, prefix, calls = _report(-1, salt, count)
    for of in calls:
        assert tl.get([ref for _, ref in of]) == [linger(token) for token, _ in of]
    for numbers in _reported(actors.path, prefix):
        assert list(dict.fromkeys(numbers)) == list(range(count)), "missing, or out of order"
    return 2 * REPORTERS * count


def ledger_without_retries(salt: int, count: int = 400) -> int:
    """No number is in the ledger twice, those that were confirmed are, and all are in order."""
    actors, prefix, calls = _report(0, salt, count)
    confirmed: list[set[int]] = []
    for of in calls:
        told: set[int] = set()
        for number, (token, ref) in enumerate(of):
            try:
                assert tl.get(ref) == linger(token)
                told.add(number)
            except ActorUnavailableError:  # of the reporter, or of the ledger in its call
                pass
        confirmed.append(told)
    for numbers, told in zip(_reported(actors.path, prefix), confirmed, strict=True):
        doubled = [number for number, times in Counter(numbers).items() if times > 1]
        assert not doubled, f"reported twice: {doubled}"
        assert told <= set(numbers), f"confirmed and not there: {told - set(numbers)}"
        assert numbers == sorted(numbers), "out of order"
    return 2 * REPORTERS * count


def sums_in_actors(salt: int, calls: int = 40, width: int = 8) -> int:
    """Coroutines and threads of actors that wait for tasks add up right."""
    actors = cast(-1)
    starts = range(salt, salt + calls * width, width)
    refs = [actors.summer.total.remote(start, width) for start in starts]
    refs += [actors.threads.total.remote(start, width) for start in starts]
    expected = [sum(n * n for n in range(start, start + width)) for start in starts]
    assert tl.get(refs) == 2 * expected
    return len(refs) * (1 + width)


def errands(salt: int, count: int = 4, calls: int = 10) -> int:
    """Actors that live as long as somebody has their handle: here only tasks do."""
    refs: list[Any] = []
    expected: list[int] = []
    for factor in range(salt, salt + count):
        box = [Errand.remote(factor)]
        refs += [run_errand.remote(box, number) for number in range(calls)]
        expected += [factor * number for number in range(calls)]
        del box
    assert tl.get(refs) == expected
    return count * (1 + 2 * calls)


ALL = (ledger_with_retries, ledger_without_retries, sums_in_actors, errands)
