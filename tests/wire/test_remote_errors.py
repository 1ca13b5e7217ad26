"""Errors as they travel: whatever user code raises arrives, and nothing of it does harm."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import subprocess
import sys
import threading
import types
import urllib.error

import cloudpickle
import pytest

from taskloom import exceptions
from taskloom._task_error import INPUT_FAILED
from taskloom._wire.careful import weight
from taskloom._wire.error_text import MAX_TEXT_BYTES
from taskloom._wire.remote_errors import Failure, cancelled_failure, capture, system_failure
from taskloom.exceptions import RayTaskError

send = functools.partial(
    capture, function_name="f", pid=7, dumps=cloudpickle.dumps, loads=cloudpickle.loads
)


def caught(function, *args):
    """What ``function`` raises, with its traceback."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def throw(error):
    raise error


def arrive(error):
    """``error`` as the driver sees it."""
    revived = send(caught(throw, error)).revive()
    assert isinstance(revived, RayTaskError)
    assert len(str(revived).encode()) < MAX_TEXT_BYTES + 1024
    return revived


# -- what arrives ---------------------------------------------------------------------------------


def test_the_class_and_the_args_arrive():
    error = arrive(KeyError("k"))

    assert isinstance(error, KeyError)
    assert error.args == ("k",)
    assert error.cause_class == "KeyError"
    assert (error.function_name, error.pid) == ("f", 7)


def test_every_revival_is_a_fresh_error():
    failure = send(caught(throw, ValueError([1])))
    first, second = failure.revive(), failure.revive()

    assert first is not second
    assert first.cause is not second.cause
    assert first.__traceback__ is None


def test_the_users_line_is_in_the_text_and_the_engines_are_not():
    engine = os.path.join(os.path.dirname(exceptions.__file__), "_worker", "executor.py")
    scope = {}
    exec(compile("def run(function):\n    function()\n", engine, "exec"), scope)

    text = str(send(caught(scope["run"], lambda: {}["missing"])).revive())

    assert text.startswith("taskloom::f() (pid=7, ip=127.0.0.1)\n")
    assert '{}["missing"]' in text
    assert os.path.basename(__file__) in text
    assert "executor.py" not in text
    assert text.endswith("KeyError: 'missing'")


def test_a_name_for_the_process_can_be_given():
    error = send(caught(throw, ValueError()), proctitle="taskloom::Actor.m").revive()
    assert str(error).startswith("taskloom::Actor.m (pid=7")


def test_what_led_to_the_error_is_told():
    def chained():
        try:
            throw(KeyError("first"))
        except KeyError as first:
            raise ValueError("second") from first

    text = str(send(caught(chained)).revive())

    assert "KeyError: 'first'" in text
    assert "direct cause" in text
    assert text.index("first") < text.index("ValueError: second")


def test_notes_are_kept():
    error = ValueError("x")
    error.add_note("a hint")
    assert arrive(error).__notes__ == ["a hint"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 suggests only when it prints itself")
def test_suggestions_are_kept():
    text = str(send(caught(lambda: printt)).revive())  # noqa: F821
    assert "Did you mean: 'print'" in text


class Odd(Exception):
    """Cannot be made from its own args."""

    def __init__(self, host, *, port):
        super().__init__(f"{host}:{port}")
        self.host = host
        self.port = port


class Slotted(Exception):
    __slots__ = ("__private", "code")

    def __init__(self, code, private):
        super().__init__()
        self.code = code
        self.__private = private

    def private(self):
        return self.__private


class Reduces(Exception):
    """Says itself how it is pickled."""

    def __init__(self, text, made_by="user"):
        super().__init__(text)
        self.made_by = made_by

    def __reduce__(self):
        return Reduces, (self.args[0], "pickle")


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (Odd("h", port=1), {"args": ("h:1",), "host": "h", "port": 1}),
        (Slotted(5, private=6), {"args": (), "code": 5}),
        (Reduces("x"), {"args": ("x",), "made_by": "pickle"}),
        (OSError(2, "x", "file"), {"errno": 2, "filename": "file"}),
        (subprocess.CalledProcessError(3, "cmd", b"o"), {"returncode": 3, "output": b"o"}),
        (urllib.error.HTTPError("http://u", 404, "no", {}, None), {"code": 404}),
        (ImportError("x", name="module"), {"name": "module"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_arrives_as_its_class_with_its_attributes(error, attributes):
    once = arrive(error)
    twice = arrive(once)

    for revived in (once, twice, pickle.loads(pickle.dumps(once))):
        assert isinstance(revived, type(error))
        assert {name: getattr(revived, name) for name in attributes} == attributes
        assert type(revived.cause) is type(error)


def test_private_slots_travel():
    assert arrive(Slotted(5, private=6)).private() == 6


def test_a_class_defined_in_a_function_arrives():
    class Local(ValueError):
        pass

    assert isinstance(arrive(Local(1)), Local)


# -- two tasks deep -------------------------------------------------------------------------------


def test_the_type_holds_two_levels_down():
    inner = send(caught(lambda: 1 / 0), function_name="inner").revive()
    outer = send(caught(throw, inner), function_name="outer").revive()

    assert type(outer).__name__ == "RayTaskError(ZeroDivisionError)"
    assert isinstance(outer, ZeroDivisionError)
    assert type(outer.cause) is ZeroDivisionError
    assert outer.cause_class == "ZeroDivisionError"
    text = str(outer)
    assert text.index("outer()") < text.index("inner()") < text.index("1 / 0")


def test_an_exit_is_still_no_exit_two_levels_down():
    error = arrive(arrive(SystemExit(3)))

    assert type(error) is RayTaskError
    assert error.cause.code == 3
    assert error.cause_class == "SystemExit"


def test_an_error_of_the_engine_raised_in_a_task_keeps_its_class():
    error = arrive(exceptions.GetTimeoutError("late"))

    assert isinstance(error, exceptions.GetTimeoutError)
    assert isinstance(error, TimeoutError)
    assert "late" in str(error)


def test_task_errors_inside_a_group_arrive():
    inner = send(caught(lambda: {}["k"])).revive()
    error = arrive(ExceptionGroup("g", [inner, Odd("h", port=1)]))

    first, second = error.exceptions
    assert isinstance(first, KeyError)
    assert isinstance(first, RayTaskError)
    assert second.port == 1


# -- failures of the engine, and of dependencies --------------------------------------------------


def test_a_system_failure_revives_as_its_class():
    failure = system_failure(exceptions.WorkerCrashedError("worker 5 died"))
    error = failure.revive()

    assert type(error) is exceptions.WorkerCrashedError
    assert "worker 5 died" in str(error)
    assert not failure.cancelled
    assert failure.revive() is not error


def test_a_cancelled_task_and_its_dependents_are_cancelled():
    failure = system_failure(exceptions.TaskCancelledError("abc"))

    assert failure.cancelled
    assert failure.inherit().cancelled
    assert failure.inherit().revive().task_id == "abc"


def test_a_whole_chain_of_dependents_shares_one_failure():
    failure = send(caught(lambda: 1 / 0))
    twin = failure.inherit()

    assert twin.inherited
    assert not failure.inherited
    assert failure.inherit() is twin
    assert twin.inherit() is twin
    assert twin.blob is failure.blob


def test_a_dependent_raises_the_upstream_error_and_says_so():
    error = send(caught(lambda: 1 / 0)).inherit().revive()

    assert isinstance(error, ZeroDivisionError)
    assert INPUT_FAILED in str(error)
    crash = system_failure(exceptions.WorkerCrashedError("x")).inherit().revive()
    assert INPUT_FAILED.rstrip(":") in crash.__notes__[0]


# -- hostile exceptions ---------------------------------------------------------------------------


class StrRaises(Exception):
    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class StrRaisesExit(Exception):
    def __str__(self):
        sys.exit(1)


class StrRecurses(Exception):
    def __str__(self):
        return str(self)


class StrNeverEnds(Exception):
    def __str__(self):
        while True:
            pass


class StrIsHuge(Exception):
    def __str__(self):
        return "é" * 3_000_000


class StrIsNoString(Exception):
    def __str__(self):
        return 5


class Surrogates(Exception):
    def __str__(self):
        return "\udc80 broken"


@pytest.mark.parametrize(
    "error_class",
    [StrRaises, StrRaisesExit, StrRecurses, StrNeverEnds, StrIsHuge, StrIsNoString, Surrogates],
)
def test_an_error_with_a_bad_str_arrives(error_class):
    error = arrive(error_class(1))

    assert isinstance(error, error_class)
    assert error.args == (1,)
    assert __file__ in str(error)


def test_an_endless_str_does_not_disturb_a_debugger():
    calls = []

    def tracer(frame, event, arg):
        calls.append(event)

    class Slow(Exception):
        def __str__(self):
            return "fine"

    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        send(Slow())
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(old)
    assert calls


class Locked(Exception):
    def __init__(self):
        super().__init__("text", threading.Lock())
        self.lock = threading.Lock()
        self.code = 5


def test_members_that_cannot_travel_are_left_out_and_named():
    error = arrive(Locked())

    assert isinstance(error, Locked)
    assert error.args[0] == "text"
    assert error.code == 5
    assert not hasattr(error, "lock")
    assert "left behind in the worker: args[1] (lock), lock (lock)" in str(error)


class ReduceRaises(Exception):
    def __reduce__(self):
        raise KeyboardInterrupt


class ExitsWhenLoaded(Exception):
    def __setstate__(self, state):
        sys.exit(1)


@pytest.mark.parametrize("error_class", [ReduceRaises, ExitsWhenLoaded])
def test_an_error_that_resists_pickling_is_rebuilt(error_class):
    error = error_class(1)
    error.attribute = 2
    error = arrive(error)

    assert isinstance(error, error_class)
    assert error.attribute == 2


def test_a_class_that_cannot_travel_leaves_text_and_name():
    lock = threading.Lock()

    class Captures(Exception):
        def method(self):
            return lock

    error = arrive(Captures("x"))

    assert type(error) is RayTaskError
    assert error.cause is None
    assert error.cause_class.endswith("Captures")
    assert "Captures: x" in str(error)
    assert "left behind" in str(error)
    assert arrive(error).cause_class == error.cause_class


def test_a_class_that_is_missing_in_the_driver_leaves_text_and_name():
    module = types.ModuleType("only_in_the_worker")
    exec("class E(Exception): pass", module.__dict__)
    sys.modules["only_in_the_worker"] = module
    try:
        failure = send(caught(throw, module.E("x")))
    finally:
        del sys.modules["only_in_the_worker"]

    for _ in range(2):
        error = failure.revive()
        assert type(error) is RayTaskError
        assert error.cause_class == "only_in_the_worker.E"
        assert "could not be unpickled here: ModuleNotFoundError" in str(error)


def test_a_ring_of_causes_ends():
    a, b = ValueError("a"), KeyError("b")
    a.__cause__, b.__cause__ = b, a
    assert isinstance(arrive(a), ValueError)


def test_ten_thousand_errors_in_a_row_are_told_from_both_ends():
    error = ValueError("first")
    for number in range(10_000):
        following = ValueError(number)
        following.__context__ = error
        error = following

    text = str(arrive(error))

    assert "ValueError: first" in text
    assert "ValueError: 9999" in text
    assert "more exceptions of the chain left out" in text


def test_a_group_of_ten_thousand_arrives_whole_and_is_told_in_part():
    error = arrive(ExceptionGroup("g", [Odd(str(i), port=i) for i in range(10_000)]))

    assert len(error.exceptions) == 10_000
    assert error.exceptions[-1].port == 9_999
    assert "9985 more exceptions left out" in str(error)


def test_a_group_nested_too_deep_leaves_text():
    error = ValueError()
    for _ in range(3_000):
        error = ExceptionGroup("g", [error])
    assert arrive(error).cause_class == "ExceptionGroup"


def test_a_group_with_a_bad_member_arrives_with_the_others():
    error = arrive(ExceptionGroup("g", [ValueError(1), Locked()]))

    assert error.exceptions[0].args == (1,)
    assert error.exceptions[1].code == 5


@pytest.mark.parametrize(
    "payload",
    [b"x" * (64 << 20), "x" * (64 << 20), list(range(3_000_000))],
    ids=["bytes", "str", "list"],
)
def test_a_large_payload_is_left_behind(payload):
    error = arrive(ValueError("small", payload))

    assert isinstance(error, ValueError)
    assert error.args[0] == "small"
    assert "args[1] (too large" in str(error)


def test_deeply_nested_args_are_left_behind():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert isinstance(arrive(ValueError(nested)), ValueError)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError("x"),
        StopIteration(1),
        StopAsyncIteration(),
        type("Own", (BaseException,), {})(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_of_a_task_steers_the_driver(error):
    revived = arrive(error)

    assert type(revived) is RayTaskError
    assert type(revived.cause).__name__ == type(error).__name__
    assert revived.cause.args == error.args


def test_a_serializer_that_always_fails_leaves_text():
    def broken(value):
        raise MemoryError

    failure = send(caught(lambda: {}["k"]), dumps=broken)
    assert failure.revive().cause_class == "KeyError"
    assert "KeyError: 'k'" in str(failure.revive())


def test_an_error_without_a_traceback_is_described():
    assert "ValueError: x" in str(send(ValueError("x")).revive())


def test_failures_are_told_apart_by_identity():
    assert Failure(b"") != Failure(b"")


def test_weight_stops_counting_early():
    endless = []
    endless.append(endless)
    assert weight(endless, 1000) < 1000
    assert weight(b"x" * 5000, 1000) >= 5000
    assert 1000 < weight([0] * 10**6, 1000)


def test_the_fast_way_to_a_cancelled_failure_makes_the_same_as_the_plain_one():
    for task_id in ("ab" * 24, "cd" * 24, "??" * 24, "short"):
        fast = cancelled_failure(task_id)
        plain = system_failure(exceptions.TaskCancelledError(task_id))
        assert fast.cancelled
        assert plain.cancelled
        one, other = fast.revive(), plain.revive()
        assert type(one) is type(other) is exceptions.TaskCancelledError
        assert (one.args, str(one), vars(one)) == (other.args, str(other), vars(other))
