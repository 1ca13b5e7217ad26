"""Actors on Ray that outlive the program that has made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.on_clusters.conftest import LONG_S

MAKES = """
import sys
import taskloom

@taskloom.remote
def double(n):
    return 2 * n

@taskloom.remote
class Shelf:
    def __init__(self):
        self.things = []

    def add(self, thing):
        self.things.append(thing)
        return len(self.things)

    def all(self):
        return list(self.things)

    def doubled(self):
        return taskloom.get([double.remote(n) for n in self.things])

    def items(self):
        yield from self.things

    def use(self, box):
        return taskloom.get(box[0])

    def fail(self):
        raise KeyError("nothing here")

taskloom.init(sys.argv[1], namespace="shelves")
shelf = Shelf.options(name="one", lifetime="detached", num_cpus=0).remote()
print(taskloom.get(shelf.add.remote(1)))
print(taskloom.get(Shelf.options(name="own", num_cpus=0).remote().add.remote(1)))
"""

FINDS = """
import sys
import taskloom

@taskloom.remote(num_cpus=0)
def add_there(shelf, thing):
    return taskloom.get(shelf.add.remote(thing))

@taskloom.remote(num_cpus=0)
def find_and_add(thing):
    return taskloom.get(taskloom.get_actor("one").add.remote(thing))

taskloom.init(sys.argv[1], namespace="shelves")
print([name for name in taskloom.util.list_named_actors()])
shelf = taskloom.get_actor("one")
print(taskloom.get(shelf.add.remote(taskloom.put(2))))
print(taskloom.get(add_there.remote(shelf, 3)), taskloom.get(find_and_add.remote(4)))
print(taskloom.get(shelf.all.remote()), taskloom.get(shelf.doubled.remote()))
print([taskloom.get(item) for item in shelf.items.remote()])
try:
    taskloom.get(shelf.fail.remote())
except KeyError:
    print("its own error")
print(taskloom.get(shelf.use.remote([taskloom.put(42)])))
print(taskloom.get(shelf.add.remote(bytes(10**6))))
print(len(taskloom.get(shelf.all.remote())[-1]))
"""

KILLS = """
import sys
import taskloom

taskloom.init(sys.argv[1], namespace="shelves")
shelf = taskloom.get_actor("one")
taskloom.kill(shelf)
for name in ("one", "own"):
    try:
        taskloom.get_actor(name)
    except ValueError:
        print("gone")
try:
    taskloom.get(shelf.all.remote(), timeout=60)
except taskloom.exceptions.RayActorError:
    print("dead")
"""


@pytest.fixture
def run(cluster: str, run_driver: Callable[..., object]) -> Callable[[str], list[str]]:
    """Run a program on the cluster that all tests share: the lines that it prints."""
    import ray

    address = f"ray+gcs://{ray.get_runtime_context().gcs_address}"

    def one(program: str) -> list[str]:
        done = run_driver(program, timeout=LONG_S, args=[address])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "does not outlive" not in done.stderr
        return done.stdout.splitlines()

    return one


@pytest.mark.parametrize("_session_on", ["ray"], indirect=True)
def test_a_detached_actor_is_found_and_used_by_later_programs_until_one_kills_it(run):
    assert run(MAKES) == ["1", "1"]
    assert run(FINDS) == [
        "['one']",
        "2",
        "3 4",
        "[1, 2, 3, 4] [2, 4, 6, 8]",
        "[1, 2, 3, 4]",
        "its own error",
        "42",
        "5",
        "1000000",
    ]
    assert run(KILLS) == ["gone", "gone", "dead"]
