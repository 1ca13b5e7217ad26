"""Goals are about questions that exist, and are judged by the right numbers of a run."""

from __future__ import annotations

from benchmarks.contenders import CONTENDERS
from benchmarks.goals import GOALS, Verdict, judge
from benchmarks.questions import QUESTIONS
from benchmarks.runner import Cell, Run
from benchmarks.sizes import Sizes
from benchmarks.summary import Summary


def run_with(**cells: dict[str, dict[str, float]]) -> Summary:
    """A run of one repeat: ``question={contender: answer}``."""
    return Summary(
        Run(
            taken="today",
            facts={},
            versions={},
            sizes=Sizes(),
            repeats=1,
            load_before="",
            cells={
                question: {name: Cell(answers=[answer]) for name, answer in row.items()}
                for question, row in cells.items()
            },
        )
    )


def verdict(summary: Summary, title: str) -> Verdict:
    (found,) = [one for one in judge(summary) if one.goal.title == title]
    return found


def test_every_goal_is_about_a_number_that_taskloom_and_the_rival_are_asked_for():
    for goal in GOALS:
        asked = [(goal.question, "taskloom")]
        if goal.is_ratio:
            asked.append((goal.of or goal.question, goal.rival or "taskloom"))
        for name, contender in asked:
            question = QUESTIONS[name]
            assert question.suits(CONTENDERS[contender]), goal
            assert goal.metric in {metric.name for metric in question.metrics}, goal


def test_a_goal_asks_for_more_where_more_is_better_and_for_less_where_less_is():
    for goal in GOALS:
        (metric,) = [m for m in QUESTIONS[goal.question].metrics if m.name == goal.metric]
        assert goal.sense == {"higher": "at least", "lower": "at most"}[metric.better], goal


def test_a_number_is_divided_by_the_rivals_to_the_same_question():
    summary = run_with(noop={"taskloom": {"rate": 50.0}, "ppe": {"rate": 10.0}})

    missed = verdict(summary, "no-op throughput / ProcessPoolExecutor")

    assert (missed.value, missed.word) == (5.0, "missed")


def test_a_number_is_divided_by_the_rivals_to_another_question():
    summary = run_with(get_latency={"taskloom": {"p50": 60.0}}, ping_pong={"floor": {"p50": 30.0}})

    met = verdict(summary, "get latency p50 / bare ping-pong")

    assert (met.value, met.word) == (2.0, "met")


def test_a_number_is_divided_by_an_own_one_of_another_question():
    summary = run_with(
        await_latency={"taskloom": {"p50": 90.0}}, get_latency={"taskloom": {"p50": 60.0}}
    )

    assert verdict(summary, "await latency p50 / get latency p50").value == 1.5


def test_an_absolute_goal_of_zero_is_met_by_zero_only():
    goal = "wake-ups of an idle engine"

    assert verdict(run_with(idle={"taskloom": {"rate": 0.0}}), goal).word == "met"
    assert verdict(run_with(idle={"taskloom": {"rate": 0.2}}), goal).word == "missed"


def test_a_goal_without_the_rivals_number_is_not_measured():
    summary = run_with(noop={"taskloom": {"rate": 50.0}})

    assert verdict(summary, "no-op throughput / Ray").word == "not measured"


def test_titles_are_unique_within_a_question():
    titles = [(goal.question, goal.title, goal.metric) for goal in GOALS]

    assert len(set(titles)) == len(titles)
