"""Whole programs, with one line that says where they run: the seeds, scripts, the end."""

from __future__ import annotations

import re
from pathlib import Path

SEEDS = Path(__file__).resolve().parents[1] / "api" / "test_seeds.py"


def seed(name):
    """One of the two programs that taskloom was asked to run, with smaller numbers."""
    found = re.search(rf'^{name} = """\\\n(.*?)"""', SEEDS.read_text(), re.MULTILINE | re.DOTALL)
    program = found[1].replace("time.sleep(10)", "time.sleep(0.1)")
    program = program.replace("size = 300", "size = 60").replace("size = 100", "size = 40")
    program = program.replace("from ray import", "from taskloom import")
    return program.replace("import ray\n", "import taskloom as ray\n")


def test_the_program_of_task_parallelism_prints_its_answer(run_program):
    out, _ = run_program(seed("TASK_PARALLELISM"))
    assert out.splitlines()[-1] == "Final answer is 17.0"


def test_the_cells_of_the_overview_run_one_after_another(run_program):
    program = seed("OVERVIEW").replace(
        "import taskloom as ray\n", "import taskloom as ray\nray.init()\n"
    )
    out, _ = run_program(program + "print(sum(results))\nray.shutdown()\n")
    assert out.splitlines()[-1] == str(10 * 60**3)


def test_classes_functions_and_globals_of_a_script_travel(run_program):
    out, _ = run_program("""
import taskloom as tl

FACTOR = 3

class Point:
    def __init__(self, x):
        self.x = x

class Odd(Exception):
    pass

def scale(point):
    return Point(point.x * FACTOR)

@tl.remote
def move(point):
    if point.x % 2:
        raise Odd(point.x)
    return scale(point)

@tl.remote
class Keeper:
    def keep(self, point):
        return isinstance(point, Point), point

if __name__ == "__main__":
    tl.init()
    moved = tl.get(move.remote(Point(2)))
    assert type(moved) is Point
    try:
        tl.get(move.remote(Point(1)))
    except Odd as error:
        print("caught", Odd.__name__)
    is_point, kept = tl.get(Keeper.remote().keep.remote(moved))
    print(is_point, kept.x)
    tl.shutdown()
""")
    assert out.splitlines()[-2:] == ["caught Odd", "True 6"]


def test_a_program_that_never_calls_shutdown_ends_by_itself(run_program):
    out, _ = run_program("""
import taskloom as tl

tl.init()
print(tl.get(tl.remote(lambda: "done").remote()))
""")
    assert out.splitlines()[-1] == "done"


def test_two_sessions_one_after_another(run_program):
    out, _ = run_program("""
import taskloom as tl

f = tl.remote(lambda n: n + 1)

def session():
    print(tl.get(f.remote(1)), tl.is_initialized())
    tl.shutdown()
    print(tl.is_initialized())

for _ in range(2):
    tl.init()
    session()
""")
    assert out.split() == ["2", "True", "False"] * 2


def test_an_asyncio_program(run_program):
    out, _ = run_program("""
import asyncio
import taskloom as tl

@tl.remote
def square(n):
    return n * n

async def main():
    async with tl.TaskGroup():
        refs = [square.remote(n) for n in range(5)]
    return sum(await asyncio.gather(*refs))

tl.init()
print(asyncio.run(main()))
tl.shutdown()
""")
    assert out.splitlines()[-1] == "30"
