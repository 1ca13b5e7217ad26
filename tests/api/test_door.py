"""The front door against a backend of straw: what is checked, said and handed on.

The backend here runs each call at once in this process, from the pickle that would travel, and
keeps a list of what it was asked.  What real workers do is tested elsewhere.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import itertools
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from packaging.version import Version

import taskloom as tl
from taskloom import _callee, _current, _ids
from taskloom._spec import TaskSpec
from taskloom._wire.serialization import unpack_function
from taskloom.backends.base import ExecutionContext
from taskloom.exceptions import BlockingGetWarning, RaySystemError


class Straw:
    """A backend that runs every call at once and remembers what it was asked."""

    is_worker = False
    worker_id = "w" * 56
    node_id = "n" * 56
    job_id = "01000000"
    namespace = "straw"

    def nodes(self) -> None:
        return None

    def __init__(self, config: object = None) -> None:
        self.config = config
        self.session_id = os.urandom(12)
        self.calls: list[tuple[TaskSpec, tuple[Any, ...], dict[str, Any]]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.here = ExecutionContext()
        self.is_shut_down = False
        self._mint = _ids.Mint(0)

    def ref(self, value: object) -> tl.ObjectRef[Any]:
        return tl.ObjectRef(_ids.object_of(self._mint.next_task(), 0), self, value)

    def submit(self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append((spec, args, kwargs))
        if spec.is_coroutine:
            return self.ref(None)
        plain = [arg._record if isinstance(arg, tl.ObjectRef) else arg for arg in args]
        value = unpack_function(spec.function.blob)(*plain, **kwargs)
        if spec.num_returns == 1:
            return self.ref(value)
        return [self.ref(item) for item in value] if spec.num_returns else None

    def put(self, value: object) -> tl.ObjectRef[Any]:
        return self.ref(pickle.loads(cloudpickle.dumps(value)))

    def get(self, refs: Sequence[tl.ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        self.asked.append(("get", len(refs), timeout_s))
        return [ref._record for ref in refs]

    def wait(self, refs: Sequence[Any], num_returns: int, timeout_s: float | None) -> Any:
        self.asked.append(("wait", num_returns, timeout_s))
        return list(refs[:num_returns]), list(refs[num_returns:])

    def cancel(self, ref: object, *, force: bool, recursive: bool) -> None:
        self.asked.append(("cancel", ref, force, recursive))

    def is_done(self, ref: object) -> bool:
        return True

    def result(self, ref: tl.ObjectRef[Any]) -> object:
        return ref._record

    def drop(self, ref: object) -> None:
        pass

    def pin(self, ref: object) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "node:127.0.0.1": 1.0}

    def available_resources(self) -> dict[str, float]:
        return {"node:127.0.0.1": 1.0}

    def context(self) -> ExecutionContext:
        return self.here

    def is_canceled(self) -> bool:
        return True

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def straw() -> Iterator[Straw]:
    """A session with the backend of straw."""
    backend = Straw()
    _current.set_backend(backend)
    yield backend
    _current.set_backend(None)


@pytest.fixture
def straws(monkeypatch: pytest.MonkeyPatch, fresh: ModuleType) -> list[Straw]:
    """No session; those that ``init`` starts have backends of straw, and are in this list."""
    started: list[Straw] = []

    def start(kind: str, config: object) -> Straw:
        started.append(Straw(config))
        started[-1].namespace = kind
        return started[-1]

    for kind, name in (("local", "local_start"), ("inline", "inline")):
        module = SimpleNamespace(start=functools.partial(start, kind))
        monkeypatch.setitem(sys.modules, f"taskloom.backends.{name}", module)
    return started


# -- a session --------------------------------------------------------------------------------


RAY_INIT = """
    address num_cpus num_gpus resources labels object_store_memory local_mode ignore_reinit_error
    include_dashboard dashboard_host dashboard_port job_config configure_logging logging_level
    logging_format logging_config log_to_driver namespace runtime_env enable_resource_isolation
    cgroup_path system_reserved_cpu system_reserved_memory proxy_server_url kwargs
"""


def test_init_takes_every_argument_of_rays_init():
    assert set(RAY_INIT.split()) <= inspect.signature(tl.init).parameters.keys()


def test_arguments_for_clusters_are_accepted(straws):
    tl.init(include_dashboard=False, dashboard_port=8265, logging_level=30, _system_config={})
    assert tl.is_initialized()


def test_an_unknown_argument_of_init_is_named(straws):
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\): num_cpu$"):
        tl.init(num_cpu=2)
    assert not tl.is_initialized()


@pytest.mark.parametrize("address", [None, "local"])
def test_without_a_cluster_s_address_the_engine_is_in_this_process(straws, address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    tl.init(address)
    assert straws[0].namespace == "local"


def test_no_running_cluster_is_looked_for(straws):
    with pytest.raises(ConnectionError, match="auto"):
        tl.init("auto")


def test_resources_cannot_be_given_for_a_cluster_that_is_there(straws):
    with pytest.raises(ValueError, match="num_cpus must not be provided"):
        tl.init("ray://host:10001", num_cpus=1)


def test_a_dask_cluster_needs_dask(straws, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "taskloom.backends.dask", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'taskloom\[dask\]'"):
        tl.init("dask://host:8786")
    assert not straws


def test_a_ray_cluster_needs_ray(straws, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'taskloom\[ray\]'"):
        tl.init("ray://host:10001")
    assert not straws


def test_a_second_init_raises_unless_told_not_to(straws):
    tl.init(num_cpus=1)
    with pytest.raises(RuntimeError, match="Maybe you called ray.init twice by accident"):
        tl.init()
    context = tl.init(num_cpus=7, ignore_reinit_error=True)
    assert context.address_info["node_id"] == straws[0].node_id
    assert len(straws) == 1


def test_settings_reach_the_backend(straws):
    tl.init(num_cpus=3, preload=["json"], idle_worker_timeout=2.5, max_extra_workers=5)
    config = straws[0].config
    assert (config.num_cpus, config.preload) == (3, ("json",))
    assert (config.idle_worker_timeout, config.max_extra_workers) == (2.5, 5)


def test_local_mode_is_a_backend_of_its_own(straws):
    tl.init(local_mode=True)
    assert straws[0].namespace == "inline"


@tl.remote
def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


@pytest.mark.parametrize(
    "call",
    [
        lambda: double.remote(1),
        lambda: tl.put(1),
        lambda: tl.get([]),
        lambda: tl.wait([]),
        tl.get_runtime_context,
        tl.get_gpu_ids,
    ],
    ids=["remote", "put", "get", "wait", "get_runtime_context", "get_gpu_ids"],
)
def test_the_first_call_starts_a_session(straws, call):
    call()
    assert tl.is_initialized()
    assert len(straws) == 1


@pytest.mark.parametrize("name", ["cluster_resources", "available_resources", "nodes"])
def test_questions_about_the_machine_do_not_start_a_session(straws, name):
    with pytest.raises(RaySystemError, match="has not been started"):
        getattr(tl, name)()
    assert not tl.is_initialized()


def test_starting_by_the_first_call_can_be_forbidden(straws, monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    with pytest.raises(RaySystemError, match="has not been started"):
        double.remote(1)
    assert not tl.is_initialized()


def test_many_threads_start_one_session(straws):
    barrier = threading.Barrier(8)

    def call() -> None:
        barrier.wait()
        double.remote(1)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(straws) == 1
    assert len(straws[0].calls) == 8


def test_the_context_tells_the_facts_of_the_session(straws):
    context = tl.init()
    assert context.ray_version == tl.__version__
    assert context.python_version == ".".join(map(str, sys.version_info[:3]))
    assert context.address_info["node_id"] == "n" * 56
    assert dict.fromkeys(context) == dict.fromkeys(context.address_info)
    assert context._repr_html_().startswith("<table>")
    with pytest.warns(DeprecationWarning, match="address_info"):
        assert context["node_id"] == "n" * 56
    context.disconnect()
    assert not tl.is_initialized()


def test_leaving_the_context_ends_the_session(straws):
    with tl.init() as context:
        assert context.address_info["address"] == "local"
        assert tl.is_initialized()
    assert not tl.is_initialized()
    assert straws[0].is_shut_down


async def test_leaving_the_context_in_a_coroutine_ends_the_session_off_the_loop(straws):
    async with tl.init():
        straws[0].shutdown = lambda: seen.append(threading.current_thread())
        seen: list[threading.Thread] = []
    assert not tl.is_initialized()
    assert seen[0] is not threading.current_thread()


async def test_a_cancelled_program_still_ends_its_session(straws):
    async def program() -> None:
        async with tl.init():
            started.set()
            await asyncio.Event().wait()

    started = asyncio.Event()
    task = asyncio.create_task(program())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert straws[0].is_shut_down


def test_shutdown_may_be_called_twice_and_before_init(straws):
    tl.shutdown()
    tl.init()
    tl.shutdown(wait_for_processes=True)
    tl.shutdown(_exiting_interpreter=True)
    assert not tl.is_initialized()


def test_a_remote_function_works_in_the_next_session_too(straws):
    for _ in range(2):
        tl.init()
        assert tl.get(double.remote(4)) == 8
        tl.shutdown()
    assert [len(backend.calls) for backend in straws] == [1, 1]


def test_a_task_cannot_end_the_session(straw):
    straw.is_worker = True
    tl.shutdown()
    assert tl.is_initialized()
    assert not straw.is_shut_down


def test_a_forked_child_does_not_end_its_parents_session(straws, monkeypatch):
    from taskloom import api

    tl.init()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    api._at_exit()
    assert not straws[0].is_shut_down
    monkeypatch.undo()
    api._at_exit()
    assert straws[0].is_shut_down


def test_neither_import_nor_init_touches_the_host_program(straws):
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook)
    environment = dict(os.environ)
    tl.init()
    after = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook)
    assert before == after
    assert environment == dict(os.environ)


def test_the_version_is_one():
    assert Version(tl.__version__) >= Version("0.1")
    assert isinstance(tl.__commit__, str)


def test_importing_a_module_of_remote_functions_loads_neither_pickler_nor_loop():
    script = """
        import sys
        import taskloom as tl

        @tl.remote
        def f(x): return x

        f.options(num_cpus=2)
        print(*sys.modules)
    """
    out = subprocess.check_output([sys.executable, "-c", textwrap.dedent(script)], text=True)
    assert not {"asyncio", "cloudpickle", "concurrent.futures", "logging"} & set(out.split())


def test_names_of_ray_that_are_missing_say_why():
    with pytest.raises(AttributeError, match="timeline is not there yet"):
        _ = tl.timeline
    with pytest.raises(AttributeError, match="Ray Core only"):
        _ = tl.data
    assert not hasattr(tl, "no_such_name")


# -- @remote ------------------------------------------------------------------------------------


def test_the_decorator_has_four_forms_and_empty_parentheses(straw):
    def f() -> int:
        return 2

    forms = [tl.remote(f), tl.remote(num_cpus=0.5)(f), tl.remote()(f), tl.remote(num_returns=1)(f)]
    assert tl.get([form.remote() for form in forms]) == [2] * 4
    assert straw.calls[1][0].request == (("CPU", 5000),)


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def add(self, x: int) -> int:
        return x + self.n

    def __call__(self, x: int, y: int = 0) -> int:
        return x + y + self.n


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (math.sqrt, "sqrt"),
        (functools.partial(pow, 2), "pow"),
        (Adder(12).add, "add"),
        (Adder(12), "Adder"),
        (lambda x: x + 12, "<lambda>"),
        ([1, 2, 4, 4].count, "count"),
    ],
    ids=["builtin", "partial", "bound method", "object", "lambda", "builtin method"],
)
def test_whatever_can_be_called_can_be_remote(straw, function, name):
    assert tl.get(tl.remote(function).remote(4)) == function(4)
    assert straw.calls[0][0].name == name


@pytest.mark.parametrize("thing", [5, "f", None])
def test_what_cannot_be_called_cannot_be_remote(thing):
    with pytest.raises(TypeError, match="must be applied to either a function or a class"):
        tl.remote(thing)


def test_a_remote_function_is_not_made_remote_again():
    with pytest.raises(TypeError, match="remote function already"):
        tl.remote(double)


def test_options_go_by_keyword():
    with pytest.raises(TypeError, match="options by keyword"):
        tl.remote(lambda: 1, num_cpus=2)


def test_a_direct_call_says_what_to_do():
    with pytest.raises(TypeError, match=r"Instead of running '.*double\(\)', try '.*\.remote\(\)'"):
        double(1)


def test_the_plain_function_is_at_hand_and_its_docstring_kept():
    assert double.func(3) == double._function(3) == 6
    assert double.__doc__ == "Twice as much."
    assert double.__name__ == "double"
    assert list(inspect.signature(double).parameters) == ["x"]


def everything(a: int, /, b: int, c: int = 3, *rest: int, d: int, e: int = 5, **more: int) -> None:
    pass


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0,
        lambda a: a,
        lambda a, b=2: a,
        lambda *a: a,
        lambda a, *b: a,
        lambda a=1, *, k: a,
        lambda a=1, *, k=2: a,
        lambda a, /, b=1: a,
        lambda **k: k,
        everything,
        functools.partial(everything, 1),
        Adder(1),
        Adder(1).add,
    ],
)
def test_arguments_are_checked_at_the_call_as_the_function_itself_would(function, straw):
    wrapped = tl.remote(function)
    straw.submit = lambda spec, args, kwargs: None
    shapes = itertools.product(range(5), [(), ("k",), ("b",), ("a",), ("b", "d"), ("d",)])
    for count, names in list(shapes) * 2:  # the second time the answer is known
        args, kwargs = range(count), dict.fromkeys(names, 0)
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError, match=r"\(\): "):
                wrapped.remote(*args, **kwargs)
        else:
            wrapped.remote(*args, **kwargs)


def test_wrong_arguments_submit_nothing(straw):
    with pytest.raises(TypeError, match="too many positional arguments"):
        double.remote(1, 2, 3)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        double.remote()
    assert straw.calls == []


def test_a_decorator_that_adds_an_argument_is_taken_at_its_word(straw):
    def with_session(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def wrapper(*args: int) -> int:
            return function(100, *args)

        return wrapper

    @tl.remote
    @with_session
    def f(session: int, x: int) -> int:
        return session + x

    assert tl.get(f.remote(1)) == 101


def test_a_plain_call_needs_no_signature(straw, monkeypatch):
    wrapped = tl.remote(lambda a, b=2, *, c=3: a + b + c)
    monkeypatch.setattr(_callee.Callee, "check", None)
    assert tl.get([wrapped.remote(1), wrapped.remote(1, 1)]) == [6, 5]


def test_options_make_another_wrapper_of_the_same_function(straw):
    half = double.options(num_cpus=0.5, name="half")
    assert tl.get([half.remote(1), double.remote(1)]) == [2, 2]
    (spec, *_), (plain, *_) = straw.calls
    assert (spec.name, spec.request) == ("half", (("CPU", 5000),))
    assert (plain.name, plain.request) == ("double", (("CPU", 10000),))
    assert spec.function is plain.function
    assert half.options(num_cpus=0.25).options(priority=1)._options == {
        "num_cpus": 0.25,
        "name": "half",
        "priority": 1,
    }


def test_an_unknown_option_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"Invalid option keyword num_cpu .*Valid ones are \["):
        double.options(num_cpu=1)
    with pytest.raises(ValueError, match="Invalid option keyword num_cpu"):
        tl.remote(num_cpu=1)


def test_max_calls_is_not_for_options():
    with pytest.raises(ValueError, match="'max_calls' is not supported in '.options"):
        double.options(max_calls=1)


def test_defaults_of_a_task(straw, monkeypatch):
    double.remote(1)
    spec = straw.calls[0][0]
    assert (spec.name, spec.num_returns, spec.max_retries, spec.priority) == ("double", 1, 3, 0)
    assert spec.retry_exceptions is False
    assert not spec.is_coroutine
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "7")
    double.options(retry_exceptions=[KeyError]).remote(1)
    spec = straw.calls[1][0]
    assert (spec.max_retries, spec.retry_exceptions) == (7, (KeyError,))


def test_the_number_of_returns_decides_what_a_call_returns(straw):
    def pair() -> tuple[int, int]:
        return 1, 2

    two = tl.remote(num_returns=2)(pair).remote()
    assert isinstance(two, list)
    assert tl.get(two) == [1, 2]
    assert tl.remote(num_returns=0)(pair).remote() is None
    assert tl.get(tl.remote(pair).remote()) == (1, 2)


def generator(n: int) -> Iterator[int]:
    yield from range(n)


async def async_generator() -> Any:
    yield 1


def test_a_stream_is_only_for_generators_and_what_they_do_by_default(straw):
    with pytest.raises(ValueError, match="generator function"):
        tl.remote(num_returns="streaming")(lambda: 1).remote()
    with pytest.raises(ValueError, match="backpressure=2 is for streams"):
        tl.remote(backpressure=2)(lambda: 1).remote()
    for function in (generator, functools.partial(generator, 2), async_generator):
        tl.remote(function).remote(*((2,) if function is generator else ()))
    tl.remote(generator).options(backpressure=5).remote(2)
    assert tl.get(tl.remote(num_returns=2)(generator).remote(2)) == [0, 1]
    specs = [call[0] for call in straw.calls]
    assert [spec.stream for spec in specs] == [0, 0, 0, 5, None]
    assert [spec.is_coroutine for spec in specs] == [False, False, True, False, False]
    with pytest.raises(ValueError, match="num_returns"):
        tl.remote(num_returns=-1)


async def coroutine(x: int = 1) -> int:
    return x


class AsyncCallable:
    async def __call__(self) -> int:
        return 1

    async def method(self) -> int:
        return 1


@pytest.mark.parametrize(
    "function",
    [coroutine, functools.partial(coroutine, 2), AsyncCallable(), AsyncCallable().method],
    ids=["function", "partial", "object", "method"],
)
def test_coroutine_functions_are_recognised_and_need_no_cpu(straw, function):
    tl.remote(function).remote()
    spec = straw.calls[0][0]
    assert spec.is_coroutine
    assert spec.request == ()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect has no such mark")
def test_a_function_marked_as_coroutine_function_is_one(straw):
    tl.remote(inspect.markcoroutinefunction(lambda: coroutine())).remote()
    assert straw.calls[0][0].is_coroutine


# -- how a function travels ----------------------------------------------------------------------


def test_a_function_is_pickled_by_the_first_call_of_a_session_and_never_again(straws, monkeypatch):
    from taskloom._wire import serialization

    packed = []
    pack = serialization.pack_function
    monkeypatch.setattr(serialization, "pack_function", lambda f: packed.append(f) or pack(f))
    captured = {"n": 1}
    f = tl.remote(lambda: captured["n"])
    assert packed == []
    tl.init()
    assert tl.get(f.remote()) == 1
    captured["n"] = 2
    assert tl.get([f.remote(), f.options(name="g").remote()]) == [1, 1]
    assert len(packed) == 1
    tl.shutdown()
    assert tl.get(f.remote()) == 2  # a new session sees what is there now
    assert len(packed) == 2


def test_the_same_code_has_the_same_key_and_other_code_another(straw):
    for text in ("x", "x", "x + 1"):
        tl.remote(eval(f"lambda x: {text}")).remote(1)
    one, same, other = (spec.function.key for spec, *_ in straw.calls)
    assert one == same != other
    assert len(one) == 16


lock = threading.Lock()


@tl.remote
def under_lock(x: int) -> int:
    with lock:
        return x + 1


def test_a_function_of_a_module_that_cannot_travel_by_value_is_imported_there(straw):
    assert tl.get(under_lock.remote(1)) == 2
    assert unpack_function(straw.calls[0][0].function.blob) is under_lock.func


def test_a_function_that_cannot_be_pickled_is_a_type_error_that_names_what(straw):
    held = threading.Lock()
    with pytest.raises(TypeError, match="held"):
        tl.remote(lambda: held).remote()
    assert straw.calls == []


def test_a_large_function_warns_with_the_name_of_what_it_captured(straw, monkeypatch):
    monkeypatch.setattr(_callee, "WARN_FUNCTION_BYTES", 1000)
    table, small = b"x" * 2000, b"y"
    with pytest.warns(UserWarning, match=r"very large.*'table'.*put\(\)") as caught:
        tl.remote(lambda: (table, small)).remote()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="'kept'"):
        tl.remote(lambda kept=table: kept).remote()


def test_a_function_of_enormous_size_is_refused(straw, monkeypatch):
    monkeypatch.setattr(_callee, "WARN_FUNCTION_BYTES", 1000)
    monkeypatch.setattr(_callee, "MAX_FUNCTION_BYTES", 2000)
    table = b"x" * 2000
    with pytest.raises(ValueError, match="'table'"):
        tl.remote(lambda: table).remote()


def in_main(script: str) -> str:
    """What a program prints: functions of ``__main__`` travel by value."""
    program = textwrap.dedent(script)
    return subprocess.check_output([sys.executable, "-c", program], text=True)


def test_a_recursive_function_can_be_pickled_from_both_ends():
    out = in_main("""
        import pickle, cloudpickle, taskloom as tl

        @tl.remote
        def f(n: int = 3) -> int:
            "The factorial."
            return 1 if n < 2 else n * f.func(n - 1)

        for twin in (pickle.loads(cloudpickle.dumps(f)), pickle.loads(cloudpickle.dumps(f.func))):
            wrapper = twin if isinstance(twin, tl.RemoteFunction) else twin.__globals__["f"]
            assert wrapper is not f and wrapper.func is not f.func
            assert wrapper.func.__globals__["f"] is wrapper
            print(wrapper.func(5), wrapper.__name__, wrapper.__doc__, repr(wrapper))
            print(wrapper._callee.min_args, wrapper._callee.max_args)
    """)
    assert out == "120 f The factorial. <RemoteFunction __main__.f>\n0 1\n" * 2


def test_a_remote_function_is_a_value_and_keeps_its_options(straw):
    half = pickle.loads(cloudpickle.dumps({"f": double.options(num_cpus=0.5)}))["f"]
    assert tl.get(half.remote(2)) == 4
    assert straw.calls[0][0].request == (("CPU", 5000),)
    with pytest.raises(TypeError):
        half.remote()


# -- get, put, wait, cancel ---------------------------------------------------------------------


def test_get_keeps_the_order_and_the_kind_of_sequence(straw):
    refs = [double.remote(i) for i in range(3)]
    assert tl.get(refs[2]) == 4
    assert tl.get(refs) == [0, 2, 4]
    assert tl.get(tuple(refs)) == (0, 2, 4)
    assert tl.get([refs[0], refs[0]]) == [0, 0]
    assert (tl.get([]), tl.get(())) == ([], ())


def test_get_of_what_is_no_ref(straw):
    with pytest.raises(
        TypeError,
        match="Attempting to call `get` on the value 1, which is not an ray.ObjectRef.",
    ):
        tl.get([1])
    for wrong in (1, "ref", {"a": 1}, None):
        with pytest.raises(ValueError, match="Invalid type of object refs"):
            tl.get(wrong)


@pytest.mark.parametrize(
    ("given", "passed_on"), [(None, None), (-1, None), (0, 0), (2.5, 2.5), (math.inf, None)]
)
def test_timeouts_of_get(straw, given, passed_on):
    tl.get(double.remote(1), timeout=given)
    assert straw.asked == [("get", 1, passed_on)]


@pytest.mark.parametrize("wrong", [-2, -0.5, math.nan])
def test_a_timeout_that_is_none_is_refused(straw, wrong):
    with pytest.raises(ValueError, match="timeout"):
        tl.get(double.remote(1), timeout=wrong)


@pytest.mark.parametrize("wrong", ["1", b"1", [1], 1j])
async def test_a_timeout_that_is_no_number_is_named(straw, wrong):
    ref = double.remote(1)
    for call in (tl.get, lambda ref, timeout: tl.wait([ref], timeout=timeout)):
        with pytest.raises(TypeError, match=r"timeout must be None or a number of seconds, got"):
            call(ref, timeout=wrong)
    with pytest.raises(TypeError, match=r"timeout must be None or a number of seconds, got"):
        await tl.wait_async([ref], timeout=wrong)


def test_a_timeout_may_be_a_number_of_any_kind(straw):
    tl.get(double.remote(1), timeout=Fraction(5, 2))
    tl.wait([double.remote(1)], timeout=Decimal("2.5"))
    assert [call[-1] for call in straw.asked] == [2.5, 2.5]


async def test_a_blocking_get_in_a_coroutine_works_and_warns_once_for_each_line(straw):
    ref = double.remote(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert tl.get(ref) == 4
        assert tl.get([ref]) == [4]
        tl.wait([ref], timeout=0)
    assert [w.category for w in caught] == [BlockingGetWarning] * 2
    for warning in caught:
        assert warning.filename == __file__
        assert f"{__file__}:{warning.lineno}" in str(warning.message)


async def test_the_warning_can_be_turned_off(straw, monkeypatch):
    monkeypatch.setenv("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tl.get(double.remote(2)) == 4


@pytest.mark.parametrize(("host", "warns"), [("IPython.core.interactiveshell", 0), ("mine", 1)])
async def test_statements_of_a_notebook_are_not_warned_of(straw, host, warns):
    """The loop that they hold up is the notebook's, as with any statement there."""
    space = {"tl": tl, "ref": double.remote(2), "__name__": "__main__"}
    kernel: dict[str, Any] = {"__name__": host}
    exec("def run(code, space): return eval(code, space)", kernel)

    def cell(text):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return kernel["run"](compile(text, f"<cell of {host}>", "exec", flags=flags), space)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cell("value = tl.get(ref)")
        assert len(caught) == warns
        cell("\ndef function(): return tl.get([ref, ref])")
        cell("\n\n[value] = {*function()}")
        assert len(caught) == 2 * warns
        await cell("\n\n\nawait __import__('asyncio').sleep(0); tl.wait([ref])")
        assert len(caught) == 2 * warns + 1
    assert space["value"] == 4


def test_no_warning_where_no_loop_runs(straw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tl.get(double.remote(2)) == 4


def test_put_takes_no_ref_and_no_owner(straw):
    ref = tl.put([1])
    assert tl.get(ref) == [1]
    with pytest.raises(TypeError, match="Calling 'put' on an ray.ObjectRef is not allowed"):
        tl.put(ref)
    assert tl.get(tl.put([1, 2])) == [1, 2]
    with pytest.raises(ValueError, match="_owner"):
        tl.put(1, _owner=object())


def test_wait_checks_its_arguments_with_rays_words(straw):
    one, two = double.remote(1), double.remote(2)
    wrong: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (TypeError, "got a single ray.ObjectRef", one, {}),
        (TypeError, "expected a list", (one, two), {}),
        (TypeError, "got list containing <class 'int'>", [one, 1], {}),
        (ValueError, "unique", [one, one], {}),
        (ValueError, "Invalid number of objects to return 0", [one], {"num_returns": 0}),
        (ValueError, "cannot be greater", [one], {"num_returns": 2}),
        (ValueError, "must be nonnegative", [one], {"timeout": -1}),
        (ValueError, "must be nonnegative", [one], {"timeout": math.nan}),
        (TypeError, "num_returns", [one], {"num_returns": 1.5}),
    ]
    for error, text, refs, arguments in wrong:
        with pytest.raises(error, match=text):
            tl.wait(refs, **arguments)
    assert tl.wait([]) == ([], [])
    assert tl.wait([one, two], timeout=3) == ([one], [two])
    assert straw.asked == [("wait", 1, 3)]


def test_cancel_is_for_refs(straw):
    ref = double.remote(1)
    tl.cancel(ref)
    tl.cancel(ref, force=True, recursive=False)
    assert straw.asked == [("cancel", ref, False, True), ("cancel", ref, True, False)]
    with pytest.raises(TypeError, match=r"ray.cancel\(\) only supported for object refs"):
        tl.cancel(double)


# -- where am I ---------------------------------------------------------------------------------


def test_nodes_is_one_row_in_rays_form(straw):
    (node,) = tl.nodes()
    assert node["NodeID"] == straw.node_id
    assert node["Alive"] is True
    assert node["Resources"] == tl.cluster_resources() == straw.cluster_resources()
    assert tl.available_resources() == {"node:127.0.0.1": 1.0}


def test_the_driver_knows_its_session_and_is_no_task(straw):
    context = tl.get_runtime_context()
    assert context is tl.get_runtime_context()
    assert context.get_job_id() == straw.job_id
    assert context.get_node_id() == straw.node_id
    assert context.get_worker_id() == straw.worker_id
    assert straw.session_id.hex() in context.get_session_name()
    assert context.namespace == "straw"
    assert context.get_task_id() is None
    assert context.get_task_name() is None
    assert context.get_task_function_name() is None
    assert context.get_actor_id() is None
    assert context.get_actor_name() is None
    assert context.get_accelerator_ids() == {"GPU": []}
    assert tl.get_gpu_ids() == []
    with pytest.raises(AssertionError):
        context.get_assigned_resources()
    with pytest.raises(RuntimeError, match="in a task"):
        context.is_canceled()
    with pytest.raises(RuntimeError, match="actor"):
        _ = context.current_actor


def test_a_task_knows_itself(straw):
    ref = double.remote(1)
    straw.here = ExecutionContext(
        task_key=_ids.task_of(ref._key),
        task_name="mine",
        function_name="double",
        resources=(("CPU", 5000), ("GPU", 20000)),
        accelerator_ids=(("GPU", ("0", "3")),),
    )
    context = tl.get_runtime_context()
    assert context.get_task_id() == ref.task_id()
    assert context.get_task_name() == "mine"
    assert context.get_task_function_name() == "double"
    assert context.get_assigned_resources() == {"CPU": 0.5, "GPU": 2.0}
    assert context.get_accelerator_ids() == {"GPU": ["0", "3"]}
    assert tl.get_gpu_ids() == [0, 3]
    assert context.is_canceled()


def test_without_a_session_the_context_has_nothing_to_tell(straws):
    context = tl.get_runtime_context()
    tl.shutdown()
    with pytest.raises(RuntimeError, match="not initialised"):
        context.get_job_id()
