"""The doctor's probes: they are rows of the matrix, and each ends in a verdict in time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Final

import pytest

from taskloom.backends._addresses import parse_address
from taskloom.cli import doctor, probes
from taskloom.cli.probes import PROBES, Probe

ROWS: Final = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "backends.json").read_text(encoding="utf-8")
)
RAY, DASK = parse_address("ray+gcs://here"), parse_address("dask://here")


def verdict_of(attempt, *, where=RAY, refused_by=()):
    one = Probe("tasks: this works", attempt, frozenset(refused_by))
    return probes.try_one(one, 10, refusal_is_right=one.is_refused_at(where))


def refuse():
    raise NotImplementedError("not here\nand more")


@pytest.mark.parametrize("where", [RAY, DASK])
@pytest.mark.parametrize("one", PROBES, ids=lambda one: one.row)
def test_each_probe_is_a_row_of_the_matrix_and_expects_what_the_suite_found(one, where):
    wanted = "refused" if one.is_refused_at(where) else "passed"
    assert ROWS[one.row][where.kind].startswith(wanted)


def test_each_subject_of_the_matrix_has_a_probe():
    def subjects(rows):
        return {row.partition(":")[0] for row in rows}

    whole_programs = {"programs"}
    assert subjects(one.row for one in PROBES) == subjects(ROWS) - whole_programs
    assert len({one.row for one in PROBES}) == len(PROBES)


def test_what_rays_client_cannot_do_may_be_refused_only_through_it():
    (one,) = [one for one in PROBES if one.row == "streams: async generators stream"]
    assert one.is_refused_at(parse_address("ray://here"))
    assert not one.is_refused_at(RAY)
    assert not one.is_refused_at(DASK)


def test_what_works_holds():
    verdict = verdict_of(lambda: None)
    assert (verdict.word, verdict.is_problem) == ("holds", False)


def test_what_is_refused_is_a_problem_only_where_the_docs_do_not_say_so():
    verdict = verdict_of(refuse, refused_by=["ray"])
    assert (verdict.word, verdict.text, verdict.is_problem) == ("refused", "not here", False)
    assert verdict_of(refuse, refused_by=["ray"], where=DASK).is_problem
    assert doctor.row(verdict_of(refuse)).advice != ""


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (lambda: probes.expect(1, 2), "AssertionError: expected 2, found 1"),
        (lambda: probes.expect_error(ValueError, lambda: 3), "expected ValueError, found 3"),
        (lambda: probes.expect_error(ValueError, lambda: int(b"", "x")), "TypeError"),
    ],
)
def test_what_is_not_as_expected_fails_with_the_words_of_the_error(attempt, text):
    verdict = verdict_of(attempt)
    assert (verdict.word, verdict.is_problem) == ("fails", True)
    assert text in verdict.text
    assert str(doctor.row(verdict)).startswith("PROBLEM  tasks ")


def test_a_probe_that_never_ends_fails_when_its_time_is_up_and_the_others_are_tried(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(probes, "PROBE_S", 0.05)
    rows = [Probe("tasks: one", never.wait, frozenset()), Probe("tasks: two", int, frozenset())]
    monkeypatch.setattr(probes, "PROBES", rows)
    try:
        assert [verdict.word for verdict in probes.try_all(RAY)] == ["fails", "holds"]
    finally:
        never.set()


def test_what_there_was_no_time_for_is_told_and_is_a_problem(monkeypatch):
    monkeypatch.setattr(probes, "ALL_S", 0)
    verdicts = list(probes.try_all(RAY))
    assert {verdict.word for verdict in verdicts} == {"not tried"}
    assert all(doctor.row(verdict).advice for verdict in verdicts)
    assert len(verdicts) == len(PROBES)
