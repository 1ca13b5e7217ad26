"""Programs written for Ray run unchanged: ``import ray`` gives taskloom.

Each test is a process of its own, because what is imported under a name stays there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).resolve().parent.parent.parent / "src"


def run(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def run_code(code: str) -> str:
    """What a program prints that ends well."""
    done = run("-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_script(tmp_path: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as ``python -m taskloom.compat.ray script.py``, from another directory."""
    script = tmp_path / "scripts" / "program.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(textwrap.dedent(code))
    return run("-m", "taskloom.compat.ray", script, *arguments, cwd=tmp_path)


# -- the name ---------------------------------------------------------------------------------


def test_ray_and_what_is_below_it_are_taskloom_s_own_modules():
    out = run_code("""
        import taskloom.compat.ray
        taskloom.compat.ray.install()

        import ray
        import ray.exceptions
        import ray.remote_function as remote_function
        import ray.runtime_context
        from ray import ObjectRef, util
        from ray.exceptions import RayTaskError, GetTimeoutError
        import taskloom, taskloom.exceptions, taskloom.runtime_context
        import ray.cloudpickle as pickle, cloudpickle

        assert ray is taskloom
        assert ray.exceptions is taskloom.exceptions
        assert ray.exceptions.__spec__.name == "taskloom.exceptions"
        assert ray.runtime_context is taskloom.runtime_context
        assert remote_function.RemoteFunction is taskloom.RemoteFunction
        assert ObjectRef is taskloom.ObjectRef and util is taskloom.util
        assert RayTaskError is taskloom.exceptions.RayTaskError
        assert pickle is cloudpickle
        print(ray.__version__ == taskloom.__version__)
    """)
    assert out == "True\n"


@pytest.mark.parametrize("name", ["ray.train", "ray.data.dataset", "ray._private", "ray._current"])
def test_modules_that_taskloom_has_not_are_not_found(name):
    out = run_code(f"""
        import taskloom.compat.ray
        taskloom.compat.ray.install()
        try:
            import {name}
        except ModuleNotFoundError as error:
            print(error.name, error)
    """)
    assert out.startswith("ray.")
    assert "ray is taskloom here" in out


def test_installing_twice_is_installing_once():
    out = run_code("""
        import sys, taskloom.compat.ray
        from taskloom import _current
        for _ in range(3):
            taskloom.compat.ray.install()
        print(_current.worker_setup)
        print(sum(type(f).__module__ == "taskloom.compat.ray" for f in sys.meta_path))
    """)
    assert out == "['taskloom.compat.ray:install']\n1\n"


def test_the_real_ray_is_not_pushed_aside(tmp_path):
    (tmp_path / "ray.py").write_text("real = True")
    done = run(
        "-c",
        "import ray, taskloom.compat.ray as shim\n"
        "try: shim.install()\n"
        "except RuntimeError as error: print(error, ray.real)",
        cwd=tmp_path,
    )
    assert done.stdout.startswith("the real ray (")
    assert done.stdout.endswith("must come first True\n")


def test_a_session_without_the_name_must_end_first():
    out = run_code("""
        import taskloom, taskloom.compat.ray
        taskloom.init(local_mode=True)
        try:
            taskloom.compat.ray.install()
        except RuntimeError as error:
            print(error)
        taskloom.shutdown()
        taskloom.compat.ray.install()
    """)
    assert "a session runs already" in out


# -- python -m taskloom.compat.ray script.py ------------------------------------------------------


def test_a_script_runs_as_python_would_run_it(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("value = 7")
    done = run_script(
        tmp_path,
        """
        import atexit, os, sys
        import __main__
        import beside
        import ray

        CONSTANT = 5

        @ray.remote
        def f(x):
            return x + CONSTANT

        atexit.register(lambda: print("at exit", sys.modules["__main__"].CONSTANT))
        if __name__ == "__main__":
            assert __main__.f is f and f.func.__module__ == "__main__"
            print(sys.argv[1:], os.path.basename(sys.argv[0]), os.path.basename(__file__))
            print(os.path.basename(sys.path[0]), beside.value)
            ray.init(local_mode=True)
            print(ray.get(f.remote(1)))
            sys.exit(3)
        """,
        "--flag",
        "value",
    )
    assert done.stdout.splitlines() == [
        "['--flag', 'value'] program.py program.py",
        "scripts 7",
        "6",
        "at exit 5",
    ], done.stderr
    assert done.returncode == 3


def test_an_error_looks_like_the_script_s_own(tmp_path):
    script = """
        def fail():
            raise KeyError("here")

        fail()
    """
    done = run_script(tmp_path, script)
    plain = run(tmp_path / "scripts" / "program.py")
    assert done.returncode == plain.returncode == 1
    assert done.stderr == plain.stderr
    assert "taskloom" not in done.stderr


def test_a_syntax_error_looks_like_the_script_s_own(tmp_path):
    done = run_script(tmp_path, "x = = 1")
    plain = run(tmp_path / "scripts" / "program.py")
    assert done.returncode == plain.returncode == 1
    assert done.stderr == plain.stderr


def test_a_script_that_is_not_there_is_named(tmp_path):
    done = run("-m", "taskloom.compat.ray", tmp_path / "gone.py")
    assert done.returncode == 2
    assert "gone.py" in done.stderr
    assert "usage" in run("-m", "taskloom.compat.ray").stderr


# -- whole programs -------------------------------------------------------------------------------

TASK_PARALLELISM = """
    import ray
    from ray import ObjectRef
    import time


    @ray.remote
    def remote_task_1(data: int) -> int:
        return data + 1

    @ray.remote
    def remote_task_2(data: float) -> float:
        time.sleep(SECONDS)
        return data * 2.0


    @ray.remote
    def remote_task_3(data: int) -> float:

        # this task cannot proceed
        # if task2 is not ready
        result_task_2 = ray.get(remote_task_2.remote(2.0))
        return data + result_task_2


    if __name__ == '__main__':

        # initialize the Ray cluster
        ray.init(ARGUMENTS)

        # Invoke this remote function, use the `remote` method.
        # this is an asynchronous op
        obj_ref_1 = remote_task_1.remote(2)

        # do work locally
        counter = 0
        for _ in range(10):
            counter += 1

        # get the result from the first task
        # this blocks if the result is not ready
        result_task_1 = ray.get(obj_ref_1)

        # add this to the counter
        counter += result_task_1

        final_answer_ref = remote_task_3.remote(counter)
        final_answer = ray.get(final_answer_ref)
        print(f'Final answer is {final_answer}')
        ray.shutdown()
"""


@pytest.mark.parametrize("arguments", ["", "num_cpus=1", "local_mode=True"])
def test_task_parallelism_with_ray(tmp_path, arguments):
    program = TASK_PARALLELISM.replace("ARGUMENTS", arguments).replace("SECONDS", "0.1")
    done = run_script(tmp_path, program)
    assert (done.stdout, done.stderr, done.returncode) == ("Final answer is 17.0\n", "", 0)


MATRICES = """
    from itertools import product

    import ray

    Matrix = list[list[int]]

    @ray.remote(num_cpus=2) # decorator to convert python function to ray task
    def perform_naive_matrix_multiplication(size: int) -> Matrix:
        matrix1 = matrix2 = [[1 for _ in range(size)] for _ in range(size)]

        result = [[0 for _ in range(size)] for _ in range(size)]
        for i, j, k in product(range(size), range(size), range(size)):
            result[i][j] += matrix1[i][k] * matrix2[k][j]

        return result

    size = 10
    object_ref = perform_naive_matrix_multiplication.remote(size=size)
    print(object_ref)

    object_value = ray.get(object_ref)
    assert len(object_value[0]) == size

    # while we might run the matrix mult on a GPU, the sum we definitely want computed on a CPU
    @ray.remote(num_cpus=1)
    def compute_matrix_sum(matrix: Matrix) -> int:
        return sum([sum([col for col in row]) for row in matrix])

    # default num_cpus = 1 so it does not need to be explicitly specified
    @ray.remote
    def expensive_computation(size: int) -> int:
        result_obj_ref = perform_naive_matrix_multiplication.remote(size)
        sum_obj_ref = compute_matrix_sum.remote(result_obj_ref)
        return ray.get(sum_obj_ref)

    n_runs = 10
    size = 30
    object_refs = [expensive_computation.remote(size) for _ in range(n_runs)]
    results = ray.get(object_refs)
    expected_result = size**3
    assert sum(results) == n_runs * expected_result
    print(sum(results))
"""


@pytest.mark.parametrize("first", ["", "ray.init(num_cpus=2)", "ray.init(local_mode=True)"])
def test_overview_of_a_ray_task(tmp_path, first):
    if not first and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("it asks for two CPUs")
    program = MATRICES.replace("    Matrix = list", f"    {first}\n    Matrix = list", 1)
    done = run_script(tmp_path, program)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0].startswith("ObjectRef(")
    assert len(printed[0]) == len("ObjectRef()") + 56
    assert printed[1] == "270000"


def test_the_name_is_there_in_workers_too(tmp_path):
    done = run_script(
        tmp_path,
        """
        import ray

        @ray.remote
        def leaf(x):
            import ray
            from ray.exceptions import RayTaskError
            return ray.__name__, RayTaskError.__module__, ray.get(ray.put(x))

        @ray.remote
        def root():
            import ray
            return ray.get(leaf.remote(1))

        ray.init(num_cpus=1)
        print(ray.get(root.remote()))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('taskloom', 'taskloom.exceptions', 1)\n"
