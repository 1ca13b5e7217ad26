"""What a session may say about memory, and how it is checked."""

from __future__ import annotations

import pytest

from taskloom._config import make_config
from taskloom._memory_settings import MemorySettings, read_memory_settings

NOBODY = {}.get


def test_the_defaults_are_those_of_ray_but_for_the_retries():
    settings = make_config(num_cpus=1).memory_monitor
    assert settings == MemorySettings(usage_threshold=0.95, refresh_s=0.25, task_oom_retries=3)


def test_a_session_may_say_it_as_in_ray():
    config = make_config(
        _system_config={
            "memory_usage_threshold": 0.5,
            "memory_monitor_refresh_ms": 100,
            "task_oom_retries": -1,
        }
    )
    expected = MemorySettings(usage_threshold=0.5, refresh_s=0.1, task_oom_retries=-1)
    assert config.memory_monitor == expected


@pytest.mark.parametrize(
    "name",
    [
        "TASKLOOM_MEMORY_USAGE_THRESHOLD",
        "RAY_MEMORY_USAGE_THRESHOLD",
        "RAY_memory_usage_threshold",
    ],
)
def test_the_environment_may_say_it(monkeypatch, name):
    monkeypatch.setenv(name, "0.7")
    assert make_config().memory_monitor.usage_threshold == 0.7


def test_what_init_says_counts_more_than_the_environment(monkeypatch):
    monkeypatch.setenv("TASKLOOM_TASK_OOM_RETRIES", "9")
    config = make_config(_system_config={"task_oom_retries": 1})
    assert config.memory_monitor.task_oom_retries == 1


def test_zero_milliseconds_turn_the_monitor_off():
    settings = read_memory_settings({"memory_monitor_refresh_ms": 0}, NOBODY)
    assert settings.refresh_s == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_usage_threshold", 0),
        ("memory_usage_threshold", 1.01),
        ("memory_usage_threshold", -0.5),
        ("memory_usage_threshold", float("nan")),
        ("memory_monitor_refresh_ms", -1),
        ("memory_monitor_refresh_ms", float("inf")),
        ("task_oom_retries", -2),
        ("task_oom_retries", 1.5),
        ("task_oom_retries", float("inf")),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"_system_config\['{name}'\] must be"):
        make_config(_system_config={name: value})
    with pytest.raises(ValueError, match=f"the variable TASKLOOM_{name.upper()} must be"):
        read_memory_settings({}, {name.upper(): str(value)}.get)


@pytest.mark.parametrize("value", ["0.5", None, True, [1]])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="memory_usage_threshold.* must be a number"):
        make_config(_system_config={"memory_usage_threshold": value})


def test_a_variable_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("TASKLOOM_TASK_OOM_RETRIES", "many")
    with pytest.raises(ValueError, match=r"TASKLOOM_TASK_OOM_RETRIES must be a number.*'many'"):
        make_config()


def test_a_system_config_that_is_no_dict_is_refused():
    with pytest.raises(TypeError, match="_system_config must be a dict"):
        make_config(_system_config="memory_usage_threshold=0.5")


def test_what_else_the_system_config_says_is_accepted_and_logged(caplog):
    caplog.set_level("DEBUG", "taskloom")
    make_config(_system_config={"memory_usage_threshold": 0.9})
    assert not caplog.records
    make_config(_system_config={"memory_usage_threshold": 0.9, "other": 1})
    assert "_system_config" in caplog.text
