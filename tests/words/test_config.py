"""Arguments of init, the environment and the machine, made into one Config."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest

from taskloom import _config
from taskloom._config import (
    MAX_OBJECT_STORE_BYTES,
    MIN_OBJECT_STORE_BYTES,
    env,
    env_flag,
    make_config,
)
from taskloom._machine import find_gpus, usable_cpus, usable_memory_bytes

RAY_ARGUMENTS = [
    "num_cpus",
    "num_gpus",
    "resources",
    "labels",
    "object_store_memory",
    "local_mode",
    "include_dashboard",
    "dashboard_host",
    "dashboard_port",
    "job_config",
    "configure_logging",
    "logging_level",
    "logging_format",
    "logging_config",
    "log_to_driver",
    "namespace",
    "runtime_env",
    "enable_resource_isolation",
    "cgroup_path",
    "system_reserved_cpu",
    "system_reserved_memory",
    "proxy_server_url",
    "object_spilling_directory",
    "_temp_dir",
    "_memory",
    "_system_config",
    "_plasma_directory",
    "_node_name",
    "_metrics_export_port",
    "_tracing_startup_hook",
    "_enable_object_reconstruction",
]
FLAGS = ("local_mode", "configure_logging", "enable_resource_isolation")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("TASKLOOM_", "RAY_", "CUDA_")) and name != "TASKLOOM_TEST_TAG":
            monkeypatch.delenv(name)


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_ARGUMENTS)
def test_every_argument_of_ray_is_accepted(name):
    make_config(**{name: False if name in FLAGS else None})


def test_arguments_for_clusters_leave_one_debug_line_each(caplog):
    with caplog.at_level(logging.DEBUG, logger="taskloom"):
        make_config(dashboard_port=8265, _system_config={"a": 1}, include_dashboard=None)
    assert len(caplog.records) == 2
    assert "dashboard_port=8265" in caplog.text


def test_an_unknown_argument_is_named():
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\): num_cpu, _x"):
        make_config(num_cpu=2, _x=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"num_cpus": "2"}, TypeError),
        ({"num_cpus": True}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": math.nan}, ValueError),
        ({"num_cpus": math.inf}, ValueError),
        ({"num_gpus": -1}, ValueError),
        ({"num_gpus": "0"}, TypeError),
        ({"resources": ["db"]}, TypeError),
        ({"resources": {1: 1}}, TypeError),
        ({"resources": {"db": "1"}}, TypeError),
        ({"resources": {"db": None}}, TypeError),
        ({"resources": {"db": -1}}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"GPU": 1}}, ValueError),
        ({"labels": {"a": 1}}, TypeError),
        ({"labels": "a"}, TypeError),
        ({"object_store_memory": "1GB"}, TypeError),
        ({"object_store_memory": 0}, ValueError),
        ({"_memory": -1}, ValueError),
        ({"_temp_dir": 5}, TypeError),
        ({"object_spilling_directory": 5}, TypeError),
        ({"local_mode": "yes"}, TypeError),
        ({"log_to_driver": 1}, TypeError),
        ({"namespace": 5}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError),
        ({"preload": "numpy"}, TypeError),
        ({"preload": 5}, TypeError),
        ({"preload": ["not a module"]}, ValueError),
        ({"idle_worker_timeout": -1}, ValueError),
        ({"idle_worker_timeout": "1"}, TypeError),
        ({"max_extra_workers": -1}, ValueError),
        ({"max_extra_workers": 1.5}, TypeError),
        ({"await_cancels": 1}, TypeError),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error):
    with pytest.raises(error) as caught:
        make_config(**arguments)
    (name,) = arguments
    assert name in str(caught.value)


def test_given_arguments_are_kept():
    config = make_config(
        num_cpus=0.5,
        resources={"db": 1},
        labels={"a": "b"},
        object_store_memory=10**8,
        _memory=10**9,
        _temp_dir=Path("somewhere"),
        namespace="n",
        log_to_driver=False,
        local_mode=True,
        preload=["numpy", "a.b"],
        idle_worker_timeout=5,
        max_extra_workers=0,
        await_cancels=False,
    )
    assert (config.num_cpus, config.resources, config.labels) == (0.5, {"db": 1}, {"a": "b"})
    assert (config.object_store_memory, config.memory) == (10**8, 10**9)
    assert (config.temp_dir, config.namespace) == ("somewhere", "n")
    assert (config.log_to_driver, config.local_mode) == (False, True)
    assert (config.preload, config.idle_worker_timeout) == (("numpy", "a.b"), 5)
    assert (config.max_extra_workers, config.await_cancels) == (0, False)


def test_defaults():
    config = make_config()
    assert config.num_cpus == usable_cpus()
    assert config.log_to_driver
    assert config.await_cancels
    assert not config.local_mode
    assert (config.idle_worker_timeout, config.max_extra_workers) == (60.0, 64)
    assert make_config(idle_worker_timeout=math.inf).idle_worker_timeout is None


def test_a_namespace_that_is_not_given_is_nobodys_else():
    assert make_config().namespace != make_config().namespace


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        make_config().num_cpus = 3


# -- the environment ------------------------------------------------------------------------------


def test_our_variables_win_over_rays(monkeypatch):
    assert env("NAMESPACE") is None
    monkeypatch.setenv("RAY_NAMESPACE", "ray's")
    assert make_config().namespace == "ray's"
    monkeypatch.setenv("TASKLOOM_NAMESPACE", "ours")
    assert make_config().namespace == "ours"
    assert make_config(namespace="given").namespace == "given"


@pytest.mark.parametrize(
    ("variable", "attribute", "default"),
    [
        ("LOG_TO_DRIVER", "log_to_driver", True),
        ("IGNORE_UNHANDLED_ERRORS", "ignore_unhandled_errors", False),
        ("WARN_BLOCKING_GET_INSIDE_ASYNC", "warn_blocking_get", True),
        ("COLOR_PREFIX", "color_prefix", None),
    ],
)
def test_variables_say_yes_or_no(variable, attribute, default, monkeypatch):
    assert getattr(make_config(), attribute) is default
    for text, value in [("1", True), ("true", True), ("0", False), ("Off", False)]:
        monkeypatch.setenv(f"RAY_{variable}", text)
        assert getattr(make_config(), attribute) is value
    monkeypatch.setenv(f"RAY_{variable}", "perhaps")
    with pytest.raises(ValueError, match=variable):
        make_config()


def test_the_prefix_of_log_lines_can_be_turned_off(monkeypatch):
    assert make_config().worker_log_prefix
    monkeypatch.setenv("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
    assert not make_config().worker_log_prefix
    assert env_flag("DISABLE_WORKER_LOG_PREFIX", default=False)


# -- the machine ----------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /proc and /sys/fs/cgroup: {file: text}; gives the arguments for both."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path / "proc"), str(tmp_path / "cgroup")

    return make


def test_affinity_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert usable_cpus() == 1
    assert make_config().num_cpus == 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": "0::/gone/x\n", "cgroup/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "9900000 100000"}, 8),
        ({"proc/self/cgroup": "0::/../..\n", "cgroup/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n0::/\n",
                "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_quota_of_containers_counts(machine, files, cpus):
    assert usable_cpus(*machine(files)) == cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 * 1024),
        ({"proc/self/cgroup": "0::/a\n", "cgroup/a/memory.max": "max\n"}, 1000 * 1024),
        ({"proc/self/cgroup": "0::/a\n", "cgroup/a/memory.max": "5000\n"}, 5000),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            },
            1000 * 1024,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "cgroup/memory/memory.limit_in_bytes": "7000\n",
            },
            7000,
        ),
    ],
)
def test_the_memory_limit_of_containers_counts(machine, files, expected):
    files = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n"} | files
    assert usable_memory_bytes(*machine(files)) == expected


def test_a_machine_that_tells_nothing_has_some_memory(machine):
    assert usable_memory_bytes(*machine({})) > 0


@pytest.mark.parametrize(
    ("memory", "store"),
    [
        (10 << 30, int((10 << 30) * 0.3)),
        (1 << 20, MIN_OBJECT_STORE_BYTES),
        (10 << 40, MAX_OBJECT_STORE_BYTES),
    ],
)
def test_the_store_takes_a_share_of_memory_within_bounds(memory, store, monkeypatch):
    monkeypatch.setattr(_config, "usable_memory_bytes", lambda: memory)
    assert make_config().object_store_memory == store


def test_gpus_are_those_of_the_driver_or_of_cuda(machine, monkeypatch):
    proc, _ = machine(
        {"proc/driver/nvidia/gpus/0000:01/information": "", "proc/driver/nvidia/gpus/0000:02/x": ""}
    )
    assert find_gpus(proc) == ("0", "1")
    assert find_gpus("/nowhere") == ()
    for text, ids in [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1, 3", ("1", "3")),
        ("0,-1,2", ("0",)),
        ("GPU-8932f937", ("GPU-8932f937",)),
    ]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert find_gpus(proc) == ids


def test_gpus_can_be_made_up_unless_cuda_says_which_there_are(monkeypatch):
    monkeypatch.setattr(_config, "find_gpus", lambda: ())
    assert make_config(num_gpus=2).gpu_ids == ("0", "1")
    assert make_config().num_gpus == 0
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert make_config().gpu_ids == ("4", "7")
    assert make_config(num_gpus=1).gpu_ids == ("4",)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        make_config(num_gpus=3)
