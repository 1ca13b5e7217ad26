"""``python -m benchmarks.ray_microbenchmark``: the rows of ``ray microbenchmark``, side by side.

Every row runs in a fresh process for taskloom and, where it is installed, for Ray, one right after
the other, on as many CPUs as there are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.ray_rows import ROWS
from benchmarks.report import number
from benchmarks.runner import ROOT, Plan, Run, execute
from benchmarks.sizes import QUICK, Sizes
from benchmarks.summary import Summary

_NAMES = ("taskloom", "ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that the command line asks for.

    Returns:
        0, or 1 when a row failed.  Rates never decide.
    """
    options = _parser().parse_args(argv)
    sys.path.insert(0, str(ROOT / "src"))  # where the measured processes look first, too
    names = _NAMES if options.contenders is None else options.contenders.split(",")
    unknown = set(names) - set(_NAMES)
    if unknown:
        sys.exit(f"these rows can be asked of {' and '.join(_NAMES)}, not of {unknown.pop()}")
    contenders = [CONTENDERS[name] for name in names if CONTENDERS[name].version() is not None]
    rows = [row for row in ROWS.values() if options.only in row.name]
    if not rows:
        sys.exit(f"no row has {options.only!r} in its name; there are {', '.join(ROWS)}")
    run = execute(
        Plan(
            questions=rows,
            contenders=contenders,
            sizes=replace(QUICK if options.quick else Sizes(), workers=os.cpu_count() or 1),
            repeats=options.repeats,
            slow_repeats=options.repeats,
            time_limit_s=options.time_limit,
        ),
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join(table(run)))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(run), indent=1) + "\n")
    return 1 if any(cell.failure for row in run.cells.values() for cell in row.values()) else 0


def table(run: Run) -> list[str]:
    """A line for each row: rate and spread of everybody, and how many times better taskloom is."""
    summary = Summary(run)
    facts = ", ".join((run.facts["cpu"], run.facts["system"], run.facts["python"]))
    versions = ", ".join(f"{CONTENDERS[name].title} {run.versions[name]}" for name in run.versions)
    width = max(len(name) for name in run.cells)
    heads = "".join(f"{CONTENDERS[name].title:>20}" for name in run.versions)
    lines = [facts, versions, f"{'per second':{width}}{heads}{'taskloom / Ray':>18}"]
    for name, cells in run.cells.items():
        texts = []
        for who, cell in cells.items():
            rate, spread = (summary.median(name, who, key) for key in ("rate", "spread"))
            if not cell.is_asked:
                texts.append("not there")
            elif rate is None or spread is None:
                texts.append("failed")
            else:
                texts.append(f"{number(rate)} +- {number(spread)}")
        ratio = _ratio(summary, name)
        last = "" if ratio is None else f"{ratio:.2f} x"
        lines.append(f"{name:{width}}{''.join(f'{text:>20}' for text in texts)}{last:>18}")
    return lines


def as_json(run: Run) -> dict[str, object]:
    """The facts, and under each row's name the rates and their ratio."""
    summary = Summary(run)
    rows: dict[str, dict[str, float | None]] = {}
    for name in run.cells:
        rows[name] = {"ratio": _ratio(summary, name)}
        for who in run.versions:
            rows[name][who] = summary.median(name, who, "rate")
            rows[name][f"{who}_spread"] = summary.median(name, who, "spread")
    return {"taken": run.taken, "facts": run.facts, "versions": run.versions, "rows": rows}


def _ratio(summary: Summary, name: str) -> float | None:
    ours, theirs = (summary.median(name, who, "rate") for who in _NAMES)
    return ours / theirs if ours and theirs else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ray_microbenchmark",
        description="The rows of `ray microbenchmark`, on taskloom and on Ray.",
    )
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    add("--contenders", metavar="C1,C2", help="taskloom, ray (default: those that are installed)")
    add("--repeats", type=int, default=1, metavar="N", help="fresh processes per row (default 1)")
    add("--quick", action="store_true", help="short rounds: does everything work?")
    add("--time-limit", type=float, default=180.0, metavar="S", help="for one process (180)")
    add("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
