"""What ``init(address)`` and ``TASKLOOM_ADDRESS`` may say."""

from __future__ import annotations

import math
import socket

import pytest

from taskloom.backends._addresses import (
    check_connect_timeout,
    parse_address,
    refuse_local_arguments,
)
from taskloom.backends.cluster_connect import knock, load_extra


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("TASKLOOM_ADDRESS", raising=False)


def test_none_and_local_mean_the_engine_in_this_process(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")  # a cluster of Ray's is not ours
    assert parse_address(None).kind == "local"
    assert parse_address("local").kind == "local"


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("ray://head:10001", "ray", "head:10001"),
        ("ray://head", "ray", "head:10001"),
        ("ray+gcs://10.0.0.1:6380", "ray", "10.0.0.1:6380"),
        ("ray+gcs://head", "ray", "head:6379"),
        ("dask://head", "dask", "head:8786"),
        ("dask+tls://head:1", "dask", "head:1"),
        ("ray://[::1]:10001", "ray", "[::1]:10001"),
        ("dask://[fe80::1]", "dask", "[fe80::1]:8786"),
    ],
)
def test_an_address_of_a_running_cluster_is_taken_apart(text, kind, place):
    address = parse_address(text)
    assert (address.kind, address.place, address.is_running) == (kind, place, True)
    assert address.scheme == text.partition("://")[0]


@pytest.mark.parametrize("text", ["ray", "dask"])
def test_a_bare_name_is_a_cluster_that_is_started_or_found(text):
    address = parse_address(text)
    assert (address.kind, address.is_running) == (text, False)


def test_the_environment_counts_where_no_address_is_given(monkeypatch):
    monkeypatch.setenv("TASKLOOM_ADDRESS", "dask://head:1234")
    assert parse_address(None).place == "head:1234"
    assert parse_address("local").kind == "local"


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:6379", "http://host:1", "ray:", "ray://", "ray://host:", "ray://host:0",
        "ray://host:65536", "ray://host:ten", "ray://host:1/path", "ray://user@host:1",
        "ray://::1:10001", "ray://[::1", "ray://[::1]x", "Ray", "", "dask+tcp://host:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_text_that_says_where(text, monkeypatch):
    with pytest.raises(ValueError, match="address"):
        parse_address(text)
    if text:
        monkeypatch.setenv("TASKLOOM_ADDRESS", text)
        with pytest.raises(ValueError, match="TASKLOOM_ADDRESS"):
            parse_address(None)


def test_auto_and_other_types_are_refused():
    with pytest.raises(ConnectionError, match="auto"):
        parse_address("auto")
    with pytest.raises(TypeError, match="address"):
        parse_address(6379)


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "resources", "object_store_memory"])
def test_a_running_cluster_has_its_resources_already(name):
    with pytest.raises(ValueError, match=f"existing cluster, {name} must not be provided"):
        refuse_local_arguments(parse_address("ray://host:1"), {name: 1})
    refuse_local_arguments(parse_address("ray"), {name: 1})
    refuse_local_arguments(parse_address("ray://host:1"), {name: None})


def test_a_cluster_is_no_debugger():
    with pytest.raises(ValueError, match="local_mode"):
        refuse_local_arguments(parse_address("dask"), {"local_mode": True})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("1", TypeError),
        (True, TypeError),
        (0, ValueError),
        (-1, ValueError),
        (math.inf, ValueError),
    ],
)
def test_connect_timeout_is_a_number_of_seconds(value, error):
    with pytest.raises(error, match="connect_timeout"):
        check_connect_timeout(value)


def test_connect_timeout_is_ten_seconds_by_default():
    assert check_connect_timeout(None) == 10
    assert check_connect_timeout(3) == 3


def test_an_address_at_which_nobody_listens_is_one_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # it does not listen
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"'ray://127.0.0.1:{port}'.*127.0.0.1:{port}"):
            knock(parse_address(f"ray://127.0.0.1:{port}"), 5)


def test_a_host_that_does_not_exist_is_one_clear_error():
    with pytest.raises(ConnectionError, match=r"dask://nowhere\.invalid"):
        knock(parse_address("dask://nowhere.invalid:1"), 5)


def test_the_time_that_is_left_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert 0 < knock(parse_address(f"ray://127.0.0.1:{port}"), 5) <= 5


def test_a_missing_library_is_named_with_the_way_to_install_it():
    with pytest.raises(ImportError, match=r"pip install 'taskloom\[ray\]'"):
        load_extra("no_such_library_of_rays", "ray")
