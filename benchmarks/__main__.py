"""``python -m benchmarks``: run, print, and keep the numbers."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import CONTENDERS, Entry
from benchmarks.question import Question
from benchmarks.questions import QUESTIONS
from benchmarks.runner import ROOT, Plan, Run, execute
from benchmarks.sizes import QUICK, Sizes
from benchmarks.summary import Summary

_RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        0, or 1 when a contender failed or computed something wrong.  Times never decide.
    """
    options = _parser().parse_args(argv)
    sys.path.insert(0, str(ROOT / "src"))  # where the measured processes look first, too
    if options.load is not None:
        run = Run.from_json(options.load.read_text())
    else:
        run = execute(_plan(options), _say)
        _say(f"written to {_keep(run, options.save)}")
    summary = Summary(run)
    print(report.markdown(summary) if options.markdown else report.plain(summary))
    failed = [cell for row in run.cells.values() for cell in row.values() if cell.failure]
    return 1 if failed else 0


def _plan(options: argparse.Namespace) -> Plan:
    sizes = QUICK if options.quick else Sizes()
    if options.matrix_size is not None:
        sizes = replace(sizes, matrix_size=options.matrix_size)
    repeats = options.repeats or (1 if options.quick else 3)
    return Plan(
        questions=_chosen_questions(options),
        contenders=_chosen_contenders(options.contenders),
        sizes=sizes,
        repeats=repeats,
        slow_repeats=options.slow_repeats or repeats,
        time_limit_s=options.time_limit,
    )


def _chosen_questions(options: argparse.Namespace) -> list[Question]:
    if options.only is not None:
        return [QUESTIONS[name] for name in _split(options.only, QUESTIONS, "question")]
    return [
        question
        for question in QUESTIONS.values()
        if (options.big or not question.is_big) and (options.soak or not question.is_soak)
    ]


def _chosen_contenders(names: str | None) -> list[Entry]:
    if names is not None:
        chosen = [CONTENDERS[name] for name in _split(names, CONTENDERS, "contender")]
        for entry in chosen:
            if entry.version() is None:
                sys.exit(f"{entry.title} was asked for and is not installed")
        return chosen
    chosen = []
    for entry in CONTENDERS.values():
        if entry.version() is None:
            _say(f"{entry.title} is not installed and is left out")
        else:
            chosen.append(entry)
    return chosen


def _split(text: str, known: dict[str, Question] | dict[str, Entry], kind: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            sys.exit(f"no {kind} is called {name!r}; there are {', '.join(known)}")
    return names


def _keep(run: Run, name: str | None) -> Path:
    if name is not None:
        path = _RESULTS / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path(tempfile.mkdtemp(prefix="taskloom-benchmark-")) / f"{stamp}.json"
    path.write_text(run.to_json())
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure taskloom, its peers and the bare floor, all in one run.",
    )
    add = parser.add_argument
    add("--only", metavar="Q1,Q2", help=f"questions: {', '.join(QUESTIONS)}")
    add("--contenders", metavar="C1,C2", help=f"contenders: {', '.join(CONTENDERS)}")
    add("--repeats", type=int, metavar="N", help="fresh processes per number (default 3)")
    add(
        "--slow-repeats", type=int, metavar="N", help="the same for Ray and Dask (default: as many)"
    )
    add("--quick", action="store_true", help="small sizes, one repeat: does everything work?")
    add("--big", action="store_true", help="also large graphs, values, and a million pending tasks")
    add("--soak", action="store_true", help="also ten million tasks in a loop: some ten minutes")
    add("--matrix-size", type=int, metavar="N", help="size of the matrices (default 120)")
    add("--time-limit", type=float, default=180.0, metavar="S", help="for one process (180)")
    add("--save", metavar="NAME", help="keep the numbers in benchmarks/results/NAME.json")
    add("--load", type=Path, metavar="FILE", help="run nothing, print the numbers of FILE")
    add("--markdown", action="store_true", help="print Markdown tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
