"""The two programs that taskloom was asked to run: with ``import taskloom as ray``, and unmodified.

Only numbers are changed here, so that a test does not take as long as the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TASK_PARALLELISM = """\
import ray
from ray import ObjectRef
import time


@ray.remote
def remote_task_1(data: int) -> int:
    return data + 1

@ray.remote
def remote_task_2(data: float) -> float:
	time.sleep(10)
	return data * 2.0


@ray.remote
def remote_task_3(data: int) -> float:

	# this task cannot proceed
	# if task2 is not ready
	result_task_2 = ray.get(remote_task_2.remote(2.0))
	return data + result_task_2


if __name__ == '__main__':

	# initialize the Ray cluster
	ray.init()

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

"""  # noqa: W293  # as it was written, tabs and all

# The cells of a notebook, one after another.
OVERVIEW = """\
from itertools import product

Matrix = list[list[int]]

def perform_naive_matrix_multiplication(size: int) -> Matrix:
    matrix1 = matrix2 = [[1 for _ in range(size)] for _ in range(size)]

    result = [[0 for _ in range(size)] for _ in range(size)]
    for i, j, k in product(range(size), range(size), range(size)):
        result[i][j] += matrix1[i][k] * matrix2[k][j]

    return result

def compute_matrix_sum(matrix: Matrix) -> int:
    return sum([sum([col for col in row]) for row in matrix])

def expensive_computation(size: int) -> int:
    result = perform_naive_matrix_multiplication(size)
    return compute_matrix_sum(result)

n_runs = 10
size = 300
results = [expensive_computation(size) for _ in range(n_runs)]
expected_result = size**3
assert sum(results) == n_runs * expected_result

import ray

@ray.remote(num_cpus=2) # decorator to convert python function to ray task
def perform_naive_matrix_multiplication(size: int) -> Matrix:
    matrix1 = matrix2 = [[1 for _ in range(size)] for _ in range(size)]

    result = [[0 for _ in range(size)] for _ in range(size)]
    for i, j, k in product(range(size), range(size), range(size)):
        result[i][j] += matrix1[i][k] * matrix2[k][j]

    return result

size = 100
object_ref = perform_naive_matrix_multiplication.remote(size=size)
object_ref

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
size = 300
object_refs = [expensive_computation.remote(size) for _ in range(n_runs)]
results = ray.get(object_refs)
expected_result = size**3
assert sum(results) == n_runs * expected_result
"""  # noqa: W291


def smaller(program: str) -> str:
    program = program.replace("time.sleep(10)", "time.sleep(0.1)")
    return program.replace("size = 300", "size = 60").replace("size = 100", "size = 40")


def with_taskloom(program: str) -> str:
    return program.replace(
        "import ray\nfrom ray import", "import taskloom as ray\nfrom taskloom import"
    ).replace("import ray\n", "import taskloom as ray\n")


def unmodified(path: Path) -> str:
    """A driver that is ``python -m taskloom.compat.ray path``."""
    return (
        "import runpy, sys\n"
        f"sys.argv = ['taskloom.compat.ray', {str(path)!r}]\n"
        "runpy.run_module('taskloom.compat.ray', run_name='__main__', alter_sys=True)\n"
    )


@pytest.fixture(params=["taskloom", "ray"])
def run(request, run_driver, tmp_path):
    """Run a program: with its import changed, or unmodified by ``python -m``."""

    def run(program: str, **options: object) -> object:
        program = smaller(program)
        if request.param == "taskloom":
            return run_driver(with_taskloom(program), **options)
        path = tmp_path / "script.py"
        path.write_text(program)
        return run_driver(unmodified(path), **options)

    return run


@pytest.mark.parametrize("arguments", ["num_cpus=2", "num_cpus=1", "local_mode=True"])
def test_the_program_of_task_parallelism_prints_its_answer(run, arguments):
    done = run(TASK_PARALLELISM.replace("ray.init()", f"ray.init({arguments})"))

    assert (done.returncode, done.stdout, done.stderr) == (0, "Final answer is 17.0\n", "")


def test_the_program_of_task_parallelism_runs_with_all_cpus(run):
    done = run(TASK_PARALLELISM)

    assert (done.returncode, done.stdout, done.stderr) == (0, "Final answer is 17.0\n", "")


@pytest.mark.parametrize("arguments", ["num_cpus=2", "local_mode=True, num_cpus=2"])
def test_the_cells_of_the_overview_run_one_after_another(run, arguments):
    done = run(
        OVERVIEW.replace("import ray\n", f"import ray\nray.init({arguments})\n")
        + "print(object_ref, sum(results))\n"
    )

    assert (done.returncode, done.stderr) == (0, "")
    shown, total = done.stdout.split()
    assert shown.startswith("ObjectRef(")
    assert len(shown) == len("ObjectRef()") + 56
    assert total == str(10 * 60**3)


def test_the_overview_without_its_wish_for_two_cpus_runs_on_one(run):
    program = OVERVIEW.replace("@ray.remote(num_cpus=2)", "@ray.remote(num_cpus=1)")
    done = run(program.replace("import ray\n", "import ray\nray.init(num_cpus=1)\n"))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wish_for_more_cpus_than_there_are_is_an_error_that_says_so(run):
    done = run(OVERVIEW.replace("import ray\n", "import ray\nray.init(num_cpus=1)\n"))

    assert done.returncode == 1
    assert "TaskUnschedulableError" in done.stderr
    assert "perform_naive_matrix_multiplication" in done.stderr


def test_a_module_that_imports_ray_works_in_the_workers(run_driver, tmp_path):
    (tmp_path / "library.py").write_text(
        "import ray\n"
        "from ray.exceptions import RayTaskError\n\n\n"
        "@ray.remote\n"
        "def work(x):\n"
        "    return ray.get(ray.put(x)) + 1\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import ray, library\nray.init(num_cpus=1)\nprint(ray.get(library.work.remote(1)))\n"
    )
    done = run_driver(unmodified(script))

    assert done.stdout == "2\n", done.stderr


def test_the_command_itself_runs_a_script(run_driver, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(smaller(TASK_PARALLELISM))
    done = run_driver(
        "import subprocess, sys\n"
        f"raise SystemExit(subprocess.call([{sys.executable!r}, '-m', 'taskloom.compat.ray', "
        f"{str(script)!r}]))\n"
    )

    assert (done.returncode, done.stdout) == (0, "Final answer is 17.0\n"), done.stderr
