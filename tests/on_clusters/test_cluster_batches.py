"""Many short calls in one task of the cluster: nothing of it may be seen but its speed."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import pytest
from tests.on_clusters.conftest import LONG_S, ON_RAY

import taskloom
from taskloom import _current
from taskloom.backends import cluster_batches
from taskloom.exceptions import TaskCancelledError, WorkerCrashedError


@pytest.fixture(autouse=True)
def _session(cluster, monkeypatch):
    """All tests here run on both, and on a busy machine: there a call that does nothing takes
    some milliseconds now and then, and is short all the same."""
    monkeypatch.setattr(cluster_batches, "SHORT_S", 1.0)
    monkeypatch.setattr(cluster_batches, "BATCH_S", 1.0)


@pytest.fixture
def batches(monkeypatch):
    """The numbers of calls that went together, one for each task that carried some."""
    driver = _current.peek().driver
    sizes = []
    send = driver.run_many

    def run_many(number, specs, batch):
        import pickle

        sizes.append(len(pickle.loads(batch)))
        return send(number, specs, batch)

    monkeypatch.setattr(driver, "run_many", run_many)
    return sizes


def known_as_short(function, *args):
    """Let the session see that a function is short."""
    for _ in range(4):
        taskloom.get(function.remote(*args))


@taskloom.remote
def double(n):
    return 2 * n


def test_short_calls_go_together_and_each_gets_its_own_value(batches):
    known_as_short(double, 1)
    assert taskloom.get([double.remote(n) for n in range(2000)]) == [2 * n for n in range(2000)]
    assert sum(batches) > 1500
    assert len(batches) < 400


def test_a_function_of_which_nothing_is_known_goes_alone(batches):
    @taskloom.remote
    def fresh(n):
        return n

    assert taskloom.get([fresh.remote(n) for n in range(3)]) == [0, 1, 2]
    assert batches == []


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": 0.5}, {"resources": {"slot": 0.1}}, {"max_retries": 0}, {"timeout": 10}],
)
def test_calls_with_wishes_of_their_own_go_alone(batches, options):
    special = double.options(**options)
    known_as_short(double, 1)
    assert taskloom.get([special.remote(n) for n in range(20)]) == [2 * n for n in range(20)]
    assert batches == []


def test_calls_that_use_the_session_go_alone(batches):
    @taskloom.remote
    def uses():
        return taskloom.put(1)

    known_as_short(uses)
    taskloom.get([uses.remote() for _ in range(20)])
    assert batches == []


def test_an_error_is_that_of_its_own_call(batches):
    @taskloom.remote
    def odd(n):
        if n % 2:
            raise KeyError(n)
        return n

    known_as_short(odd, 2)
    refs = [odd.remote(n) for n in range(200)]
    for n, ref in enumerate(refs):
        if n % 2:
            with pytest.raises(KeyError, match=str(n)):
                taskloom.get(ref)
        else:
            assert taskloom.get(ref) == n
    assert batches


def test_a_tree_of_short_calls_is_right_and_its_calls_go_together(batches):
    @taskloom.remote
    def add(a, b):
        return a + b

    known_as_short(add, 1, 1)
    refs = [add.remote(n, n) for n in range(256)]
    while len(refs) > 1:
        refs = [add.remote(*refs[n : n + 2]) for n in range(0, len(refs), 2)]
    assert taskloom.get(refs[0]) == 2 * sum(range(256))
    assert max(batches) > 5


def test_dependents_of_a_failed_short_call_fail_with_its_error(batches):
    @taskloom.remote
    def check(n):
        if n < 0:
            raise ValueError("negative")
        return n

    known_as_short(check, 1)
    fine = [check.remote(n) for n in range(100)]
    ref = check.remote(check.remote(check.remote(-1)))
    with pytest.raises(ValueError, match="negative"):
        taskloom.get(ref)
    assert taskloom.get(fine) == list(range(100))


def test_a_call_that_turns_out_long_holds_nobody_up(tmp_path, batches):
    gate = str(tmp_path / "gate")

    @taskloom.remote
    def wait(path):
        while path and not os.path.exists(path):
            time.sleep(0.01)
        return path

    known_as_short(wait, "")
    refs = [wait.remote(gate if n == 30 else "") for n in range(400)]
    others = refs[:30] + refs[31:]
    _, rest = taskloom.wait(others, num_returns=len(others), timeout=LONG_S)
    assert rest == []
    assert taskloom.wait([refs[30]], timeout=0)[0] == []
    open(gate, "w").close()
    assert taskloom.get(refs[30], timeout=LONG_S) == gate
    assert batches


def test_a_value_that_turns_out_large_is_an_object_of_the_cluster(batches):
    @taskloom.remote
    def make(size):
        return bytes(size)

    known_as_short(make, 1)
    refs = [make.remote(500_000 if n == 50 else 1) for n in range(200)]
    assert [len(value) for value in taskloom.get(refs)] == [
        500_000 if n == 50 else 1 for n in range(200)
    ]


def test_a_ref_of_a_call_that_waits_can_travel(batches):
    known_as_short(double, 1)

    @taskloom.remote
    def read(box):
        return taskloom.get(box)

    refs = [double.remote(n) for n in range(300)]
    assert taskloom.get(read.remote(refs)) == [2 * n for n in range(300)]
    boxed = taskloom.put([double.remote(n) for n in range(300)])
    assert taskloom.get(taskloom.get(boxed)) == [2 * n for n in range(300)]


def test_a_call_that_is_cancelled_while_it_waits_never_runs(tmp_path):
    @taskloom.remote
    def write(path):
        if path:
            open(path, "w").close()

    @taskloom.remote
    def occupy(path):
        while path and not os.path.exists(path):
            time.sleep(0.01)

    known_as_short(write, "")
    gate, mark = str(tmp_path / "gate"), str(tmp_path / "mark")
    busy = [occupy.remote(gate) for _ in range(2)]  # both CPUs
    fill = [write.remote("") for _ in range(6)]  # what the cluster has got already
    late = write.remote(mark)
    taskloom.cancel(late)
    with pytest.raises(TaskCancelledError):
        taskloom.get(late, timeout=LONG_S)
    open(gate, "w").close()
    taskloom.get([*busy, *fill], timeout=LONG_S)
    assert taskloom.get([write.remote("") for _ in range(50)], timeout=LONG_S) == [None] * 50


def test_a_worker_that_dies_costs_the_others_nothing(tmp_path, batches):
    marks = str(tmp_path)

    @taskloom.remote(max_retries=1)
    def step(n, poison):
        if n == poison:
            with open(os.path.join(marks, "died"), "a") as file:
                file.write("x")
            os._exit(1)
        return n

    known_as_short(step, 0, -1)
    refs = [step.remote(n, 150) for n in range(300)]
    for n, ref in enumerate(refs):
        if n == 150:
            with pytest.raises(WorkerCrashedError):
                taskloom.get(ref, timeout=LONG_S)
        else:
            assert taskloom.get(ref, timeout=LONG_S) == n
    assert (tmp_path / "died").read_text() == "xx"
    assert batches


@ON_RAY
def test_the_short_calls_of_a_batch_begin_in_the_order_of_their_submission():
    @taskloom.remote
    def stamp():
        import ray

        return time.monotonic(), ray.get_runtime_context().get_task_id()

    known_as_short(stamp)
    found = taskloom.get([stamp.remote() for _ in range(500)])
    batches = {batch for _, batch in found}
    assert len(batches) < 500
    for batch in batches:  # which of them begins first is Ray's business
        mine = [at for at, other in found if other == batch]
        assert all(a <= b for a, b in pairwise(mine))
