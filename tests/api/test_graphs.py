"""Large graphs: no recursion, no quadratic time."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest
from tests.gates import Gate
from tests.scale import scaled

from taskloom.exceptions import TaskCancelledError

LARGE = scaled(100_000)


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@pytest.fixture(autouse=True)
def no_garbage():
    yield
    gc.collect()


def test_a_chain_of_a_hundred_thousand_tasks(tl: ModuleType):
    step = tl.remote(lambda x: x + 1)
    limit = sys.getrecursionlimit()
    ref = step.remote(0)
    for _ in range(LARGE - 1):
        ref = step.remote(ref)

    assert tl.get(ref, timeout=110) == LARGE
    assert sys.getrecursionlimit() == limit


def test_an_error_runs_down_a_chain_of_a_hundred_thousand(tl, gate):
    def fail():
        gate.stay()
        raise KeyError("at the head")

    step = tl.remote(lambda x: x)
    ref = tl.remote(fail).remote()
    for _ in range(LARGE):
        ref = step.remote(ref)
    gate.open()

    with pytest.raises(KeyError) as raised:
        tl.get(ref, timeout=110)
    assert len(str(raised.value)) < 5000


def test_a_cancel_runs_down_a_chain_of_a_hundred_thousand(tl, gate):
    step = tl.remote(lambda x: x)
    head = ref = tl.remote(gate.enter).remote()
    for _ in range(LARGE):
        ref = step.remote(ref)
    gate.wait_for()
    tl.cancel(head)

    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=110)


def test_a_fan_out_and_a_fan_in_of_a_hundred_thousand(tl):
    one = tl.remote(lambda: 1).remote()
    same = tl.remote(lambda x: x)
    total = tl.remote(lambda *values: sum(values))

    assert tl.get(total.remote(*[same.remote(one) for _ in range(LARGE)]), timeout=110) == LARGE


def test_a_bipartite_graph_of_a_thousand_by_a_thousand(tl):
    left = [tl.remote(lambda n: n).remote(n) for n in range(1000)]
    total = tl.remote(lambda *values: sum(values))
    right = [total.remote(*left) for _ in range(1000)]

    assert tl.get(right, timeout=110) == [sum(range(1000))] * 1000


def test_a_graph_that_grows_while_it_runs(tl):
    @tl.remote
    def grow(n):
        import taskloom

        if n == 0:
            return 1
        children = [grow.options(num_cpus=0.1).remote(n - 1) for _ in range(2)]
        return sum(taskloom.get(children)) + 1

    assert tl.get(grow.remote(4), timeout=60) == 31


def test_a_diamond_runs_each_node_once(tl, gate):
    @tl.remote
    def node(name, *inputs):
        gate.note(name)
        return [name, *inputs]

    top = node.remote("top")
    left, right = node.remote("left", top), node.remote("right", top)

    assert tl.get(node.remote("bottom", left, right)) == [
        "bottom",
        ["left", ["top"]],
        ["right", ["top"]],
    ]
    assert [gate.count(name) for name in ("top", "left", "right", "bottom")] == [1, 1, 1, 1]


def test_a_tree_reduction(tl):
    add = tl.remote(lambda a, b: a + b)
    level = [tl.remote(lambda n: n).remote(n) for n in range(1024)]
    while len(level) > 1:
        level = [add.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]

    assert tl.get(level[0]) == sum(range(1024))


def test_lists_nested_a_thousand_deep_are_an_error_or_a_value(tl):
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((RecursionError, TypeError)):
        tl.put(deep)
    with pytest.raises((RecursionError, TypeError)):
        tl.remote(lambda x: 1).remote(deep)

    assert tl.get(tl.remote(lambda: 1).remote()) == 1
