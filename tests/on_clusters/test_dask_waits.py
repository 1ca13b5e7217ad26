"""The connection of a worker to its scheduler, which its threads share."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from taskloom.backends.dask_waits import is_connected


def test_a_connection_that_another_thread_is_making_is_waited_for():
    client = SimpleNamespace(status="connecting")
    other = threading.Timer(0.1, setattr, (client, "status", "running"))
    other.start()
    assert is_connected(client, 60)
    other.join()


def test_a_connection_that_is_gone_is_not_waited_for():
    assert not is_connected(SimpleNamespace(status="closed"), 1e9)


def test_a_connection_that_never_comes_is_given_up():
    assert not is_connected(SimpleNamespace(status="connecting"), 0.01)
