"""``bench-check`` fails when a ratio has fallen, and is patient with a machine that was busy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import check
from benchmarks.contenders import CONTENDERS
from benchmarks.questions import QUESTIONS
from benchmarks.runner import Cell, Plan, Run
from benchmarks.sizes import Sizes

FACTS = {"cpu": "a cpu", "python": "CPython"}


class Machine:
    """Stands for ``execute``: every number is 1, except where ``slow`` says another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[Plan] = []
        self.slow: Callable[[int], dict[tuple[str, str], float]] = lambda _: {}
        self.broken: set[tuple[int, str, str]] = set()
        monkeypatch.setattr(check, "execute", self.execute)

    def execute(self, plan: Plan, _say: Callable[[str], None]) -> Run:
        number = len(self.plans)
        self.plans.append(plan)
        run = Run(
            taken="today",
            facts=FACTS,
            versions={},
            sizes=Sizes(),
            repeats=1,
            load_before="",
        )
        for question in plan.questions:
            assert question.only is not None
            for contender in question.only:
                value = self.slow(number).get((question.name, contender), 1.0)
                answer = {metric.name: value for metric in question.metrics}
                cell = Cell(answers=[answer])
                if (number, question.name, contender) in self.broken:
                    cell = Cell(failure="exit code 1")
                run.cells.setdefault(question.name, {})[contender] = cell
        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def reference(machine: Machine, tmp_path: Path) -> list[str]:
    """The arguments that name a reference in which every ratio is 1."""
    path = tmp_path / "check.json"
    assert check.main(["--update", "--reference", str(path)]) == 0
    machine.plans.clear()
    return ["--reference", str(path)]


def test_nothing_has_fallen_when_all_is_as_it_was(machine: Machine, reference: list[str]):
    assert check.main(reference) == 0
    assert len(machine.plans) == 3


def test_a_throughput_that_has_fallen_by_nearly_half_fails_by_its_name(
    machine: Machine, reference: list[str], capsys: pytest.CaptureFixture[str]
):
    machine.slow = lambda _: {("noop", "taskloom"): 0.55}

    assert check.main(reference) == 1
    fallen = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FALLEN")]
    assert [line.partition("  ")[0] for line in fallen] == ["noop.rate / ppe"]


def test_a_latency_that_has_risen_by_a_quarter_fails(machine: Machine, reference: list[str]):
    machine.slow = lambda _: {("get_latency", "taskloom"): 1.25}

    assert check.main(reference) == 1


def test_a_task_that_costs_a_fifth_more_processor_time_fails(
    machine: Machine, reference: list[str], capsys: pytest.CaptureFixture[str]
):
    machine.slow = lambda _: {("tree", "taskloom"): 1.2}

    assert check.main(reference) == 1
    assert "tree.cpu_us / floor" in capsys.readouterr().out


def test_a_fall_of_a_tenth_is_borne(machine: Machine, reference: list[str]):
    machine.slow = lambda _: {("noop", "taskloom"): 0.9, ("get_latency", "taskloom"): 1.1}

    assert check.main(reference) == 0


def test_a_machine_that_is_slow_for_everybody_is_no_fall(machine: Machine, reference: list[str]):
    machine.slow = lambda _: {("noop", name): 0.3 for name in ("taskloom", "floor", "ppe")}

    assert check.main(reference) == 0


def test_what_has_fallen_is_measured_again_and_forgiven_if_it_was_a_busy_minute(
    machine: Machine, reference: list[str]
):
    machine.slow = lambda number: {("chain", "taskloom"): 1.5} if number < 3 else {}

    assert check.main(reference) == 0
    assert [question.name for question in machine.plans[-1].questions] == ["chain"]
    assert len(machine.plans) == 5


def test_one_quiet_round_is_enough(machine: Machine, reference: list[str]):
    machine.slow = lambda number: {("chain", "taskloom"): 1.5} if number != 1 else {}

    assert check.main(reference) == 0
    assert len(machine.plans) == 3


def test_a_rival_with_a_bad_round_does_not_hide_a_fall(machine: Machine, reference: list[str]):
    machine.slow = lambda number: {
        ("inc", "taskloom"): 1.3,
        ("inc", "floor"): 1.0 if number == 2 else 3.0,
    }

    assert check.main(reference) == 1


def test_a_ratio_that_failed_in_one_round_fails_the_check(machine: Machine, reference: list[str]):
    machine.broken = {(1, "tree", "taskloom")}

    assert check.main(reference) == 1


def test_a_ratio_that_could_not_be_measured_is_not_written(machine: Machine, tmp_path: Path):
    machine.broken = {(0, "tree", "floor")}
    path = tmp_path / "check.json"

    assert check.main(["--update", "--reference", str(path)]) == 1
    assert not path.exists()


def test_another_machine_is_said(
    machine: Machine, reference: list[str], capsys: pytest.CaptureFixture[str]
):
    path = Path(reference[1])
    data = json.loads(path.read_text())
    data["facts"]["cpu"] = "another cpu"
    path.write_text(json.dumps(data))

    assert check.main(reference) == 0
    assert "another cpu" in capsys.readouterr().err


def test_the_committed_result_has_all_ratios():
    committed = json.loads(check.REFERENCE.read_text())["ratios"]

    assert committed.keys() == {ratio.name for ratio in check.RATIOS}


def test_every_ratio_is_of_numbers_that_are_asked_for():
    for ratio in check.RATIOS:
        for question, contender in ratio.asked():
            assert QUESTIONS[question].suits(CONTENDERS[contender]), ratio
            assert ratio.metric in {metric.name for metric in QUESTIONS[question].metrics}, ratio
