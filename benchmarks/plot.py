"""Draws a run as an SVG: how many times better taskloom is than each of the others.

    python -m benchmarks.plot benchmarks/results/last.json benchmarks/results/last.svg

A row is one number of one question, taskloom stands at 1 on a logarithmic axis, and a mark to the
right of it is somebody who is that many times worse.  The line through a mark goes from the
smallest to the largest of the repeats; the grey one at 1 is taskloom's own.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.question import Metric, Question
from benchmarks.questions import QUESTIONS
from benchmarks.report import number
from benchmarks.runner import Run
from benchmarks.summary import Summary

_WIDTH, _LEFT, _RIGHT = 960, 330, 30
_TOP, _ROW, _BOTTOM = 74, 24, 62
_MARK = 5.0
_OURS = "taskloom"

# Colours that colour-blind readers can tell apart, and a shape for each, for print.
_STYLES = {
    "floor": ("#999999", "diamond"),
    "ppe": ("#0072b2", "circle"),
    "pool": ("#56b4e9", "square"),
    "loky": ("#009e73", "triangle"),
    "ray": ("#d55e00", "circle"),
    "dask": ("#e69f00", "square"),
}


@dataclass(frozen=True, slots=True)
class Point:
    """How many times worse than taskloom one contender is: its median, and its repeats."""

    contender: str
    at: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one question."""

    label: str
    ours: str
    own: tuple[float, float]
    points: tuple[Point, ...]


def rows(summary: Summary) -> list[Row]:
    """What can be compared: main numbers that taskloom and somebody else have."""
    found = (
        _row(summary, QUESTIONS[name], metric)
        for name in summary.run.cells
        for metric in QUESTIONS[name].metrics
        if metric.is_main
    )
    return [row for row in found if row is not None]


def _row(summary: Summary, question: Question, metric: Metric) -> Row | None:
    ours = summary.spread(question.name, _OURS, metric.name)
    if ours is None or not ours.low:
        return None
    sign = 1 if metric.better == "lower" else -1
    points = []
    for contender in summary.run.versions:
        theirs = summary.spread(question.name, contender, metric.name)
        if contender == _OURS or theirs is None or not theirs.low:
            continue
        low, high = sorted((bound / ours.median) ** sign for bound in (theirs.low, theirs.high))
        points.append(Point(contender, (theirs.median / ours.median) ** sign, low, high))
    if not points:
        return None
    low, high = sorted((bound / ours.median) ** sign for bound in (ours.low, ours.high))
    label = f"{question.name}: {metric.title}"
    return Row(label, number(ours.median, metric.unit), (low, high), tuple(points))


def svg(summary: Summary) -> str:
    """The whole picture."""
    return "\n".join(_elements(summary)) + "\n"


def _elements(summary: Summary) -> Iterator[str]:
    table = rows(summary)
    if not table:
        raise ValueError("nothing in these results can be compared with taskloom's")
    axis = _Axis.of(table)
    height = _TOP + _ROW * len(table) + _BOTTOM
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12">'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    yield _text(12, 22, "How many times better taskloom is", size=16)
    yield from _legend([name for name in summary.run.versions if name != _OURS])
    bottom = height - _BOTTOM
    for tick in axis.ticks():
        x, colour = axis.x(tick), "#000000" if tick == 1 else "#dddddd"
        yield _line(x, _TOP, x, bottom, colour)
        yield _text(x, bottom + 16, f"{tick:g} x", anchor="middle")
    yield _text(axis.x(1) - 8, bottom + 34, "taskloom is worse", anchor="end", colour="#666666")
    yield _text(axis.x(1) + 8, bottom + 34, "taskloom is better", colour="#666666")
    for index, row in enumerate(table):
        yield from _row_elements(row, axis, _TOP + _ROW * (index + 0.5))
    yield _text(12, height - 8, _caption(summary.run), size=10, colour="#666666")
    yield "</svg>"


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic axis from one power of ten to another."""

    first: int
    last: int

    @classmethod
    def of(cls, table: Sequence[Row]) -> _Axis:
        values = [bound for row in table for bound in row.own]
        values += [bound for row in table for p in row.points for bound in (p.low, p.high)]
        return cls(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))))

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.first) / max(1, self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.first, self.last + 1)]


def _row_elements(row: Row, axis: _Axis, y: float) -> Iterator[str]:
    yield _text(12, y + 4, row.label)
    yield _text(_LEFT - 14, y + 4, row.ours, anchor="end", colour="#666666")
    yield _line(axis.x(row.own[0]), y, axis.x(row.own[1]), y, "#bbbbbb", width=5)
    for point in row.points:
        colour, shape = _STYLES[point.contender]
        x = axis.x(point.at)
        yield _line(axis.x(point.low), y, axis.x(point.high), y, colour)
        title = f"{CONTENDERS[point.contender].title}: taskloom is {_times(point.at)}"
        yield _mark(x, y, colour, shape, title)


def _times(ratio: float) -> str:
    return f"{ratio:.2f} x better" if ratio >= 1 else f"{1 / ratio:.2f} x worse"


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = 16.0
    for name in names:
        colour, shape = _STYLES[name]
        title = CONTENDERS[name].title
        yield _mark(x, 46, colour, shape, title)
        yield _text(x + 10, 50, title)
        x += 34 + 6.6 * len(title)


def _mark(x: float, y: float, colour: str, shape: str, title: str) -> str:
    r = _MARK
    corners = {
        "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
    }
    tip = f"<title>{escape(title)}</title>"
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}">{tip}</circle>'
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners[shape])
    return f'<polygon points="{points}" fill="{colour}">{tip}</polygon>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#000000",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _caption(run: Run) -> str:
    facts = run.facts
    return (
        f"{run.taken[:10]}, {facts['cpu']}, {facts['python']}, commit {facts['commit']}; load "
        f"{run.load_before} before, {run.load_after} after; medians, least and most of at most "
        f"{run.repeats} processes"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw a run.")
    parser.add_argument("results", type=Path, help="what `python -m benchmarks` has written")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    options = parser.parse_args(argv)
    run = Run.from_json(options.results.read_text())
    options.picture.write_text(svg(Summary(run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
