"""The picture of a run shows its numbers, at the right places."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from benchmarks.plot import rows, svg
from benchmarks.runner import Cell, Run
from benchmarks.sizes import Sizes
from benchmarks.summary import Summary

SVG = "{http://www.w3.org/2000/svg}"


def summary(cells: dict[str, dict[str, list[dict[str, float]]]]) -> Summary:
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    return Summary(
        Run(
            taken="2026-01-01 00:00:00 +0000",
            facts=dict.fromkeys(("cpu", "system", "python", "commit"), "a <thing> & another"),
            versions=dict.fromkeys(names, "1"),
            sizes=Sizes(),
            repeats=2,
            load_before="",
            cells={
                question: {name: Cell(answers=answers) for name, answers in row.items()}
                for question, row in cells.items()
            },
        )
    )


RATE = {"submit_us": 1.0}
NOOP = {
    "taskloom": [{"rate": 100.0, **RATE}, {"rate": 100.0, **RATE}],
    "ppe": [{"rate": 10.0, **RATE}, {"rate": 30.0, **RATE}],
}
LATENCY = {
    "taskloom": [{"p50": 50.0, "p99": 60.0}],
    "floor": [{"p50": 25.0, "p99": 60.0}],
}


def test_who_has_a_fifth_of_the_rate_is_five_times_worse_within_his_spread():
    (row,) = rows(summary({"noop": NOOP}))

    (point,) = row.points
    assert (point.at, point.low, point.high) == (5.0, pytest.approx(100 / 30), 10.0)
    assert row.own == (1.0, 1.0)


def test_who_needs_half_the_time_is_left_of_taskloom():
    row = rows(summary({"get_latency": LATENCY}))[0]

    assert row.points[0].at == 0.5


def test_what_only_taskloom_can_answer_has_no_row():
    assert not rows(summary({"noop": {"taskloom": NOOP["taskloom"]}}))


def test_an_answer_of_zero_has_no_place_on_a_logarithmic_axis():
    idle = {name: [{"rate": 0.0, "processes": 4.0}] for name in ("taskloom", "ppe")}

    assert not rows(summary({"idle": idle}))


def test_a_run_in_which_nothing_can_be_compared_is_an_error():
    with pytest.raises(ValueError, match="nothing in these results"):
        svg(summary({"noop": {"taskloom": NOOP["taskloom"]}}))


def test_the_picture_is_xml_with_a_mark_for_each_number_in_the_order_of_the_values():
    picture = ElementTree.fromstring(svg(summary({"noop": NOOP, "get_latency": LATENCY})))

    said = [title.text for title in picture.iter(f"{SVG}title")]
    assert said[-3:] == [
        "ProcessPoolExecutor: taskloom is 5.00 x better",
        "bare floor: taskloom is 2.00 x worse",
        "bare floor: taskloom is 1.00 x better",
    ]
    (_, ppe) = picture.iter(f"{SVG}circle")  # the legend's, and the number's
    floor = list(picture.iter(f"{SVG}polygon"))[1]
    assert float(floor.attrib["points"].split(",")[0]) < float(ppe.attrib["cx"])
    assert "a <thing> & another" in list(picture.iter(f"{SVG}text"))[-1].text
