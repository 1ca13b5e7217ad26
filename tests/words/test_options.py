"""Options of tasks: what is accepted, what is refused and with which error."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom._ids import MAX_RETURNS
from taskloom._options import (
    TASK_OPTIONS,
    UNITS_PER_RESOURCE,
    check_pauses,
    count_returns,
    default_max_retries,
    from_units,
    make_request,
    option_value,
    stream_limit,
    to_units,
    validate_task_options,
)
from taskloom.exceptions import RayDeprecationWarning


class NodeAffinitySchedulingStrategy:
    """Named like Ray's."""


GOOD = {
    "num_cpus": [None, 0, 1, 0.5, 2.5, 0.0001, 1 / 3],
    "num_gpus": [None, 0, 0.5, 1, 2, 2.0],
    "memory": [None, 0, 10**12, 1.5e9],
    "resources": [None, {}, {"db": 1, "disk": 0.5}],
    "name": [None, "x"],
    "num_returns": [None, 0, 1, 5, MAX_RETURNS, "streaming"],
    "max_retries": [None, -1, 0, 3],
    "retry_exceptions": [True, False, [ValueError], (ValueError, OSError), []],
    "priority": [0, -5, 10],
    "timeout": [None, 0.001, 1, 1e12],
    "retry_delay": [None, 0, 0.5, 1e12],
    "retry_backoff": [None, 1, 2.5],
    "retry_jitter": [None, 0, 0.3, 1],
    "max_calls": [None, 0],
    "runtime_env": [None, {}],
    "scheduling_strategy": [None, "DEFAULT", "SPREAD"],
    "object_store_memory": [None],
    "accelerator_type": [None, "A100"],
    "label_selector": [None, {"a": "b"}],
    "fallback_strategy": [None, [{}]],
    "enable_task_events": [True, False],
    "placement_group": [None, "default"],
    "placement_group_bundle_index": [-1],
    "placement_group_capture_child_tasks": [None, True],
    "_labels": [None, {"a": "b"}],
    "backpressure": [None, -1, 1, 100],
    "_generator_backpressure_num_objects": [None, -1, 1],
    "_num_objects_per_yield": [1],
}
BAD = [
    ("num_cpus", "1", TypeError),
    ("num_cpus", -1, ValueError),
    ("num_cpus", 0.00001, ValueError),
    ("num_cpus", math.nan, ValueError),
    ("num_cpus", math.inf, ValueError),
    ("num_gpus", [1], TypeError),
    ("num_gpus", -0.5, ValueError),
    ("num_gpus", 1.5, ValueError),
    ("memory", "1GB", TypeError),
    ("memory", -1, ValueError),
    ("resources", ["db"], TypeError),
    ("resources", {1: 1}, TypeError),
    ("resources", {"db": "1"}, TypeError),
    ("resources", {"db": None}, TypeError),
    ("resources", {"db": -1}, ValueError),
    ("resources", {"db": 0.00001}, ValueError),
    ("resources", {"": 1}, ValueError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {"GPU": 1}, ValueError),
    ("resources", {"memory": 1}, ValueError),
    ("name", 5, TypeError),
    ("num_returns", 1.0, TypeError),
    ("num_returns", "many", TypeError),
    ("num_returns", -1, ValueError),
    ("num_returns", MAX_RETURNS + 1, ValueError),
    ("max_retries", 1.5, TypeError),
    ("max_retries", -2, ValueError),
    ("retry_exceptions", ValueError, TypeError),
    ("retry_exceptions", None, TypeError),
    ("retry_exceptions", [ValueError, 5], ValueError),
    ("retry_exceptions", [KeyboardInterrupt], ValueError),
    ("priority", "high", TypeError),
    ("priority", None, TypeError),
    ("timeout", "1", TypeError),
    ("timeout", True, TypeError),
    ("timeout", 0, ValueError),
    ("timeout", 10**400, ValueError),
    ("retry_delay", 10**400, ValueError),
    ("retry_backoff", 10**400, ValueError),
    ("timeout", -1, ValueError),
    ("timeout", math.nan, ValueError),
    ("timeout", math.inf, ValueError),
    ("retry_delay", "1", TypeError),
    ("retry_delay", True, TypeError),
    ("retry_delay", -0.1, ValueError),
    ("retry_delay", math.nan, ValueError),
    ("retry_delay", math.inf, ValueError),
    ("retry_backoff", [2], TypeError),
    ("retry_backoff", False, TypeError),
    ("retry_backoff", 0.9, ValueError),
    ("retry_backoff", math.nan, ValueError),
    ("retry_backoff", math.inf, ValueError),
    ("retry_jitter", "some", TypeError),
    ("retry_jitter", True, TypeError),
    ("retry_jitter", -0.1, ValueError),
    ("retry_jitter", 1.1, ValueError),
    ("retry_jitter", math.nan, ValueError),
    ("max_calls", "1", TypeError),
    ("max_calls", -1, ValueError),
    ("max_calls", 1, NotImplementedError),
    ("runtime_env", "env", TypeError),
    ("runtime_env", {"env_vars": {"A": "1"}}, NotImplementedError),
    ("scheduling_strategy", "FASTEST", ValueError),
    ("scheduling_strategy", 5, TypeError),
    ("scheduling_strategy", NodeAffinitySchedulingStrategy(), NotImplementedError),
    ("object_store_memory", 5, ValueError),
    ("object_store_memory", "5", TypeError),
    ("accelerator_type", 5, TypeError),
    ("label_selector", "a", TypeError),
    ("fallback_strategy", {}, TypeError),
    ("enable_task_events", 1, TypeError),
    ("placement_group", object(), NotImplementedError),
    ("placement_group_bundle_index", 0, NotImplementedError),
    ("placement_group_bundle_index", None, TypeError),
    ("placement_group_capture_child_tasks", "yes", TypeError),
    ("_labels", "a", TypeError),
    ("backpressure", 0, ValueError),
    ("backpressure", -2, ValueError),
    ("backpressure", 1.0, TypeError),
    ("_generator_backpressure_num_objects", 0, ValueError),
    ("_generator_backpressure_num_objects", "1", TypeError),
    ("_num_objects_per_yield", 2, NotImplementedError),
    ("_num_objects_per_yield", "2", TypeError),
]


def check(**options):
    return validate_task_options(options, in_options_call=False)


@pytest.mark.parametrize(("name", "values"), GOOD.items())
def test_good_values_are_accepted(name, values):
    for value in values:
        assert name in check(**{name: value})


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_bad_values_are_refused_by_name(name, value, error):
    with pytest.raises(error) as caught:
        check(**{name: value})
    text = str(caught.value)
    if name == "resources":
        assert "resource" in text
    else:
        assert name in text


def test_every_option_has_good_and_bad_values_here():
    assert set(GOOD) == set(TASK_OPTIONS)
    assert {name for name, _, _ in BAD} == set(TASK_OPTIONS)


def test_defaults_are_good_values_themselves():
    for name, option in TASK_OPTIONS.items():
        check(**{name: option.default})


def test_what_shapes_a_pause_needs_one():
    for name in ("retry_backoff", "retry_jitter"):
        with pytest.raises(ValueError, match=f"'{name}' needs 'retry_delay'"):
            check_pauses({name: 1})
        check_pauses({name: 1, "retry_delay": 0})
        check_pauses({name: None})


def test_a_wrong_type_is_told_in_rays_words():
    with pytest.raises(TypeError, match="The type of keyword 'num_cpus' must be"):
        check(num_cpus="two")


@pytest.mark.parametrize("name", ["num_cpu", "time_out", "retry_delays", "max_restarts"])
def test_an_unknown_option_is_refused_with_the_list_of_all(name):
    with pytest.raises(ValueError) as caught:
        check(**{name: 1})
    assert f"Invalid option keyword {name} for remote functions. Valid ones are [" in str(
        caught.value
    )
    assert "'num_cpus'" in str(caught.value)


def test_reserved_resources_point_to_the_right_option():
    with pytest.raises(ValueError, match="Use the 'num_cpus' and 'num_gpus' keyword instead"):
        check(resources={"CPU": 1})


def test_max_calls_belongs_to_the_decorator():
    with pytest.raises(ValueError, match="'max_calls' is not supported in '.options"):
        validate_task_options({"max_calls": 0}, in_options_call=True)


def test_a_placement_group_and_a_strategy_contradict():
    with pytest.raises(ValueError, match="placement_group option is deprecated"):
        check(placement_group=object(), scheduling_strategy="SPREAD")


def test_hints_for_clusters_leave_one_debug_line(caplog):
    with caplog.at_level(logging.DEBUG, logger="taskloom"):
        check(accelerator_type="A100", num_cpus=1)
        check(accelerator_type=None)
    assert len(caplog.records) == 1
    assert "accelerator_type='A100'" in caplog.text


# -- what comes back ------------------------------------------------------------------------------


def test_options_of_the_decorator_are_completed():
    assert check(num_cpus=2) == {
        "num_cpus": 2,
        "max_retries": 3,
        "retry_exceptions": False,
        "priority": 0,
    }
    assert check(max_retries=None)["max_retries"] == 3
    assert check(retry_exceptions=[ValueError])["retry_exceptions"] == (ValueError,)


def test_options_of_a_call_are_only_what_was_given():
    given_options = {"retry_exceptions": [ValueError], "max_retries": None}
    assert validate_task_options({}, in_options_call=True) == {}
    assert validate_task_options(given_options, in_options_call=True) == {
        "retry_exceptions": (ValueError,),
        "max_retries": 3,
    }
    assert given_options == {"retry_exceptions": [ValueError], "max_retries": None}


def test_the_default_of_max_retries_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("TASKLOOM_TASK_MAX_RETRIES", raising=False)
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "7")
    assert default_max_retries() == 7
    monkeypatch.setenv("TASKLOOM_TASK_MAX_RETRIES", "-1")
    assert option_value({}, "max_retries") == -1
    assert option_value({"max_retries": 0}, "max_retries") == 0
    for wrong in ("-2", "many"):
        monkeypatch.setenv("TASKLOOM_TASK_MAX_RETRIES", wrong)
        with pytest.raises(ValueError, match="TASKLOOM_TASK_MAX_RETRIES"):
            default_max_retries()


# -- how many results -----------------------------------------------------------------------------


def test_the_number_of_results():
    assert count_returns(None, is_generator=False) == 1
    assert count_returns(0, is_generator=False) == 0
    assert count_returns(3, is_generator=True) == 3


@pytest.mark.parametrize("stream", ["streaming", "dynamic"])
@pytest.mark.filterwarnings("ignore::taskloom.exceptions.RayDeprecationWarning")
def test_streams_are_for_generator_functions(stream):
    with pytest.raises(ValueError, match="generator"):
        count_returns(stream, is_generator=False)
    with pytest.raises(ValueError, match="generator"):
        validate_task_options({"num_returns": stream}, in_options_call=True, is_generator=False)
    assert count_returns(stream, is_generator=True) == 1
    assert stream_limit({"num_returns": stream}, is_generator=True) == 0


def test_a_generator_without_a_number_is_a_stream_and_with_one_is_none():
    assert stream_limit({}, is_generator=True) == 0
    assert stream_limit({"num_returns": None}, is_generator=True) == 0
    assert stream_limit({"num_returns": 2}, is_generator=True) is None
    assert stream_limit({}, is_generator=False) is None


def test_the_limit_of_a_stream_has_two_names_and_one_value():
    for name in ("backpressure", "_generator_backpressure_num_objects"):
        assert stream_limit({name: 3}, is_generator=True) == 3
        assert stream_limit({name: -1}, is_generator=True) == 0
    both = {"backpressure": 3, "_generator_backpressure_num_objects": 3}
    assert stream_limit(both, is_generator=True) == 3
    with pytest.raises(ValueError, match="the same option"):
        stream_limit({**both, "backpressure": 4}, is_generator=True)


def test_a_limit_without_a_stream_is_refused():
    with pytest.raises(ValueError, match="streams"):
        stream_limit({"backpressure": 3}, is_generator=False)
    with pytest.raises(ValueError, match="streams"):
        stream_limit({"backpressure": 3, "num_returns": 2}, is_generator=True)


def test_the_deprecated_kind_of_stream_warns_at_the_line_that_asks_for_it_GEN_9():
    with pytest.warns(RayDeprecationWarning, match="streaming") as caught:
        check(num_returns="dynamic")
    assert caught[0].filename == __file__


# -- what a call asks for -------------------------------------------------------------------------


def test_a_function_asks_for_one_cpu_and_a_coroutine_for_none():
    assert make_request({}, is_coroutine=False) == (("CPU", 10_000),)
    assert make_request({}, is_coroutine=True) == ()
    assert make_request({"num_cpus": 0.5}, is_coroutine=True) == (("CPU", 5_000),)


def test_a_request_is_sorted_and_has_no_zeros():
    options = {
        "num_cpus": 0,
        "num_gpus": 2,
        "memory": 10.9,
        "resources": {"zebra": 1, "apple": 0.5, "none": 0},
    }
    assert make_request(options, is_coroutine=False) == (
        ("GPU", 20_000),
        ("apple", 5_000),
        ("memory", 100_000),
        ("zebra", 10_000),
    )


def test_a_coroutine_cannot_have_gpus():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        make_request({"num_gpus": 1}, is_coroutine=True)
    make_request({"num_gpus": 0}, is_coroutine=True)


@given(st.integers(1, 1000))
def test_n_nths_always_fit_into_one(n):
    assert n * to_units(1 / n) <= UNITS_PER_RESOURCE


@given(st.integers(0, 10**9))
def test_units_survive_the_way_through_a_float(units):
    assert to_units(from_units(units)) == units
