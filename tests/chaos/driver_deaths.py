"""Two hundred drivers end in all ways, their workers in all states; nothing may be left.

Run by ``make chaos``::

    python -m tests.chaos.driver_deaths [--times 200] [--seed 0] [--limit 2]

Prints how long it took until nothing was left (median, worst) and fails when it ever took longer
than the limit, or somebody stayed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

from tests.faults.drivers import ENDS, STATES, start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    took: list[tuple[float, str, list[str]]] = []
    failures = 0
    for number in range(options.times):
        end = rng.choice(list(ENDS))
        states = rng.sample(list(STATES), rng.randint(1, 3))
        with tempfile.TemporaryDirectory(prefix="driver-") as home:
            driver = start(Path(home), states, end)
            try:
                took.append((driver.end(20.0), end, states))
            except AssertionError as error:
                failures += 1
                print(f"{number}: {end}, {states}: {error}", flush=True)
            finally:
                driver.close()
        if number % 20 == 19:
            print(f"{number + 1} of {options.times} drivers have ended", flush=True)
    if not took:
        return 1
    seconds = [entry[0] for entry in took]
    worst = max(took)
    late = sum(second > options.limit for second in seconds)
    print(
        f"{len(took)} of {options.times} left nothing; it took {statistics.median(seconds):.2f} s "
        f"(median), {worst[0]:.2f} s (worst: {worst[1]}, {', '.join(worst[2])}); "
        f"{late} took longer than {options.limit:g} s"
    )
    return 1 if failures or late else 0


if __name__ == "__main__":
    sys.exit(main())
