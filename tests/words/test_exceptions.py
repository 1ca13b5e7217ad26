"""The tree of errors, and the error that is also an instance of its cause's class."""

from __future__ import annotations

import asyncio
import builtins
import copy
import errno
import gc
import pickle
import subprocess
import sys
import weakref
from dataclasses import dataclass

import pytest

from taskloom import exceptions
from taskloom.exceptions import RayError, RayTaskError

# Ray 2.60's names, with the bases that `except` clauses rely on.
RAY_TREE = {
    "ActorAlreadyExistsError": ("RayError", "ValueError"),
    "ActorDiedError": ("RayActorError",),
    "ActorHandleNotFoundError": ("RayError", "ValueError"),
    "ActorPlacementGroupRemoved": ("RayError",),
    "ActorUnavailableError": ("RayActorError",),
    "ActorUnschedulableError": ("RayError",),
    "AsyncioActorExit": ("RayError",),
    "AuthenticationError": ("RayError",),
    "CrossLanguageError": ("RayError",),
    "GetTimeoutError": ("RayError", "TimeoutError"),
    "LocalRayletDiedError": ("RayError",),
    "NodeDiedError": ("RayError",),
    "ObjectFetchTimedOutError": ("ObjectLostError",),
    "ObjectFreedError": ("ObjectLostError",),
    "ObjectLostError": ("RayError",),
    "ObjectReconstructionFailedError": ("ObjectLostError",),
    "ObjectReconstructionFailedLineageEvictedError": ("ObjectLostError",),
    "ObjectReconstructionFailedMaxAttemptsExceededError": ("ObjectLostError",),
    "ObjectRefStreamEndOfStreamError": ("RayError",),
    "ObjectStoreFullError": ("RayError",),
    "OufOfBandObjectRefSerializationException": ("RayError",),
    "OutOfDiskError": ("RayError",),
    "OutOfMemoryError": ("RayError",),
    "OwnerDiedError": ("ObjectLostError",),
    "PendingCallsLimitExceeded": ("RayError",),
    "PlasmaObjectNotAvailable": ("RayError",),
    "RayActorError": ("RayError",),
    "RayCgraphCapacityExceeded": ("RaySystemError",),
    "RayChannelError": ("RaySystemError",),
    "RayChannelTimeoutError": ("RayChannelError", "TimeoutError"),
    "RayError": ("Exception",),
    "RaySystemError": ("RayError",),
    "RayTaskError": ("RayError",),
    "ReferenceCountingAssertionError": ("ObjectLostError", "AssertionError"),
    "RpcError": ("RayError",),
    "RuntimeEnvSetupError": ("RayError",),
    "StreamingGeneratorReplayInconsistentError": ("RayError",),
    "TaskCancelledError": ("RayError",),
    "TaskPlacementGroupRemoved": ("RayError",),
    "TaskUnschedulableError": ("RayError",),
    "UnserializableException": ("RayError",),
    "UserCodeException": ("RayError",),
    "WorkerCrashedError": ("RayError",),
}
OURS = {
    "DeadlockError": ("RayError",),
    "InternalError": ("RayError",),
    "NestedDepthError": ("RayError",),
    "SessionClosedError": ("RayError",),
    "TaskTimeoutError": ("RayError", "TimeoutError"),
    "WorkerStartupError": ("RayError",),
    "BlockingGetWarning": ("UserWarning",),
    "RayDeprecationWarning": ("DeprecationWarning",),
}
SYSTEM_ERRORS = [e for e in exceptions.RAY_EXCEPTION_TYPES if e is not RayTaskError]


def dual(cause: BaseException, traceback: str = "Traceback (most recent call last):\n  here"):
    return RayTaskError("f", traceback, cause, pid=7).as_instanceof_cause()


# -- the tree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bases"), (RAY_TREE | OURS).items())
def test_every_name_exists_and_can_be_caught_by_its_bases(name, bases):
    error = getattr(exceptions, name)
    for base in bases:
        assert issubclass(error, getattr(exceptions, base, None) or getattr(builtins, base))


def test_the_tree_in_the_docstring_names_every_error():
    missing = [
        e.__name__
        for e in exceptions.RAY_EXCEPTION_TYPES
        if e.__name__ not in exceptions.__doc__
        and not e.__name__.startswith("ObjectReconstructionFailed")
    ]
    assert not missing


def test_ours_and_rays_name_of_the_root_are_one_class():
    assert exceptions.TaskloomError is RayError
    assert exceptions.TaskError is RayTaskError


@pytest.mark.parametrize("error_class", SYSTEM_ERRORS)
def test_an_error_takes_a_plain_message_and_survives_pickling(error_class):
    error = error_class("what happened")
    again = pickle.loads(pickle.dumps(error))

    assert "what happened" in str(error)
    assert type(again) is error_class
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error_class", SYSTEM_ERRORS)
def test_an_error_can_be_made_without_a_message(error_class):
    assert isinstance(str(error_class()), str)


def test_cancelled_is_not_the_cancelled_of_asyncio():
    assert not issubclass(exceptions.TaskCancelledError, asyncio.CancelledError)
    assert exceptions.TaskCancelledError().task_id is None
    assert "abc" in str(exceptions.TaskCancelledError("abc"))


def test_an_actor_error_keeps_its_facts_through_pickling():
    error = exceptions.ActorDiedError.from_task_error(
        RayTaskError("A.__init__", "boom", ValueError()), actor_id="a1"
    )
    error = pickle.loads(pickle.dumps(error))

    assert isinstance(error, exceptions.ActorDiedError)
    assert error.actor_init_failed
    assert error.actor_id == "a1"
    assert not error.preempted
    assert "The actor died because of an error raised in its creation task" in str(error)
    assert "boom" in str(error)


def test_the_module_does_not_load_asyncio():
    code = "import taskloom.exceptions, sys; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# -- the error that is its cause, too -------------------------------------------------------------


def test_the_dual_error_is_caught_as_either():
    error = dual(KeyError("k"))

    assert type(error).__name__ == "RayTaskError(KeyError)"
    with pytest.raises(KeyError) as caught:
        raise error
    assert isinstance(caught.value, RayTaskError)
    assert isinstance(caught.value.cause, KeyError)
    assert caught.value.args == ("k",)


def test_the_text_is_the_workers_traceback_and_not_the_causes():
    text = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nKeyError: 1\n'

    for error in (dual(KeyError(1), text), RayTaskError("f", text, KeyError(1), pid=7)):
        assert str(error) == (
            'taskloom::f() (pid=7, ip=127.0.0.1)\n  File "x.py", line 3, in f\nKeyError: 1'
        )


def test_facts_of_the_call_are_attributes():
    error = dual(KeyError("k"), "text")

    assert (error.function_name, error.pid, error.ip) == ("f", 7, "127.0.0.1")
    assert error.traceback_str == "text"
    assert error.proctitle == "taskloom::f()"
    assert error.cause_class == "KeyError"


class Custom(Exception):
    """Asks for more than its args, has its own ``pid``, slots and methods."""

    def __init__(self, host, *, port):
        super().__init__(f"{host}:{port}")
        self.host = host
        self.port = port
        self.pid = "the user's"

    @property
    def proctitle(self):
        return "the user's title"

    def address(self):
        return (self.host, self.port)

    def __str__(self):
        return "never shown"


def test_the_dual_error_looks_like_the_cause():
    error = dual(Custom("h", port=1))

    assert isinstance(error, Custom)
    assert error.args == ("h:1",)
    assert error.address() == ("h", 1)
    assert error.pid == "the user's"  # what the user's class has wins
    assert error.proctitle == "the user's title"
    assert error.function_name == "f"
    with pytest.raises(AttributeError):
        error.nothing_like_this  # noqa: B018


def test_attributes_that_live_in_c_are_copied():
    error = dual(OSError(errno.ENOENT, "not there", "file.txt"))
    assert type(error).__name__ == "RayTaskError(FileNotFoundError)"
    assert (error.errno, error.strerror, error.filename) == (2, "not there", "file.txt")

    error = dual(UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad byte"))
    assert (error.reason, error.object) == ("bad byte", b"\xff")

    error = dual(subprocess.CalledProcessError(3, ["cmd"], b"out"))
    assert (error.returncode, error.cmd, error.output) == (3, ["cmd"], b"out")


def test_the_class_is_made_once_for_each_class_of_causes():
    assert type(dual(KeyError(1))) is type(dual(KeyError(2)))
    assert type(dual(KeyError(1))) is not type(dual(IndexError(2)))


def test_classes_that_are_gone_are_not_kept():
    class Short(Exception):
        pass

    dual(Short())
    gone = weakref.ref(Short)
    del Short
    gc.collect()
    assert gone() is None


def test_a_class_that_refuses_to_be_subclassed_gives_a_plain_task_error():
    class Final(Exception):
        def __init_subclass__(cls):
            raise TypeError("no subclasses")

    error = dual(Final("x"))

    assert type(error) is RayTaskError
    assert isinstance(error.cause, Final)
    assert error.cause_class.endswith("Final")


def test_a_metaclass_and_a_frozen_dataclass_are_no_obstacle():
    class Meta(type):
        pass

    class WithMeta(Exception, metaclass=Meta):
        pass

    @dataclass(frozen=True)
    class Frozen(Exception):
        code: int

    assert isinstance(dual(WithMeta()), WithMeta)
    error = dual(Frozen(5))
    assert isinstance(error, Frozen)
    assert error.code == 5
    error.extra = 1  # contextlib and others set attributes on exceptions in flight


@pytest.mark.parametrize(
    "cause",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        BaseException("own"),
    ],
)
def test_what_would_steer_the_callers_program_stays_inside(cause):
    error = dual(cause)

    assert type(error) is RayTaskError
    assert not isinstance(error, type(cause)) or type(cause) is BaseException
    assert error.cause is cause


def test_a_dual_error_is_not_wrapped_twice():
    error = dual(KeyError("k"))
    assert type(error.as_instanceof_cause()) is type(error)
    assert type(dual(error)) is RayTaskError  # nobody does this: the cause is handed on instead


def test_except_star_sees_the_members_of_a_group():
    group = ExceptionGroup("two", [ValueError(1), KeyError(2)])
    seen = []
    try:
        raise dual(group)
    except* ValueError as part:
        seen.append(part.exceptions[0].args)
    except* KeyError as part:
        seen.append(part.exceptions[0].args)
    assert seen == [(1,), (2,)]

    error = dual(group)
    assert isinstance(error, ExceptionGroup)
    assert error.message == "two"
    assert len(error.exceptions) == 2


class MyGroup(ExceptionGroup):
    def __new__(cls, message, excs, code):
        self = super().__new__(cls, message, excs)
        self.code = code
        return self

    def derive(self, excs):
        return MyGroup(self.message, excs, self.code)


def test_parts_of_a_group_are_of_the_users_own_class():
    error = dual(MyGroup("two", [ValueError(1), KeyError(2)], 5))
    matched, rest = error.split(ValueError)

    assert isinstance(error, MyGroup)
    assert error.code == 5
    assert type(matched) is type(rest) is MyGroup
    assert matched.code == 5


def test_a_group_that_holds_an_interrupt_stays_inside():
    error = dual(BaseExceptionGroup("two", [ValueError(1), KeyboardInterrupt()]))
    assert type(error) is RayTaskError


@pytest.mark.parametrize(
    "cause",
    [
        KeyError("k"),
        OSError(2, "x", "file"),
        UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad"),
        SyntaxError("bad", ("f", 1, 2, "text")),
        ExceptionGroup("g", [ValueError(1), ExceptionGroup("h", [KeyError(2)])]),
        exceptions.GetTimeoutError("late"),
        SystemExit(3),
        Exception("plain"),
    ],
)
def test_the_error_survives_being_pickled_twice_and_copied(cause):
    error = dual(cause)
    for again in (pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error)))), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert repr(again) == repr(error)
        assert type(again.cause) is type(cause)
        assert isinstance(again, RayTaskError)


def test_notes_of_the_cause_are_notes_of_the_error():
    cause = ValueError("x")
    cause.add_note("think of this")
    error = dual(cause)

    assert error.__notes__ == ["think of this"]
    error.add_note("and this")
    assert cause.__notes__ == ["think of this"]


def test_the_repr_survives_a_cause_whose_repr_raises():
    class Bad(Exception):
        def __repr__(self):
            raise ZeroDivisionError

    assert "Bad" in repr(dual(Bad()))
