"""A process of its own that watches a driver and, when told to, hurts its workers.

It is told through its stdin, a line at a time: ``hurt MEAN_S`` begins, with so many seconds
between two misfortunes on average, ``spare`` ends that, and the end of the stream ends the monkey.
After each ``mark`` it writes a line of JSON: what it has done since the last one, and the largest
sizes in memory that it has seen.  It knows processes only by their parents: the driver's child is
the zygote, the zygote's children are the workers.

Usage: chaos_monkey.py PID SEED
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from random import Random

SAMPLE_S = 0.1
KINDS = (
    (signal.SIGKILL, 5),
    (signal.SIGSEGV, 2),
    (signal.SIGSTOP, 3),
)
YOUNG_S = 1.0
YOUNG_ONES = 0.1
"""How often one that may not have started yet is hurt.  When no worker can be started any more
the session gives up, and rightly so; here it is to be hurt, not killed."""


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def age_s(pid: int) -> float:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
        began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    return 0.0


def resident_mib(pid: int) -> float:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


class Monkey:
    def __init__(self, driver: int, seed: int) -> None:
        self._driver = driver
        self._rng = Random(seed)
        self._mean_s = 1.0
        self._hurts = False
        self._next_s = 0.0
        self._continue: list[tuple[float, int]] = []  # who was stopped, until when
        self._done: Counter[str] = Counter()
        self._peaks = {"driver": 0.0, "worker": 0.0, "all": 0.0, "workers": 0.0}

    def run(self) -> None:
        unread = b""
        while True:
            now = time.monotonic()
            due = [until for until, _ in self._continue]
            if self._hurts:
                due.append(self._next_s)
            wait_s = max(0.0, min([now + SAMPLE_S, *due]) - now)
            if select.select([0], [], [], wait_s)[0]:
                read = os.read(0, 4096)
                if not read:
                    break
                *lines, unread = (unread + read).split(b"\n")
                for line in lines:
                    self._obey(line.decode())
            self._look()
            self._let_go(time.monotonic())
            if self._hurts and time.monotonic() >= self._next_s:
                self._hurt_one()
                self._plan_next()
        self._let_go(float("inf"))

    def _obey(self, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "hurt":
            self._hurts = True
            self._mean_s = float(number)
            self._plan_next()
        elif word == "spare":
            self._hurts = False
            self._let_go(float("inf"))
        else:
            report = {"signals": dict(self._done), "peak_mib": self._peaks}
            print(json.dumps(report), flush=True)
            self._done = Counter()
            self._peaks = dict.fromkeys(self._peaks, 0.0)

    def _plan_next(self) -> None:
        self._next_s = time.monotonic() + self._rng.expovariate(1 / self._mean_s)

    def _workers(self) -> list[int]:
        zygotes = [pid for pid in children(self._driver) if pid != os.getpid()]
        return [worker for zygote in zygotes for worker in children(zygote)]

    def _hurt_one(self) -> None:
        workers = sorted(self._workers())
        if self._rng.random() > YOUNG_ONES:
            workers = [worker for worker in workers if age_s(worker) > YOUNG_S]
        if not workers:
            return
        worker = self._rng.choice(workers)
        (number,) = self._rng.choices(*zip(*KINDS, strict=True))
        try:
            os.kill(worker, number)
        except ProcessLookupError:
            return
        self._done[number.name] += 1
        if number == signal.SIGSTOP:
            until = time.monotonic() + self._rng.expovariate(1 / self._mean_s)
            self._continue.append((until, worker))

    def _let_go(self, now: float) -> None:
        for until, worker in self._continue:
            if until <= now:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGCONT)
        self._continue = [entry for entry in self._continue if entry[0] > now]

    def _look(self) -> None:
        workers = [resident_mib(pid) for pid in self._workers()]
        driver = resident_mib(self._driver)
        now = {
            "driver": driver,
            "worker": max(workers, default=0.0),
            "all": driver + sum(workers),
            "workers": float(len(workers)),
        }
        self._peaks = {name: max(peak, now[name]) for name, peak in self._peaks.items()}


if __name__ == "__main__":
    # A Ctrl-C is for the driver: the monkey ends when the driver hangs up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Monkey(int(sys.argv[1]), int(sys.argv[2])).run()
