"""Turns a run into text: for a terminal, or as Markdown for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.contenders import CONTENDERS
from benchmarks.goals import judge
from benchmarks.question import Metric, Question
from benchmarks.questions import QUESTIONS
from benchmarks.summary import Summary

_GROUPED_FROM = 1000


def number(value: float, unit: str = "") -> str:
    """Three significant digits, thousands grouped."""
    if abs(value) >= _GROUPED_FROM:
        digits = len(str(int(abs(value))))
        text = f"{round(value, 3 - digits):,.0f}"
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}" if unit and unit != "1/s" else text


def plain(summary: Summary) -> str:
    """The whole report, for a terminal."""
    return "\n".join(_plain_lines(summary))


def markdown(summary: Summary) -> str:
    """Two tables, the questions and the goals, with the machine above them."""
    return "\n".join(_markdown_lines(summary))


def _heading(question: Question, summary: Summary) -> str:
    size = summary.run.sizes.of(question.name)
    return f"{question.title} ({size})" if size else question.title


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    yield "taken", run.taken
    yield from run.facts.items()
    yield "load", f"{run.load_before} before, {run.load_after} after"
    yield "repeats", f"{run.repeats}, each in a fresh process, interleaved"
    for name, version in run.versions.items():
        yield CONTENDERS[name].title, version


# -- for a terminal --------------------------------------------------------------------------------


def _plain_lines(summary: Summary) -> Iterator[str]:
    for key, text in _facts(summary):
        yield f"{key:22}{text}"
    for name, row in summary.run.cells.items():
        question = QUESTIONS[name]
        yield ""
        yield _heading(question, summary)
        header, body = ["", "", "median", "min", "max", "n", "taskloom is"], []
        for contender, cell in row.items():
            title = CONTENDERS[contender].title
            if not cell.is_asked:
                continue
            if cell.failure is not None:
                body.append([title, f"failed: {cell.failure}", "", "", "", "", ""])
                continue
            for metric in question.metrics:
                body.append(_plain_row(summary, question, contender, metric, title))
                title = ""
        yield from _aligned([header, *body])
    yield ""
    yield "goals"
    yield from _aligned(_goal_rows(summary))


def _plain_row(
    summary: Summary, question: Question, contender: str, metric: Metric, title: str
) -> list[str]:
    spread = summary.spread(question.name, contender, metric.name)
    if spread is None:
        return [title, metric.title, "-", "", "", "", ""]
    advantage = None
    if metric.is_main and contender != "taskloom":
        advantage = summary.advantage(question.name, contender, metric)
    return [
        title,
        metric.title,
        number(spread.median, metric.unit),
        number(spread.low),
        number(spread.high),
        str(spread.repeats),
        "" if advantage is None else _advantage(advantage),
    ]


def _advantage(times: float) -> str:
    return f"{times:.2f} x better" if times >= 1 else f"{1 / times:.2f} x worse"


def _goal_rows(summary: Summary) -> list[list[str]]:
    rows = [["goal", "wanted", "measured", ""]]
    for verdict in judge(summary):
        goal = verdict.goal
        measured = "-" if verdict.value is None else f"{verdict.value:.2f} {goal.unit}"
        wanted = f"{goal.sense} {goal.bound:g} {goal.unit}"
        rows.append([goal.title, wanted, measured, verdict.word])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


# -- for a page ------------------------------------------------------------------------------------


def _markdown_lines(summary: Summary) -> Iterator[str]:
    run = summary.run
    facts = run.facts
    yield (
        f"{facts['cpu']}, {facts['memory']}, {facts['system']}, {facts['python']}, "
        f"uvloop {facts['uvloop']}. Medians of {run.repeats} fresh processes each."
    )
    yield ""
    yield from _markdown_table(_question_rows(summary))
    yield ""
    yield from _markdown_table(_goal_rows(summary))


def _question_rows(summary: Summary) -> list[list[str]]:
    names = list(summary.run.versions)
    rows = [["question", "", *(_versioned(name, summary) for name in names)]]
    for name, row in summary.run.cells.items():
        question = QUESTIONS[name]
        if question.only is not None and len(question.only) == 1:
            continue  # nobody to compare with: the goals and the plain report show it
        heading = _heading(question, summary)
        for metric in question.metrics:
            if not metric.is_main:
                continue
            unit = f"{metric.title} ({metric.unit})" if metric.unit != "1/s" else metric.title
            rows.append(
                [heading, unit, *(_markdown_cell(summary, name, who, metric) for who in names)]
            )
            heading = ""
        assert row.keys() == set(names), "every contender has a cell for every question"
    return rows


def _versioned(name: str, summary: Summary) -> str:
    version = summary.run.versions[name]
    title = CONTENDERS[name].title
    return title if version.startswith(("Python", "source")) else f"{title} {version}"


def _markdown_cell(summary: Summary, question: str, contender: str, metric: Metric) -> str:
    cell = summary.run.cells[question][contender]
    if not cell.is_asked:
        return "n/a"
    value = summary.median(question, contender, metric.name)
    return "failed" if value is None else number(value)


def _markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    header, *body = rows
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---' if column < 2 else '---:' for column in range(len(header)))}|"
    for row in body:
        yield f"| {' | '.join(row)} |"
