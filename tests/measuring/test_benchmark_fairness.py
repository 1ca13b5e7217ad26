"""What is computed from the laps of mixed tasks: the ideal, and needless idleness."""

from __future__ import annotations

import pytest
from benchmarks.fairness import ideal_s, longest_idle_s
from benchmarks.programs import Lap

A, B = 11, 22  # workers


def lap(worker: int, begun: float, ended: float) -> Lap:
    return 0, worker, begun, ended


def test_the_ideal_shares_all_work_among_the_workers():
    assert ideal_s([lap(A, 0, 3), lap(A, 3, 4), lap(B, 9, 11)], workers=2) == 3


def test_the_ideal_is_no_shorter_than_the_longest_task():
    assert ideal_s([lap(A, 0, 5), lap(B, 0, 1)], workers=2) == 5


def test_workers_that_take_turns_without_a_gap_are_never_idle():
    laps = [lap(A, 0, 2), lap(A, 2, 4), lap(B, 0, 3), lap(B, 3, 4)]

    assert longest_idle_s(laps, workers=2, since=0) == 0


def test_a_task_held_behind_a_long_one_counts_while_the_other_worker_is_free():
    laps = [lap(A, 0, 50), lap(A, 50, 51), lap(B, 0, 10)]

    assert longest_idle_s(laps, workers=2, since=0) == 40


def test_a_gap_between_two_tasks_counts():
    laps = [lap(A, 0, 10), lap(A, 17, 20), lap(B, 0, 20)]

    assert longest_idle_s(laps, workers=2, since=0) == 7


def test_the_end_of_the_last_task_does_not_count_because_nothing_waits():
    laps = [lap(A, 0, 50), lap(B, 0, 1)]

    assert longest_idle_s(laps, workers=2, since=0) == 0


def test_what_happens_while_the_program_still_submits_does_not_count():
    laps = [lap(A, 5, 10), lap(B, 5, 10)]

    assert longest_idle_s(laps, workers=2, since=5) == 0


def test_a_worker_that_never_ran_anything_was_idle_all_the_time():
    laps = [lap(A, 0, 10), lap(A, 10, 20)]

    assert longest_idle_s(laps, workers=2, since=0) == pytest.approx(10)
