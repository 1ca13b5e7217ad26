"""Looks for plans that fail: ``python loom_fuzz.py 0:100000`` runs those of these seeds.

A failing one is cut down to what it takes to fail and printed with its story.
"""

from __future__ import annotations

import sys
import time
import traceback

from loom_plan import Plan, make_plan, shrink
from loom_simulation import Simulation


def failure(plan: Plan) -> BaseException | None:
    """What goes wrong in a plan, if anything does."""
    try:
        Simulation(plan).run()
    except Exception as error:
        return error
    return None


def explain(plan: Plan) -> str:
    """A failing plan cut down, and its story."""
    error = failure(plan)
    smallest = shrink(plan, lambda other: type(failure(other)) is type(error))
    simulation = Simulation(smallest, trace=True)
    try:
        simulation.run()
    except Exception:
        wrong = traceback.format_exc()
    else:
        wrong = "it does not fail when it is traced"
    story = "\n".join(simulation.trace or ())
    return f"{story}\n\n{wrong}\nseed {plan.seed}, cut down:\n{smallest!r}"


def main() -> None:
    first, _, last = (sys.argv[1] if len(sys.argv) > 1 else "0:2000").partition(":")
    seeds = range(int(first), int(last)) if last else range(int(first), int(first) + 1)
    began, failed = time.monotonic(), 0
    for count, seed in enumerate(seeds, 1):
        plan = make_plan(seed)
        if failure(plan) is not None:
            failed += 1
            print(f"seed {seed} fails:\n{explain(plan)}\n", flush=True)
            if failed == 5:
                break
        if count % 10_000 == 0:
            print(f"{count} seeds in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{failed} of {count} seeds fail; {time.monotonic() - began:.1f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
