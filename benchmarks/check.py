"""``make bench-check``: has taskloom become slower since the last committed result?

Only ratios are compared: taskloom against the bare floor, the ping-pong or ProcessPoolExecutor, all
asked in turn in the same rounds on the same machine.  Of the rounds the best number of each side
counts, because other work on a machine makes numbers worse and never better.  Throughput is
judged by the processor time that a task costs all processes together, which hardly depends on
what else runs; the clock, which does, may differ more before it counts.  What has fallen is
measured again in further rounds first.

    python -m benchmarks.check             # compare with benchmarks/results/check.json
    python -m benchmarks.check --update    # write that file anew, to be committed
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.questions import QUESTIONS
from benchmarks.report import number
from benchmarks.runner import ROOT, Plan, Run, execute
from benchmarks.sizes import QUICK, Sizes

REFERENCE = Path(__file__).parent / "results" / "check.json"
MOST_FALL = 0.15
_MOST_FALL_BY_CLOCK = 0.4
"""Throughput by the clock falls by a third when a neighbour wants a core; lost overlap is more."""
_ROUNDS = 3
_UPDATE_ROUNDS = 5
_FURTHER_ROUNDS = 2
_MOST_TRIES = 3
"""How often further rounds are made for what still looks fallen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One of taskloom's numbers as a multiple of somebody's number in the same round."""

    question: str
    metric: str
    rival: str | None = None  # None: the number is a ratio already
    of: str | None = None  # the rival's question, if it is another one
    most_fall: float = MOST_FALL

    @property
    def name(self) -> str:
        ours = f"{self.question}.{self.metric}"
        if self.rival is None:
            return ours
        return f"{ours} / {self.rival}" + (f" {self.of}" if self.of else "")

    @property
    def is_higher_better(self) -> bool:
        metrics = {metric.name: metric for metric in QUESTIONS[self.question].metrics}
        return metrics[self.metric].better == "higher"

    def asked(self) -> Iterable[tuple[str, str]]:
        """The questions that must be asked for it, and of whom: taskloom first."""
        yield self.question, "taskloom"
        if self.rival is not None:
            yield self.of or self.question, self.rival


RATIOS = (
    Ratio(question="noop", metric="cpu_us", rival="floor"),
    Ratio(question="noop", metric="cpu_us", rival="ppe"),
    Ratio(question="noop", metric="rate", rival="ppe", most_fall=_MOST_FALL_BY_CLOCK),
    Ratio(question="inc", metric="cpu_us", rival="floor"),
    Ratio(question="chain", metric="cpu_us", rival="floor"),
    Ratio(question="chain", metric="rate", rival="floor", most_fall=_MOST_FALL_BY_CLOCK),
    Ratio(question="tree", metric="cpu_us", rival="floor"),
    Ratio(question="nested", metric="cpu_us", rival="floor", of="inc"),
    Ratio(question="actor_calls", metric="cpu_us", rival="floor", of="inc"),
    Ratio(question="actor_async_calls", metric="cpu_us", rival="floor", of="inc"),
    Ratio(question="get_latency", metric="p50", rival="floor", of="ping_pong"),
    Ratio(question="get_latency", metric="p50", rival="ppe"),
    Ratio(question="get_latency", metric="cpu_us", rival="floor", of="ping_pong"),
    Ratio(question="await_latency", metric="p50", rival="floor", of="ping_pong"),
    Ratio(question="actor_latency", metric="p50", rival="floor", of="ping_pong"),
    Ratio(question="cold_start", metric="to_result", rival="ppe"),
    Ratio(question="memory", metric="pss", rival="ppe"),
    Ratio(question="live_refs", metric="bytes", rival="floor"),
    Ratio(question="mixed", metric="of_ideal"),
)


@dataclass(slots=True)
class Rounds:
    """What was answered in all rounds, by question, contender and metric."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)

    def add(self, run: Run) -> None:
        for question, row in run.cells.items():
            for contender, cell in row.items():
                if cell.failure is not None:
                    self.failed.add((question, contender))
                for answer in cell.answers:
                    for metric, value in answer.items():
                        self.values.setdefault((question, contender, metric), []).append(value)

    def sides(self, ratio: Ratio) -> list[float] | None:
        """The best number of each side; None when somebody failed: then nothing can be said."""
        found = []
        for question, contender in ratio.asked():
            values = self.values.get((question, contender, ratio.metric))
            if not values or (question, contender) in self.failed:
                return None
            found.append(max(values) if ratio.is_higher_better else min(values))
        return found

    def value(self, ratio: Ratio) -> float | None:
        sides = self.sides(ratio)
        if sides is None:
            return None
        return sides[0] if ratio.rival is None else sides[0] / sides[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How one ratio stands: ``standing`` is 1 when it is as it was, less when it is worse."""

    ratio: Ratio
    now: float | None
    then: float | None

    @property
    def standing(self) -> float | None:
        if not self.now or not self.then:
            return None
        return self.now / self.then if self.ratio.is_higher_better else self.then / self.now

    @property
    def has_fallen(self) -> bool:
        return self.standing is not None and self.standing < 1 - self.ratio.most_fall

    @property
    def word(self) -> str:
        if self.now is None:
            return "failed"
        if self.standing is None:
            return "new"
        if self.has_fallen:
            return "FALLEN"
        return "better" if self.standing > 1 / (1 - self.ratio.most_fall) else "as it was"


def compare(rounds: Rounds, then: Mapping[str, float]) -> list[Line]:
    """A line for every ratio, from its numbers in all rounds and the number it had."""
    return [
        Line(ratio=ratio, now=rounds.value(ratio), then=then.get(ratio.name)) for ratio in RATIOS
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, or write the reference.

    Returns:
        0, or 1 when a ratio has fallen or could not be measured.
    """
    options = _parser().parse_args(argv)
    sys.path.insert(0, str(ROOT / "src"))  # where the measured processes look first, too
    sizes = QUICK if options.quick else Sizes()
    count = options.rounds or (_UPDATE_ROUNDS if options.update else _ROUNDS)
    rounds = Rounds()
    run = _measure(RATIOS, sizes, count, rounds)
    reference: dict[str, Any] = {"ratios": {}}
    if not options.update:
        reference = json.loads(options.reference.read_text())
    then = {name: row["ratio"] for name, row in reference["ratios"].items()}
    lines = compare(rounds, then)
    for _ in range(_MOST_TRIES):
        fallen = [line.ratio for line in lines if line.has_fallen]
        if not fallen:
            break
        _say(f"measured again: {', '.join(ratio.name for ratio in fallen)}")
        _measure(fallen, sizes, _FURTHER_ROUNDS, rounds)
        lines = compare(rounds, then)
    _print(lines, rounds)
    if any(line.now is None for line in lines):
        return 1
    if options.update:
        options.reference.parent.mkdir(exist_ok=True)
        options.reference.write_text(_reference(run, rounds))
        _say(f"written to {options.reference}")
        return 0
    _warn_of_another_machine(run, reference)
    return 1 if any(line.has_fallen for line in lines) else 0


def _measure(ratios: Sequence[Ratio], sizes: Sizes, count: int, rounds: Rounds) -> Run:
    """Ask what ``ratios`` need, ``count`` times, and append to ``rounds``; the last run."""
    asked: dict[str, list[str]] = {}
    for question, contender in (pair for ratio in ratios for pair in ratio.asked()):
        asked.setdefault(question, []).append(contender)
    names = {contender for contenders in asked.values() for contender in contenders}
    plan = Plan(
        questions=[
            replace(QUESTIONS[name], only=tuple(contenders)) for name, contenders in asked.items()
        ],
        contenders=[entry for name, entry in CONTENDERS.items() if name in names],
        sizes=sizes,
        repeats=1,
        slow_repeats=1,
        time_limit_s=180.0,
    )
    run = None
    for done in range(count):
        _say(f"round {done + 1} of {count}")
        run = execute(plan, _say)
        rounds.add(run)
    assert run is not None, "at least one round"
    return run


def _reference(run: Run, rounds: Rounds) -> str:
    ratios = {}
    for ratio in RATIOS:
        value, sides = rounds.value(ratio), rounds.sides(ratio)
        assert value is not None, f"{ratio.name} could not be measured"
        assert sides is not None, f"{ratio.name} could not be measured"
        ratios[ratio.name] = {
            "ratio": round(value, 4),
            "of": [float(f"{side:.4g}") for side in sides],
        }
    facts = {"taken": run.taken, "facts": run.facts, "load": run.load_after}
    return json.dumps({"format": 1, **facts, "ratios": ratios}, indent=1) + "\n"


def _print(lines: Sequence[Line], rounds: Rounds) -> None:
    width = max(len(line.ratio.name) for line in lines)
    print(f"{'ratio':{width}}  {'then':>8}  {'now':>8}     best numbers now")
    for line in lines:
        sides = rounds.sides(line.ratio) or []
        then, now = (
            f"{'-':>8}" if value is None else f"{value:8.3f}" for value in (line.then, line.now)
        )
        best = " / ".join(number(side) for side in sides)
        print(f"{line.ratio.name:{width}}  {then}  {now}  {best:>19}  {line.word}")


def _warn_of_another_machine(run: Run, reference: Mapping[str, Any]) -> None:
    for key in ("cpu", "python"):
        if run.facts[key] != reference["facts"][key]:
            _say(
                f"note: the reference was taken with {reference['facts'][key]}, this is "
                f"{run.facts[key]}; ratios move with the machine"
            )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description="Fail when taskloom has become slower than the committed result says.",
    )
    add = parser.add_argument
    add("--update", action="store_true", help="measure, and write the result to be committed")
    add(
        "--rounds",
        type=int,
        metavar="N",
        help=f"rounds ({_ROUNDS}; with --update {_UPDATE_ROUNDS})",
    )
    add("--quick", action="store_true", help="small sizes: does it work? Its ratios are others")
    add("--reference", type=Path, default=REFERENCE, metavar="FILE", help="the committed result")
    return parser


if __name__ == "__main__":
    sys.exit(main())
