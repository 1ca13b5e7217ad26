"""Short calls that go together: what is decided without any cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from taskloom.backends.cluster_batches import Batches, _Batch
from taskloom.backends.cluster_calls import Call


def test_calls_that_two_batches_hand_back_keep_the_order_of_their_submission():
    spec: Any = SimpleNamespace(num_returns=1)
    calls = [Call(task, spec) for task in range(12)]
    running = {call.task: call for call in calls}
    home: Any = SimpleNamespace(calls=SimpleNamespace(running=running), driver=None)
    batches = Batches(home)
    batches._queue.extend(calls[8:])

    batches._send_again(_Batch(1, calls[:4]), begun=2)
    batches._send_again(_Batch(2, calls[4:8]), begun=1)

    assert [call.task for call in batches._queue] == [2, 3, 5, 6, 7, 8, 9, 10, 11]
