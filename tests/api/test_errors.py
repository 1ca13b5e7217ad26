"""What a failure looks like to the caller (rows ERR of the reference), from real workers."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import traceback
import urllib.error
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.gates import Gate

from taskloom import exceptions as errors
from taskloom.exceptions import (
    GetTimeoutError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def error_of(tl: ModuleType, make: Callable[[], BaseException]) -> Any:
    """What ``get`` raises when a task raises what ``make`` makes."""

    def fail():
        raise make()

    with pytest.raises(RayError) as raised:
        tl.get(tl.remote(fail).remote(), timeout=30)
    return raised.value


def test_every_failure_of_the_engine_is_a_ray_error_ERR_1():
    public = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }

    assert len(public) > 40
    assert all(issubclass(e, RayError | Warning) for e in public if e.__module__ == errors.__name__)


def test_an_error_is_both_a_task_error_and_the_users_class_ERR_2(tl: ModuleType):
    error = error_of(tl, lambda: KeyError("missing"))

    assert isinstance(error, KeyError)
    assert isinstance(error, RayTaskError)
    assert type(error).__name__ == "RayTaskError(KeyError)"
    assert error.args == ("missing",)
    assert type(error.cause) is KeyError
    assert error.cause.args == ("missing",)


def test_the_users_attributes_and_methods_are_there_ERR_2(tl):
    class Refused(Exception):
        def __init__(self, code, *, reason):
            super().__init__(f"{code}: {reason}")
            self.code = code
            self.reason = reason

        def is_final(self):
            return self.code == 4

    error = error_of(tl, lambda: Refused(4, reason="because"))

    assert isinstance(error, Refused)
    assert (error.code, error.reason, error.is_final()) == (4, "because", True)


def test_errors_of_the_standard_library_arrive_as_they_are_ERR_2(tl):
    error = error_of(tl, lambda: FileNotFoundError(2, "No such file", "x.txt"))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "x.txt")

    error = error_of(tl, lambda: subprocess.CalledProcessError(3, ["false"], b"out"))
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.cmd, error.output) == (3, ["false"], b"out")

    error = error_of(tl, lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert isinstance(error, UnicodeDecodeError)
    assert error.object == b"\xff"

    error = error_of(tl, lambda: urllib.error.HTTPError("http://x", 404, "gone", None, None))
    assert isinstance(error, urllib.error.HTTPError)
    assert error.code == 404


def test_an_exception_group_can_be_split_ERR_2(tl):
    error = error_of(tl, lambda: ExceptionGroup("two", [KeyError("a"), ValueError("b")]))
    caught = []
    try:
        raise error
    except* KeyError as group:
        caught += [type(e) for e in group.exceptions]
    except* ValueError as group:
        caught += [type(e) for e in group.exceptions]

    assert caught == [KeyError, ValueError]


def test_notes_and_causes_are_in_the_text_ERR_2(tl):
    def fail():
        error = KeyError("k")
        error.add_note("a note of the user")
        try:
            raise OSError("the first")
        except OSError as first:
            raise error from first

    with pytest.raises(KeyError) as raised:
        tl.get(tl.remote(fail).remote())

    text = "".join(traceback.format_exception(raised.value))
    assert "a note of the user" in text
    assert "the first" in text


def test_an_error_passes_through_two_tasks_and_a_pickle_ERR_2(tl):
    @tl.remote
    def inner():
        raise KeyError("deep")

    @tl.remote
    def outer():
        import taskloom

        return taskloom.get(inner.remote())

    with pytest.raises(KeyError) as raised:
        tl.get(outer.remote())
    back = pickle.loads(pickle.dumps(raised.value))

    assert isinstance(back, KeyError)
    assert isinstance(back, RayTaskError)
    assert 'raise KeyError("deep")' in str(back)


def test_an_error_that_is_returned_is_a_value_ERR_2(tl):
    @tl.remote
    def outer():
        import taskloom

        try:
            taskloom.get(taskloom.remote(lambda: 1 / 0).remote())
        except ZeroDivisionError as error:
            return error

    assert isinstance(tl.get(outer.remote()), ZeroDivisionError)


def test_the_text_has_the_workers_traceback_and_no_frame_of_the_engine_ERR_3(tl):
    @tl.remote
    def outer(x):
        return middle(x)

    def middle(x):
        return x / 0  # the line that fails

    with pytest.raises(ZeroDivisionError) as raised:
        tl.get(outer.remote(1))
    text = str(raised.value)

    assert "outer() (pid=" in text.splitlines()[0] or "outer (pid=" in text.splitlines()[0]
    assert "return middle(x)" in text
    assert "return x / 0  # the line that fails" in text
    line = middle.__code__.co_firstlineno + 1
    assert f'{os.path.basename(__file__)}", line {line}' in text
    assert "taskloom/_" not in text
    assert text.endswith("ZeroDivisionError: division by zero")


async def test_the_error_of_a_coroutine_has_no_frame_of_the_engine_ERR_3(tl):
    @tl.remote
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("here")  # the line that fails

    with pytest.raises(KeyError) as raised:
        await fail.remote()

    assert "# the line that fails" in str(raised.value)
    assert "taskloom/_" not in str(raised.value)


def test_a_cancelled_task_has_an_error_of_its_own_ERR_4(tl, gate):
    ref = tl.remote(gate.enter).remote()
    gate.wait_for()
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError) as raised:
        tl.get(ref)

    assert not isinstance(raised.value, asyncio.CancelledError)
    assert not isinstance(raised.value, RayTaskError)
    assert str(raised.value.task_id) == ref.task_id() or raised.value.task_id.hex() == ref.task_id()


def test_a_timeout_of_get_is_a_timeout_error_ERR_5(tl, gate):
    ref = tl.remote(gate.enter).remote()
    with pytest.raises(GetTimeoutError) as raised:
        tl.get(ref, timeout=0.01)
    gate.open()
    tl.get(ref)

    assert isinstance(raised.value, RayError)
    assert isinstance(raised.value, TimeoutError)


def test_a_crash_names_task_process_and_status_ERR_6(tl, gate):
    @tl.remote(max_retries=0)
    def crash():
        gate.note("in")
        os._exit(42)

    with pytest.raises(WorkerCrashedError) as raised:
        tl.get(crash.remote())
    text = str(raised.value)

    assert str(gate.pids("in")[0]) in text
    assert "42" in text
    assert "crash" in text
    assert not isinstance(raised.value, RayTaskError)


def test_a_crash_shows_the_last_words_of_the_worker_ERR_6(tl):
    @tl.remote(max_retries=0)
    def crash():
        import sys

        print("my last words", file=sys.stderr, flush=True)
        os._exit(1)

    with pytest.raises(WorkerCrashedError, match="my last words"):
        tl.get(crash.remote())


def test_the_names_of_actors_errors_are_there_ERR_7():
    assert issubclass(errors.ActorDiedError, errors.RayActorError)
    assert issubclass(errors.ActorUnavailableError, errors.RayActorError)


RAY_NAMES = """
    RayError RayTaskError TaskCancelledError GetTimeoutError WorkerCrashedError RayActorError
    ActorDiedError ActorUnavailableError ActorAlreadyExistsError ActorHandleNotFoundError
    PendingCallsLimitExceeded AsyncioActorExit ObjectStoreFullError OutOfDiskError OutOfMemoryError
    ObjectLostError ObjectFetchTimedOutError ObjectFreedError OwnerDiedError
    ReferenceCountingAssertionError ObjectReconstructionFailedError RuntimeEnvSetupError
    TaskPlacementGroupRemoved ActorPlacementGroupRemoved TaskUnschedulableError
    ActorUnschedulableError RaySystemError CrossLanguageError UnserializableException
    UserCodeException StreamingGeneratorReplayInconsistentError ObjectRefStreamEndOfStreamError
    NodeDiedError LocalRayletDiedError PlasmaObjectNotAvailable RpcError AuthenticationError
    OufOfBandObjectRefSerializationException
"""


@pytest.mark.parametrize("name", RAY_NAMES.split())
def test_every_name_of_rays_errors_can_be_caught_ERR_9(name):
    assert issubclass(getattr(errors, name), RayError)


@pytest.mark.parametrize(
    "options", [{"num_cpus": 10**6}, {"num_gpus": 1}, {"resources": {"x": 1}}, {"memory": 2**60}]
)
def test_what_can_never_run_fails_at_once_ERR_10(tl, options):
    ref = tl.remote(**options)(lambda: 1).remote()
    with pytest.raises(TaskUnschedulableError) as raised:
        tl.get(ref, timeout=20)
    text = str(raised.value)

    assert "CPU" in text
    assert next(iter(options.get("resources", {"": 0}))) in text


# -- exceptions that are hard to send -----------------------------------------------------------


def test_an_exception_whose_init_wants_more_arrives_as_its_class(tl):
    class TwoArguments(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")
            self.a, self.b = a, b

    class KeywordOnly(Exception):
        def __init__(self, *, code):
            self.code = code

    class NoArguments(Exception):
        def __init__(self):
            super().__init__("always this")

    error = error_of(tl, lambda: TwoArguments(1, 2))
    assert isinstance(error, TwoArguments)
    assert (error.a, error.b) == (1, 2)
    error = error_of(tl, lambda: KeywordOnly(code=3))
    assert isinstance(error, KeywordOnly)
    assert error.code == 3
    assert isinstance(error_of(tl, lambda: NoArguments()), NoArguments)


def test_an_exception_with_an_attribute_that_cannot_travel_arrives_without_it(tl):
    class Holder(Exception):
        pass

    def fail():
        import threading

        error = Holder("text")
        error.code = 5
        error.lock = threading.Lock()
        raise error

    with pytest.raises(Holder) as raised:
        tl.get(tl.remote(fail).remote())

    assert raised.value.code == 5
    assert "text" in str(raised.value)
    assert tl.get(tl.remote(lambda: 1).remote()) == 1


def test_an_exception_whose_text_fails_arrives(tl):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        __repr__ = __str__

    assert isinstance(error_of(tl, lambda: Mute("x")), RayTaskError)


def test_an_enormous_exception_arrives_with_a_bounded_text(tl):
    assert len(str(error_of(tl, lambda: ValueError("x" * 10_000_000)))) < 600_000


def test_circles_and_long_chains_of_causes_arrive(tl):
    def circle():
        a, b = KeyError("a"), ValueError("b")
        a.__cause__, b.__cause__ = b, a
        raise a

    def chain():
        error: BaseException = KeyError("last")
        for n in range(3000):
            new = ValueError(n)
            new.__context__ = error
            error = new
        raise error

    with pytest.raises(KeyError):
        tl.get(tl.remote(circle).remote())
    with pytest.raises(ValueError):
        tl.get(tl.remote(chain).remote())


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)], ids=repr
)
def test_what_would_stop_the_caller_is_a_task_error_only(tl, error):
    raised = error_of(tl, lambda: error)

    assert isinstance(raised, RayTaskError)
    assert not isinstance(raised, type(error))
    assert type(raised.cause) is type(error)


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), StopIteration(1)],
    ids=repr,
)
async def test_the_same_from_a_coroutine(tl, error):
    @tl.remote
    async def fail():
        raise error

    with pytest.raises(RayTaskError):
        await fail.remote()
    assert await tl.remote(lambda: 1).remote() == 1


def test_a_base_exception_of_the_users_own_is_a_task_error(tl):
    class Stop(BaseException):
        pass

    assert type(error_of(tl, lambda: Stop("x"))) is RayTaskError


def test_each_get_raises_an_error_of_its_own(tl):
    ref = tl.remote(lambda: 1 / 0).remote()
    raised = []
    for _ in range(3):
        try:
            tl.get(ref)
        except ZeroDivisionError as error:
            raised.append(error)

    assert len({id(error) for error in raised}) == 3
    assert len(traceback.extract_tb(raised[2].__traceback__)) == len(
        traceback.extract_tb(raised[0].__traceback__)
    ), "the traceback of one get does not grow with the others"


def test_recursion_without_end_is_the_error_of_the_task(tl):
    def recurse(n):
        return recurse(n + 1)

    with pytest.raises(RecursionError):
        tl.get(tl.remote(recurse).remote(0))
    assert tl.get(tl.remote(lambda: 1).remote()) == 1


def test_memory_that_is_not_there_is_the_error_of_the_task(tl):
    with pytest.raises(MemoryError):
        tl.get(tl.remote(lambda: bytearray(2**62)).remote())
