"""``util.inspect_serializability`` names the variable at fault (row STO-9)."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from taskloom.util import inspect_serializability
from taskloom.util.check_serialize import FailureTuple


def inspect(value: Any, **options: Any) -> tuple[bool, list[FailureTuple], str]:
    out = io.StringIO()
    fine, failures = inspect_serializability(value, print_file=out, **options)
    assert isinstance(failures, set)
    return fine, list(failures), out.getvalue()


def test_what_pickles_is_said_to_STO_9():
    fine, failures, text = inspect([1, {"a": len}])

    assert (fine, failures) == (True, [])
    assert "can be serialized" in text


def test_a_lock_in_a_closure_is_named_STO_9():
    guard = threading.Lock()

    def function() -> Any:
        return guard

    fine, (failure,), text = inspect(function, name="mine")

    assert not fine
    assert failure.obj is guard
    assert failure.name == "guard"
    assert failure.path == ("mine", "guard")
    assert failure.parent is function
    assert "guard" in repr(failure)
    assert "FAIL guard: TypeError: cannot pickle '_thread.lock' object" in text


def test_a_value_without_a_name_is_called_as_it_calls_itself_STO_9():
    assert inspect(lambda: threading.Lock())[0]
    _, (failure,), _ = inspect(threading.Lock())

    assert failure.path == ("lock",)
    assert failure.parent is None


def test_it_goes_down_as_deep_as_it_is_told_STO_9():
    value = {"a": [{"b": [threading.Lock()]}]}

    paths = {depth: inspect(value, name="v", depth=depth)[1][0].path for depth in (-1, 0, 1, 3, 9)}
    assert paths[-1] == paths[0] == ("v",)
    assert paths[1] == ("v", "['a']")
    assert paths[3] == ("v", "['a']", "[0]", "['b']")
    assert paths[9] == ("v", "['a']", "[0]", "['b']", "[0]")


def test_a_value_that_fails_by_itself_is_its_own_culprit_STO_9():
    class Ugly:
        def __reduce__(self) -> Any:
            raise SystemExit("no")

        def __repr__(self) -> str:
            raise SystemExit("no")

    ugly = Ugly()
    fine, (failure,), text = inspect(ugly, name="ugly")

    assert not fine
    assert failure.obj is ugly
    assert "SystemExit: no" in text


def test_it_prints_to_stdout_by_default_STO_9(capsys: pytest.CaptureFixture[str]):
    inspect_serializability(1)
    assert "Checking serializability of 1" in capsys.readouterr().out
