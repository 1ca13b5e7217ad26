"""A hundred thousand of anything: all of it is answered, and nothing of it stays.

What each took is printed (``pytest -rP``); no time is a condition, only a hang is.
"""

from __future__ import annotations

import pytest
from tests.scale import scaled

MANY = scaled(100_000)
LIMIT_S = 110.0

HEAD = """
import gc, os, resource, sys, threading, time, traceback
import taskloom as ray
from taskloom import _current
from taskloom.exceptions import *

MANY = int(sys.argv[1])
plain = lambda x=0: x
f = ray.remote(plain)

@ray.remote
def stay(path):
    while not os.path.exists(path): time.sleep(0.01)

@ray.remote
def mark(number):
    os.write(os.open("started", os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"x")
    return number

@ray.remote
def broken():
    raise ValueError("the head")

class took:
    def __init__(self, what): self.what = what
    def __enter__(self): self.began = time.perf_counter()
    def __exit__(self, *_): print(f"{self.what}: {time.perf_counter() - self.began:.2f} s")

def kept():
    "How many calls and objects the engine still knows when all that was posted is done."
    gc.collect()
    session = _current.peek()
    graph = session._engine.loom.graph
    count = lambda: (len(graph.nodes), len(graph.objects))
    deadline = time.monotonic() + 10
    while (left := session._portal.call(count)) != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left

def kinds(refs):
    found = {}
    for ref in refs:
        try: ray.get(ref); name = "value"
        except BaseException as error: name = type(error).__name__
        found[name] = found.get(name, 0) + 1
    return found

ray.init(num_cpus=1, log_to_driver=False)
ray.get([f.remote(1) for _ in range(200)])
"""


@pytest.fixture
def drive(run_driver):
    """Run a program that begins with HEAD; the lines it prints."""

    def drive(body: str, many: int = MANY) -> list[str]:
        done = run_driver(HEAD + body, timeout=LIMIT_S, args=[str(many)])
        print(done.stdout)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if not line.endswith(" s")]

    return drive


def test_of_a_hundred_thousand_cancelled_calls_none_starts(drive):
    lines = drive("""
blocker = stay.remote("open")
refs = [mark.remote(number) for number in range(MANY)]
with took("cancel"):
    for ref in refs: ray.cancel(ref)
    try: ray.get(refs[-1])
    except TaskCancelledError: pass
open("open", "w").close()
ray.get(blocker)
print(kinds(refs), ray.get(f.remote("next")), os.path.exists("started"))
del blocker, ref, refs
print(kept())
""")
    assert lines == [f"{{'TaskCancelledError': {MANY}}} next False", "(0, 0)"]


def test_the_head_of_a_chain_of_a_hundred_thousand_fails_and_all_share_one_error_FAULTS_52(drive):
    lines = drive("""
blocker = stay.remote("open")
refs = [broken.remote()]
for _ in range(MANY): refs.append(f.remote(refs[-1]))
with took("fail"):
    open("open", "w").close()
    try: ray.get(refs[-1])
    except ValueError as error: last = error
assert len(str(last)) < 65536 and len(traceback.format_exception(last)) < 100
print(str(last).splitlines()[-1], kinds(refs))
print(len({id(ref._record.outcome) for ref in refs[1:]}))
del last, blocker, refs
print(kept())
""")
    assert lines == [
        f"ValueError: the head {{'RayTaskError(ValueError)': {MANY + 1}}}",
        "1",
        "(0, 0)",
    ]


@pytest.mark.parametrize("which", [0, -1])
def test_a_chain_of_a_hundred_thousand_is_cancelled_or_dropped_without_recursion_FAULTS_53(
    drive, which
):
    lines = drive(f"""
sys.setrecursionlimit(200)
blocker = stay.remote("open")
refs = [f.remote(blocker)]
for _ in range(MANY): refs.append(f.remote(refs[-1]))
with took("cancel"):
    ray.cancel(refs[{which}], recursive=True)
    try: ray.get(refs[-1])
    except TaskCancelledError: print("cancelled")
with took("drop"):
    del refs
open("open", "w").close()
ray.get(blocker)
del blocker
print(kept())
""")
    assert lines == ["cancelled", "(0, 0)"]


def test_a_value_reaches_the_end_of_a_chain_of_a_hundred_thousand_FAULTS_51(drive):
    lines = drive("""
sys.setrecursionlimit(200)
with took("chain"):
    ref = f.remote("a value")
    for _ in range(MANY): ref = f.remote(ref)
    print(ray.get(ref))
del ref
print(kept())
""")
    assert lines == ["a value", "(0, 0)"]


def test_one_to_a_hundred_thousand_and_back_to_one_FAULTS_54(drive):
    lines = drive("""
count = ray.remote(lambda *values: (len(values), set(values)))
with took("fan-out and fan-in"):
    one = f.remote(7)
    many = [f.remote(one) for _ in range(MANY)]
    print(ray.get(count.remote(*many)))
del one, many
print(kept())
""")
    assert lines == [f"({MANY}, {{7}})", "(0, 0)"]


def test_layers_that_all_depend_on_one_another_FAULTS_54(drive):
    lines = drive(
        """
total = ray.remote(lambda *values: sum(values) % 1_000_003)
with took("layers"):
    layer = [f.remote(n) for n in range(MANY)]
    for _ in range(3): layer = [total.remote(*layer) for _ in range(MANY)]
    print(set(ray.get(layer)))
expected = sum(range(MANY)) % 1_000_003
for _ in range(2): expected = expected * MANY % 1_000_003
print(expected)
del layer
print(kept())
""",
        many=200,
    )
    assert lines[0] == f"{{{lines[1]}}}"
    assert lines[2] == "(0, 0)"


def test_diamonds_with_failures_and_retries_have_the_values_of_a_sequential_run_FAULTS_55(drive):
    lines = drive(
        """
import random
@ray.remote(max_retries=-1, retry_exceptions=True)
def step(own, a, b):
    luck = random.random()
    if luck < 0.01: raise OSError("bad luck")
    if luck < 0.012: os._exit(1)
    return (own + 3 * a + 5 * b) % 1_000_003

WIDTH = 40
refs, values = [f.remote(n) for n in range(WIDTH)], list(range(WIDTH))
with took("diamonds"):
    for layer in range(MANY // WIDTH):
        refs = [step.remote(layer, refs[n], refs[(n * 7 + 1) % WIDTH]) for n in range(WIDTH)]
        values = [(layer + 3 * values[n] + 5 * values[(n * 7 + 1) % WIDTH]) % 1_000_003
                  for n in range(WIDTH)]
    print(ray.get(refs) == values)
del refs
print(kept())
""",
        many=4_000,
    )
    assert lines == ["True", "(0, 0)"]


def test_a_hundred_threads_submit_at_once(drive):
    lines = drive(
        """
wrong = []
def use(number):
    refs = [f.remote((number, index)) for index in range(MANY)]
    refs += [f.remote(ref) for ref in refs]
    if ray.get(refs) != [(number, index) for index in range(MANY)] * 2: wrong.append(number)

threads = [threading.Thread(target=use, args=(number,)) for number in range(100)]
with took("100 threads"):
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(wrong, kept())
""",
        many=100,
    )
    assert lines == ["[] (0, 0)"]


def test_recursion_goes_as_deep_as_there_are_processes_and_no_deeper(drive):
    lines = drive("""
ray.shutdown()
ray.init(num_cpus=2, max_extra_workers=20, log_to_driver=False)

@ray.remote
def deep(left):
    return 1 + (ray.get(deep.remote(left - 1)) if left else 0)

print(ray.get(deep.remote(21)))
try: ray.get(deep.remote(22))
except NestedDepthError as error: print("too deep")
print(ray.get(deep.remote(21)), kept())
""")
    assert lines == ["22", "too deep", "22 (0, 0)"]


def test_memory_descriptors_and_threads_do_not_grow_from_storm_to_storm_P9(drive):
    lines = drive(
        """
def resident_kib():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024

def storm():
    one = f.remote(1)
    many = [f.remote(one) for _ in range(MANY)]
    ray.get(many)
    failed = [broken.remote() for _ in range(MANY // 10)]
    kinds(failed)
    blocker = stay.remote(f"open{len(sizes)}")
    later = [f.remote(blocker) for _ in range(MANY)]
    for ref in later: ray.cancel(ref)
    open(f"open{len(sizes)}", "w").close()
    ray.get(blocker)

sizes, others = [], []
with took("8 storms"):
    for _ in range(8):
        storm()
        assert kept() == (0, 0)
        sizes.append(resident_kib())
        others.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
print("resident MiB:", [size // 1024 for size in sizes])
print(others[2] == others[7], min(sizes[5:]) <= max(sizes[1:4]) * 1.05)
""",
        many=10_000,
    )
    assert lines[-1] == "True True", lines
