"""Right answers while workers are killed: three phases, and a report.

``make chaos`` runs it until 100,000 nested calls were made under fire; ``CHAOS_S=180 make chaos``
takes about three minutes.  The same workloads run to warm up, then without faults, then as many
rounds of them with faults.  A wrong or missing answer, a hang or something left behind fails it;
how much slower it was is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chaos_actors
import chaos_workloads

import taskloom as tl
from taskloom import _current

HERE = Path(__file__).resolve().parent
FULL_NESTED = 100_000
MEAN_S = 0.1
"""Between two misfortunes, on average."""
SURELY = 60
"""Of so many misfortunes some kill an actor: a third of the workers are actors."""
PART_OF_A_ROUND = 0.1
"""And no less than this part of a round without them."""


class Monkey:
    """The process that watches us, and hurts our workers when asked."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "chaos_monkey.py"), str(os.getpid()), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def mark(self) -> dict[str, Any]:
        """What happened since the last mark."""
        self.say("mark")
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        self._process.communicate(timeout=10)


@contextlib.contextmanager
def monkey(seed: int) -> Iterator[Monkey]:
    one = Monkey(seed)
    try:
        yield one
    finally:
        one.close()


def one_round(number: int) -> dict[str, int]:
    return {work.__name__: work(number) for work in (*chaos_workloads.ALL, *chaos_actors.ALL)}


def phase(name: str, watch: Monkey, rounds: int, until: float) -> dict[str, Any]:
    """``rounds`` rounds, or as many as there is time for."""
    watch.mark()
    began = time.monotonic()
    done, calls, inner = 0, 0, 0
    while done < rounds or time.monotonic() < until:
        made = one_round(done)
        done += 1
        calls += sum(made.values())
        inner += made["nested"]
    seconds = time.monotonic() - began
    facts = watch.mark()
    told = {"phase": name, "rounds": done, "calls": calls, "nested": inner, "seconds": seconds}
    print(json.dumps({**told, **facts}), flush=True)
    return {**told, **facts}


def what_is_kept() -> tuple[int, int]:
    """Calls and objects that the engine still knows when it had time to forget them."""
    session: Any = _current.peek()
    graph = session._engine.loom.graph
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        left = session._portal.call(lambda: (len(graph.nodes), len(graph.objects)))
        if left == (0, 0) or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def actor_restarts() -> int:
    session: Any = _current.peek()
    actors = session._engine.loom.actors
    restarts: int = session._portal.call(lambda: sum(a.restarts for a in actors.by_key.values()))
    return restarts


def run(seconds: float, seed: int, nested: int, mean_s: float) -> dict[str, Any]:
    """All phases; what was measured.

    Args:
        seconds: about how long it may take; the phase without faults gets a quarter.
        seed: of the monkey.
        nested: how many nested calls are made under fire, at the least.
        mean_s: between two misfortunes, on average.
    """
    print(json.dumps({"seed": seed}), flush=True)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with monkey(seed) as watch:
        tl.init(num_cpus=2, log_to_driver=False)
        try:
            phase("warm-up", watch, 1, 0)
            least = -(-nested // chaos_workloads.nested(0))
            calm = phase("calm", watch, least, time.monotonic() + seconds / 4)
            # On a slow machine misfortune takes its time as well, or no call would ever end.
            mean_s = max(mean_s, PART_OF_A_ROUND * calm["seconds"] / calm["rounds"])
            watch.say(f"hurt {mean_s}")
            wild = phase("wild", watch, calm["rounds"], 0)
            watch.say("spare")
            after = one_round(1)
            restarts = actor_restarts()
        finally:
            chaos_actors.dismiss()
        kept = what_is_kept()
        tl.shutdown()
    assert kept == (0, 0), f"calls and objects that nobody wants are kept: {kept}"
    left = {
        "threads": [t.name for t in threading.enumerate()][threads:],
        "descriptors": len(os.listdir("/proc/self/fd")) - descriptors,
    }
    assert after
    assert wild["rounds"] == calm["rounds"]
    hurt = sum(wild["signals"].values())
    assert hurt > 0, "nobody was hurt"
    assert restarts > 0 or hurt < SURELY, "no actor was hurt"
    # libuv keeps a pair of descriptors for signals and one for its clock, once for each process.
    assert left["descriptors"] <= 3, f"left open: {left}"
    assert not [name for name in left["threads"] if "callbacks" not in name], left
    facts = {
        "slowdown": round(wild["seconds"] / calm["seconds"], 2),
        "signals": wild["signals"],
        "actor_restarts": restarts,
        "mean_s": round(mean_s, 3),
        "nested": wild["nested"],
        "peak_mib": {one["phase"]: one["peak_mib"] for one in (calm, wild)},
    }
    print(json.dumps(facts), flush=True)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    limit = os.environ.get("CHAOS_S")
    parser.add_argument("--seconds", type=float, default=float(limit or 60))
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--nested", type=int, default=0 if limit else FULL_NESTED)
    parser.add_argument("--mean", type=float, default=MEAN_S)
    options = parser.parse_args()
    facts = run(options.seconds, options.seed, options.nested, options.mean)
    count, nested, slowdown = sum(facts["signals"].values()), facts["nested"], facts["slowdown"]
    print(
        f"right answers in {nested} nested calls with {count} misfortunes; "
        f"{slowdown} x as slow as without (expected: 5 x at most)"
    )


if __name__ == "__main__":
    main()
