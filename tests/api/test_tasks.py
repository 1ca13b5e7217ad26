"""Tasks on real workers: what ``@remote`` makes of a function (rows REM of the reference)."""

from __future__ import annotations

import math
import os
import threading
from functools import partial
from types import ModuleType

import pytest
from tests.gates import Gate

from taskloom.exceptions import (
    RayTaskError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

SESSION = {"num_cpus": 2, "resources": {"db": 1}}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


# -- the decorator and the call -----------------------------------------------------------------


def test_all_forms_of_the_decorator_run_in_a_worker_REM_1(tl: ModuleType):
    def pid() -> int:
        return os.getpid()

    forms = [tl.remote(pid), tl.remote(num_cpus=1)(pid), tl.remote()(pid)]

    @tl.remote
    def decorated() -> int:
        return os.getpid()

    pids = tl.get([form.remote() for form in (*forms, decorated)])

    assert os.getpid() not in pids


def test_builtins_partials_bound_methods_and_callable_objects_run_REM_1(tl: ModuleType):
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, x: int) -> int:
            return x + self.n

        __call__ = add

    functions = [math.sqrt, partial(pow, 2), Adder(1).add, Adder(2)]

    assert tl.get([tl.remote(f).remote(4) for f in functions]) == [2.0, 16, 5, 6]


def test_a_direct_call_is_a_type_error_and_the_plain_function_is_func_REM_2(tl: ModuleType):
    @tl.remote
    def f(x: int) -> int:
        return x + 1

    with pytest.raises(TypeError, match=r"\.remote\(\)"):
        f(1)
    assert f.func(1) == 2


def test_a_call_gives_a_ref_a_list_or_none_by_the_number_of_returns_REM_3(tl: ModuleType):
    @tl.remote
    def f(n: int) -> object:
        return list(range(n)) if n else None

    one = f.remote(1)
    two = f.options(num_returns=2).remote(2)
    assert isinstance(one, tl.ObjectRef)
    assert isinstance(two, list)
    assert f.options(num_returns=0).remote(0) is None
    assert tl.get(one) == [0]
    assert tl.get(two) == [0, 1]


@pytest.mark.parametrize(("args", "kwargs"), [((1, 2, 3), {}), ((), {}), ((1,), {"b": 2})])
def test_wrong_arguments_raise_at_the_call_and_run_nothing_REM_3(tl, gate, args, kwargs):
    @tl.remote
    def f(a):
        gate.note("ran")

    with pytest.raises(TypeError):
        f.remote(*args, **kwargs)
    tl.get(tl.remote(lambda: None).remote())
    assert gate.count("ran") == 0


def test_defaults_keywords_and_stars_arrive_as_in_a_plain_call_REM_3(tl):
    @tl.remote
    def f(a, b=2, /, *rest, c, d=4, **more):
        return a, b, rest, c, d, more

    assert tl.get(f.remote(1, c=3)) == (1, 2, (), 3, 4, {})
    assert tl.get(f.remote(1, 5, 6, 7, c=3, d=8, e=9)) == (1, 5, (6, 7), 3, 8, {"e": 9})


def test_options_run_the_same_function_with_other_settings_REM_4(tl):
    @tl.remote(num_cpus=1)
    def asked():
        import taskloom

        return taskloom.get_runtime_context().get_assigned_resources()

    assert tl.get(asked.remote()) == {"CPU": 1.0}
    assert tl.get(asked.options(num_cpus=0.5).remote()) == {"CPU": 0.5}
    assert tl.get(asked.remote()) == {"CPU": 1.0}, "the function itself is unchanged"


def test_unknown_options_and_max_calls_are_refused_by_options_REM_4(tl):
    f = tl.remote(lambda: 1)

    with pytest.raises(ValueError, match="Invalid option keyword nonsense"):
        f.options(nonsense=1)
    with pytest.raises(ValueError, match="Setting 'max_calls' is not supported"):
        f.options(max_calls=1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0},
        {"num_cpus": 0.5},
        {"num_cpus": 2},
        {"memory": 1024},
        {"resources": {"db": 1}},
        {"name": "called"},
        {"max_retries": 0},
        {"max_retries": -1},
        {"retry_exceptions": True},
        {"retry_exceptions": [KeyError]},
        {"retry_exceptions": (KeyError, ValueError)},
        {"priority": 3},
        {"priority": -3},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": "DEFAULT"},
        {"accelerator_type": None},
        {"label_selector": {"zone": "a"}},
        {"fallback_strategy": []},
        {"enable_task_events": False},
        {"placement_group": "default"},
        {"placement_group_bundle_index": -1},
        {"placement_group_capture_child_tasks": True},
        {"runtime_env": {}},
        {"_labels": {"a": "b"}},
        {"_generator_backpressure_num_objects": -1},
        {"backpressure": -1},
        {"_num_objects_per_yield": 1},
        {"object_store_memory": None},
    ],
    ids=str,
)
def test_a_task_runs_with_each_option_that_is_valid_REM_5(tl, options):
    f = tl.remote(lambda: "ran")

    assert tl.get(tl.remote(**options)(lambda: "ran").remote()) == "ran"
    assert tl.get(f.options(**options).remote()) == "ran"


def test_a_task_runs_with_every_kind_of_option_at_once_REM_5(tl):
    f = tl.remote(
        num_cpus=0.5,
        memory=1024,
        name="all",
        max_retries=1,
        retry_exceptions=(KeyError,),
        priority=1,
        scheduling_strategy="SPREAD",
        label_selector={"zone": "a"},
        enable_task_events=False,
        runtime_env={},
    )(lambda: "ran")

    assert tl.get(f.remote()) == "ran"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpus": "1"}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": 0.00001}, ValueError),
        ({"num_cpus": math.nan}, ValueError),
        ({"num_cpus": math.inf}, ValueError),
        ({"num_gpus": "1"}, TypeError),
        ({"num_gpus": -1}, ValueError),
        ({"num_gpus": 1.5}, ValueError),
        ({"memory": "1"}, TypeError),
        ({"memory": -1}, ValueError),
        ({"resources": 1}, TypeError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"GPU": 1}}, ValueError),
        ({"resources": {"db": -1}}, ValueError),
        ({"resources": {"db": "1"}}, TypeError),
        ({"name": 1}, TypeError),
        ({"num_returns": 1.5}, TypeError),
        ({"num_returns": -1}, ValueError),
        ({"max_retries": "3"}, TypeError),
        ({"max_retries": -2}, ValueError),
        ({"retry_exceptions": 1}, TypeError),
        ({"retry_exceptions": [1]}, ValueError),
        ({"retry_exceptions": (int,)}, ValueError),
        ({"priority": 1.5}, TypeError),
        ({"max_calls": -1}, ValueError),
        ({"max_calls": "1"}, TypeError),
        ({"runtime_env": 1}, TypeError),
        ({"scheduling_strategy": "NOWHERE"}, ValueError),
        ({"scheduling_strategy": 1}, TypeError),
        ({"object_store_memory": 1}, ValueError),
        ({"label_selector": 1}, TypeError),
        ({"enable_task_events": 1}, TypeError),
        ({"_generator_backpressure_num_objects": 0}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_option_raises_where_it_is_given_REM_5(options, error):
    import taskloom

    with pytest.raises(error):
        taskloom.remote(**options)(lambda: None)


def test_no_option_of_a_task_is_accepted_that_is_not_honoured_REM_5():
    import taskloom

    for options in ({"runtime_env": {"env_vars": {"A": "1"}}}, {"max_calls": 1}):
        with pytest.raises(NotImplementedError, match="taskloom"):
            taskloom.remote(**options)(lambda: None)


@pytest.mark.filterwarnings("ignore::taskloom.exceptions.RayDeprecationWarning")
@pytest.mark.parametrize("value", ["streaming", "dynamic"])
def test_streams_are_only_for_generator_functions_REM_6(tl, value):
    with pytest.raises(ValueError, match="generator"):
        tl.remote(num_returns=value)(lambda: 1).remote()


def test_other_words_for_the_number_of_returns_are_a_type_error_REM_6(tl):
    with pytest.raises(TypeError, match="many"):
        tl.remote(num_returns="many")(lambda: 1)


# -- several returns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [tuple, list, iter, lambda items: (i for i in items)],
    ids=["tuple", "list", "it", "gen"],
)
def test_each_of_several_returns_has_a_ref_of_its_own_REM_7(tl, make):
    @tl.remote(num_returns=3)
    def f():
        return make([1, 2, 3])

    a, b, c = f.remote()

    assert tl.get(c) == 3
    assert tl.get([a, b]) == [1, 2]


def test_a_generator_function_with_a_number_of_returns_fills_its_refs_REM_7(tl):
    @tl.remote(num_returns=2)
    def f():
        yield "a"
        yield "b"

    assert tl.get(f.remote()) == ["a", "b"]


def test_a_wrong_number_of_returns_is_the_error_of_each_ref_REM_7(tl):
    @tl.remote(num_returns=2)
    def f(n):
        return range(n)

    for ref in f.remote(1):
        with pytest.raises(ValueError, match=r"Task returned 1 objects, but num_returns=2\."):
            tl.get(ref)
    for ref in f.remote(3):
        with pytest.raises(ValueError, match=r"Task returned more than num_returns=2 objects\."):
            tl.get(ref)


def test_what_cannot_be_iterated_is_not_several_returns_REM_7(tl):
    for ref in tl.remote(num_returns=2)(lambda: 5).remote():
        with pytest.raises(RayTaskError, match="num_returns"):
            tl.get(ref)


def test_a_failed_task_fails_each_of_its_refs_REM_7(tl):
    for ref in tl.remote(num_returns=3)(lambda: 1 / 0).remote():
        with pytest.raises(ZeroDivisionError):
            tl.get(ref)


def test_a_call_without_returns_still_runs_REM_7(tl, gate):
    assert tl.remote(num_returns=0)(lambda: gate.note("ran")).remote() is None

    gate.wait_for("ran")


# -- dependencies -------------------------------------------------------------------------------


def test_refs_as_arguments_arrive_as_values_and_refs_inside_stay_refs_REM_8(tl):
    @tl.remote
    def kinds(a, b, *, c, d):
        return a, type(b[0]).__name__, c, type(d["x"]).__name__, b[0].hex()

    one = tl.put(1)

    assert tl.get(kinds.remote(one, [one], c=one, d={"x": one})) == (
        1,
        "ObjectRef",
        1,
        "ObjectRef",
        one.hex(),
    )


def test_a_ref_inside_an_object_stays_a_ref_and_can_be_fetched_REM_8(tl):
    class Box:
        def __init__(self, ref):
            self.ref = ref

    @tl.remote
    def fetch(box):
        import taskloom

        return taskloom.get(box.ref)

    assert tl.get(fetch.remote(Box(tl.remote(lambda: "inside").remote()))) == "inside"


def test_a_task_waits_for_every_dependency_REM_8(tl, gate):
    @tl.remote(num_cpus=0)
    def held(value):
        gate.enter("held")
        return value

    @tl.remote(num_cpus=0)
    def add(*values):
        gate.note("added")
        return sum(values)

    total = add.remote(tl.put(1), held.remote(2), tl.remote(lambda: 3).remote())
    gate.wait_for("held")
    assert tl.wait([total], timeout=0.05) == ([], [total])
    assert gate.count("added") == 0
    gate.open()

    assert tl.get(total) == 6


def test_one_ref_many_times_in_one_call_is_one_dependency_REM_8(tl):
    one = tl.remote(lambda: 1).remote()

    assert tl.get(tl.remote(lambda *values: sum(values)).remote(*[one] * 1000)) == 1000


def test_dependents_of_a_failed_task_never_run_and_raise_its_error_REM_9(tl, gate):
    @tl.remote
    def divide(x):
        return x / 0

    @tl.remote
    def after(x):
        gate.note("ran")
        return x

    a = divide.remote(1)
    b = after.remote(a)
    c = after.remote(b)
    with pytest.raises(ZeroDivisionError) as raised:
        tl.get(c)

    assert isinstance(raised.value, RayTaskError)
    assert "At least one of the input arguments for this task could not be computed:" in str(
        raised.value
    )
    assert "return x / 0" in str(raised.value)
    with pytest.raises(ZeroDivisionError):
        tl.get(after.remote(x=b))
    assert gate.count("ran") == 0


def test_a_dependent_of_a_ref_that_failed_long_ago_fails_at_once_REM_9(tl):
    failed = tl.remote(lambda: {}["missing"]).remote()
    with pytest.raises(KeyError):
        tl.get(failed)

    with pytest.raises(KeyError):
        tl.get(tl.remote(lambda x: x).remote(failed))


# -- functions as code --------------------------------------------------------------------------


def test_a_function_keeps_what_it_captured_at_its_first_call_REM_13(run_driver):
    done = run_driver(
        """
import taskloom as ray

value = "old"

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(self) is type(other) and self.x == other.x

@ray.remote
def read():
    return value

@ray.remote
def move(p):
    return Point(p.x + 1)

if __name__ == "__main__":
    ray.init(num_cpus=1)
    print(ray.get(read.remote()))
    value = "new"
    print(ray.get(read.remote()))
    n = 5
    print(ray.get(ray.remote(lambda: n + 1).remote()))
    def outer():
        k = 10
        @ray.remote
        def inner(): return k * 2
        return inner
    print(ray.get(outer().remote()))
    assert ray.get(move.remote(Point(1))) == Point(2)
"""
    )
    assert (done.returncode, done.stdout.split()) == (0, ["old", "old", "6", "20"]), done.stderr


def test_functions_of_one_name_are_not_confused_REM_13(tl):
    def version(n):
        @tl.remote
        def same_name():
            return n

        return same_name

    assert tl.get([version(n).remote() for n in range(20)]) == list(range(20))


def test_a_large_function_warns_and_names_what_it_captured_REM_14(tl):
    ballast = bytes(11 * 2**20)

    with pytest.warns(UserWarning, match=r"very large(.|\n)*ballast"):
        ref = tl.remote(lambda: len(ballast)).remote()
    assert tl.get(ref) == 11 * 2**20


def test_a_function_of_a_hundred_megabytes_is_refused_REM_14(tl):
    ballast = bytes(101 * 2**20)

    with pytest.raises(ValueError, match="ballast"):
        tl.remote(lambda: len(ballast)).remote()


def test_a_remote_function_is_a_value_REM_21(tl):
    @tl.remote
    def double(x):
        return 2 * x

    @tl.remote
    def apply(functions, x):
        import taskloom

        return taskloom.get([f.remote(x) for f in functions])

    assert tl.get(apply.remote([double, double.options(num_cpus=0)], 4)) == [8, 8]
    assert tl.get(tl.get(tl.put(double)).remote(3)) == 6


# -- failures and attempts ----------------------------------------------------------------------


def test_a_task_whose_worker_dies_is_tried_again_REM_16(tl, gate):
    @tl.remote
    def third_time_lucky():
        gate.note("attempt")
        if gate.count("attempt") < 3:
            os._exit(1)
        return "done"

    assert tl.get(third_time_lucky.remote()) == "done"
    assert len(set(gate.pids("attempt"))) == 3


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (1, 2), (3, 4)])
def test_a_task_that_kills_its_worker_uses_up_its_retries_REM_16(tl, gate, max_retries, attempts):
    @tl.remote(max_retries=max_retries)
    def die():
        gate.note("attempt")
        os._exit(7)

    with pytest.raises(WorkerCrashedError, match="exited with code 7"):
        tl.get(die.remote())
    assert gate.count("attempt") == attempts


def test_minus_one_retries_without_end_REM_16(tl, gate):
    @tl.remote(max_retries=-1)
    def die():
        gate.note("attempt")
        if gate.count("attempt") < 8:
            os._exit(1)
        return "done"

    assert tl.get(die.remote()) == "done"


def test_the_environment_says_how_often_a_task_is_tried_again_REM_16(run_driver, tmp_path):
    done = run_driver(
        """
import os, sys
import taskloom as ray

@ray.remote
def die(path):
    with open(path, "a") as file: file.write("x")
    os._exit(1)

ray.init(num_cpus=1)
try:
    ray.get(die.remote(sys.argv[1]))
except ray.exceptions.WorkerCrashedError:
    print(os.path.getsize(sys.argv[1]))
""",
        args=[str(tmp_path / "attempts")],
        env={"RAY_TASK_MAX_RETRIES": "1"},
    )
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize(
    ("retry_exceptions", "attempts"),
    [
        (False, 1),
        (True, 4),
        ([LookupError], 4),
        ([KeyError], 4),
        ((ValueError, KeyError), 4),
        ([ValueError], 1),
    ],
    ids=str,
)
def test_exceptions_are_retried_when_asked_for_REM_17(tl, gate, retry_exceptions, attempts):
    @tl.remote(max_retries=3, retry_exceptions=retry_exceptions)
    def fail():
        gate.note("attempt")
        raise KeyError(gate.count("attempt"))

    with pytest.raises(KeyError) as raised:
        tl.get(fail.remote())
    assert gate.count("attempt") == attempts
    assert raised.value.args == (attempts,), "the error of the last attempt is the one raised"


def test_a_retry_that_succeeds_is_the_result_REM_17(tl, gate):
    @tl.remote(retry_exceptions=True)
    def second_time_lucky(values):
        values.append(1)
        gate.note("attempt")
        if gate.count("attempt") == 1:
            raise RuntimeError
        return values

    assert tl.get(second_time_lucky.remote([])) == [1], "each attempt has fresh arguments"


def test_the_own_exception_class_can_be_retried_REM_17(tl, gate):
    class Flaky(Exception):
        pass

    @tl.remote(max_retries=1, retry_exceptions=[Flaky])
    def fail():
        gate.note("attempt")
        raise Flaky

    with pytest.raises(Flaky):
        tl.get(fail.remote())
    assert gate.count("attempt") == 2


def test_name_is_what_the_context_says_REM_19(tl):
    @tl.remote(name="called")
    def f():
        import taskloom

        context = taskloom.get_runtime_context()
        return context.get_task_name(), context.get_task_function_name().rpartition(".")[2]

    assert tl.get(f.remote()) == ("called", "f")
    assert tl.get(f.options(name="otherwise").remote()) == ("otherwise", "f")


# -- fire and forget ----------------------------------------------------------------------------


def test_a_task_whose_ref_is_dropped_still_runs_REM_20(tl, gate):
    tl.remote(lambda: gate.note("ran")).remote()

    gate.wait_for("ran")


def test_a_pending_task_whose_ref_is_dropped_still_runs_REM_20(tl, gate):
    @tl.remote(num_cpus=0)
    def held():
        gate.enter("held")
        return 1

    tl.remote(lambda x: gate.note("ran")).remote(held.remote())
    gate.wait_for("held")
    gate.open()

    gate.wait_for("ran")


def test_an_error_nobody_asked_for_is_printed_once_REM_20(run_driver):
    done = run_driver(
        """
import taskloom as ray

@ray.remote
def fail(text):
    raise ValueError(text)

ray.init(num_cpus=1)
fail.remote("nobody looked")
try:
    ray.get(fail.remote("somebody looked"))
except ValueError:
    pass
ray.get(ray.remote(lambda: 1).remote())
ray.shutdown()
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Unhandled error (suppress with") == 1
    assert done.stderr.count("ValueError: nobody looked") == 1
    assert "somebody looked" not in done.stderr


def test_unhandled_errors_can_be_silenced_REM_20(run_driver):
    done = run_driver(
        """
import taskloom as ray

def fail(): raise ValueError("nobody looked")

ray.init(num_cpus=1)
ray.remote(fail).remote()
ray.get(ray.remote(lambda: 1).remote())
""",
        env={"RAY_IGNORE_UNHANDLED_ERRORS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- the worker as a process --------------------------------------------------------------------


def test_the_number_of_threads_follows_the_cpus_asked_for_REM_22(run_driver):
    done = run_driver(
        """
import os
os.environ.pop("OMP_NUM_THREADS", None)
import taskloom as ray

@ray.remote
def threads(): return os.environ.get("OMP_NUM_THREADS")

ray.init(num_cpus=4)
sizes = [0, 0.5, 1, 2.5, 4]
print(ray.get([threads.options(num_cpus=n).remote() for n in sizes]))
print(os.environ.get("OMP_NUM_THREADS"))
"""
    )
    assert done.stdout == "['1', '1', '1', '2', '4']\nNone\n", done.stderr


def test_the_users_number_of_threads_is_respected_REM_22(run_driver):
    done = run_driver(
        """
import os
import taskloom as ray

ray.init(num_cpus=2)
print(ray.get(ray.remote(num_cpus=2)(lambda: os.environ["OMP_NUM_THREADS"]).remote()))
""",
        env={"OMP_NUM_THREADS": "7"},
    )
    assert done.stdout == "7\n", done.stderr


def test_workers_are_used_again_and_keep_their_globals_REM_24(tl):
    def next_number():
        import sys

        sys.taskloom_test_number = number = getattr(sys, "taskloom_test_number", 0) + 1
        return os.getpid(), number

    f = tl.remote(num_cpus=2)(next_number)
    seen = [tl.get(f.remote()) for _ in range(6)]

    pid, numbers = seen[0][0], [number for _, number in seen]
    assert {p for p, _ in seen} == {pid}
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_workers_have_the_drivers_directory_path_and_environment_REM_25(run_driver, tmp_path):
    (tmp_path / "beside_the_script.py").write_text("NAME = 'helper'\n")
    (tmp_path / "elsewhere").mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        """
import os
import taskloom as ray
import beside_the_script

@ray.remote
def look():
    import beside_the_script as module
    return os.getcwd(), os.environ["SEEN"], os.environ.get("UNSEEN"), module.NAME

ray.init(num_cpus=1)
os.environ["UNSEEN"] = "set after init"
print(ray.get(look.remote()))
"""
    )
    done = run_driver(
        f"import runpy, sys; sys.path[0] = {str(tmp_path)!r}; sys.argv = [{str(program)!r}]\n"
        f"runpy.run_path({str(program)!r}, run_name='__main__')",
        env={"SEEN": "before init"},
        cwd=tmp_path / "elsewhere",
    )
    expected = (str(tmp_path / "elsewhere"), "before init", None, "helper")
    assert done.stdout == f"{expected}\n", done.stderr


# -- bad input ----------------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled_names_its_member_at_the_call(tl, gate):
    class Connection:
        def __init__(self):
            self.lock = threading.Lock()

    @tl.remote
    def f(x, conn=None):
        gate.note("ran")

    for call in (
        lambda: f.remote([Connection()]),
        lambda: f.remote(1, conn={"a": Connection()}),
    ):
        with pytest.raises(TypeError, match=r"lock"):
            call()
    with pytest.raises(TypeError, match=r"args\[0\]\[0\]\.lock"):
        f.remote([Connection()])
    assert tl.get(tl.remote(lambda: 1).remote()) == 1
    assert gate.count("ran") == 0


def test_a_result_that_cannot_be_pickled_is_the_error_of_the_task(tl):
    @tl.remote
    def f():
        return {"inner": threading.Lock()}

    with pytest.raises(TypeError, match=r"return value of .*f.*inner"):
        tl.get(f.remote())


def test_what_can_never_fit_says_what_was_asked_and_what_there_is(tl):
    with pytest.raises(TaskUnschedulableError, match=r"CPU.*1000(.|\n)*CPU.*2"):
        tl.get(tl.remote(num_cpus=1000)(lambda: 1).remote())


def test_values_of_every_size_travel_both_ways(tl):
    echo = tl.remote(lambda x: x)

    for size in (0, 1, 4095, 65536, 3 * 2**20, 40 * 2**20):
        data = os.urandom(min(size, 4096)) * (size // 4096 + 1)
        assert tl.get(echo.remote(data)) == data


def test_kinds_of_values_are_kept(tl):
    echo = tl.remote(lambda x: x)
    shared = [1, 2]
    values = [
        None,
        True,
        1 << 100,
        1.5,
        2j,
        "text \N{SNOWMAN}",
        b"b",
        bytearray(b"c"),
        {1},
        {"a": ()},
    ]

    assert tl.get([echo.remote(value) for value in values]) == values
    assert type(tl.get(echo.remote(bytearray(b"x")))) is bytearray
    first, second = tl.get(echo.remote([shared, shared]))
    assert first is second


def test_arrays_of_numpy_travel_both_ways(tl):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000).reshape(1000, 1000)

    back = tl.get(tl.remote(lambda a: a + 1).remote(array))

    assert (back == array + 1).all()
