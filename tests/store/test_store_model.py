"""Random programs against a model: what is in the store is what somebody can reach."""

from __future__ import annotations

import gc
import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gates import eventually

SIZE = 150_000

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "nest", "result", "nested put", "pass", "drop", "drop", "view", "look away",
             "open", "kill"]
        ),
        st.integers(0, 1000),
    ),
    min_size=5,
    max_size=30,
)  # fmt: skip


class Held:
    """A ref or a view in the driver, and what the model says it keeps.

    ``keeps`` are the fill values of the large objects that it reaches; they are unique.
    """

    def __init__(self, thing: object, keeps: frozenset[int], inner: list[frozenset[int]]) -> None:
        self.thing = thing
        self.keeps = keeps
        self.inner = inner  # what each member keeps, when the value is a list of refs


@pytest.fixture
def tasks(tl):
    @tl.remote
    def make(fill):
        return np.full(SIZE, fill % 251, np.uint8)

    @tl.remote
    def make_nested(fills):
        return [tl.put(np.full(SIZE, fill % 251, np.uint8)) for fill in fills]

    @tl.remote
    def check(array, fill):
        return bool((array == fill % 251).all())

    @tl.remote(max_retries=0)
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    return make, make_nested, check, die


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(steps)
def test_the_store_holds_exactly_what_a_program_can_reach(tl, tasks, steps):
    make, make_nested, check, die = tasks
    refs: list[Held] = []
    views: list[Held] = []
    fills = iter(range(1, 10_000))
    for what, number in steps:
        chosen = refs[number % len(refs)] if refs else None
        if what == "put":
            fill = next(fills)
            value = np.full(SIZE, fill % 251, np.uint8)
            refs.append(Held(tl.put(value), frozenset({fill}), []))
        elif what == "result":
            fill = next(fills)
            refs.append(Held(make.remote(fill), frozenset({fill}), []))
        elif what == "nested put":
            pair = [next(fills), next(fills)]
            inner = [frozenset({fill}) for fill in pair]
            refs.append(Held(make_nested.remote(pair), frozenset(pair), inner))
        elif what == "nest" and refs:
            members = refs[number % len(refs) :][:3]
            keeps = frozenset().union(*(held.keeps for held in members))
            inner = [held.keeps for held in members]
            refs.append(Held(tl.put([held.thing for held in members]), keeps, inner))
            members.clear()
        elif what == "open" and chosen is not None and chosen.inner:
            opened = tl.get(chosen.thing)
            for ref, keeps in zip(opened, chosen.inner, strict=True):
                # What a member holds itself is not known here: it can be opened no further.
                refs.append(Held(ref, keeps, []))
            opened = ref = None
        elif what == "pass" and chosen is not None and not chosen.inner and len(chosen.keeps) == 1:
            [fill] = chosen.keeps
            try:
                assert tl.get(check.remote(chosen.thing, fill)) in (True, False)
            except ValueError:
                pass  # it is a list of refs that was found inside another one
        elif what == "drop" and refs:
            refs.pop(number % len(refs))
        elif what == "view" and chosen is not None and not chosen.inner:
            value = tl.get(chosen.thing)
            if isinstance(value, np.ndarray):
                [fill] = chosen.keeps
                assert (value == fill % 251).all()
                views.append(Held(value[1:], chosen.keeps, []))
            value = None
        elif what == "look away" and views:
            views.pop(number % len(views))
        elif what == "kill":
            with pytest.raises(tl.exceptions.WorkerCrashedError):
                tl.get(die.remote())
        chosen = None
    pending = list(dict.fromkeys(held.thing for held in refs))  # opened twice, it is there twice
    if pending:
        tl.wait(pending, num_returns=len(pending))
    pending.clear()
    reachable = frozenset().union(*(held.keeps for held in (*refs, *views)))
    expected = len(reachable) * -(-SIZE // 4096) * 4096
    assert eventually(lambda: gc.collect() >= 0 and tl.memory().used_bytes == expected), (
        f"{expected} bytes can be reached\n{tl.memory()}"
    )
    for held in views:
        [fill] = held.keeps
        assert (held.thing == fill % 251).all()
    refs.clear()
    views.clear()
    held = None
    assert eventually(lambda: gc.collect() >= 0 and tl.memory().objects == ()), str(tl.memory())
    # Each time: a collection does nothing while another thread has one.
    assert eventually(lambda: gc.collect() >= 0 and tl.memory().used_bytes == 0), str(tl.memory())
