"""Six deaths in eight phases of a call (FAULTS.md, A.3): what each costs, and whom.

One program per phase goes through all deaths; it says each case before it begins, so that a hang
names its case.  Each case has neighbours that may not be run twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tests.conftest import run_driver
from tests.faults.deaths import DEATHS, PATH

ATTEMPTS = 2

PROGRAM = """
import json, os, sys, threading
import taskloom as ray
from tests.faults.deaths import DEATHS, DiesWhenCollected, DiesWhenPickled, DiesWhenUnpickled, die

phase = sys.argv[1]

@ray.remote(max_retries=0)
def neighbour(n):
    return n

@ray.remote
def make(thing):
    return thing

@ray.remote(max_retries=1)
def call(phase, name, marks, thing=None):
    if phase == "arg pickle":
        neighbour.remote([DiesWhenPickled(name, marks)])
    if phase == "body":
        die(name, marks)
    if phase == "after body":
        last = DiesWhenCollected(name, marks, armed=True)
        return "lived"
    if phase == "result pickle":
        return {"result": DiesWhenPickled(name, marks)}
    if phase == "result unpickle":
        return ray.get(thing)
    return "lived"

def submit(name, marks):
    if phase == "arg unpickle":
        return call.remote(phase, name, marks, [DiesWhenUnpickled(name, marks)])
    if phase == "before body":
        captured = DiesWhenUnpickled(name, marks)
        @ray.remote(max_retries=1, name="call")
        def closure():
            return captured
        return closure.remote()
    if phase == "result unpickle":
        return call.remote(phase, name, marks, [make.remote(Nested(name, marks))])
    if phase == "GC of arguments":
        return call.remote(phase, name, marks, DiesWhenCollected(name, marks))
    return call.remote(phase, name, marks)

class Nested:
    # Unpickled twice: as an argument it becomes what dies when it is loaded again.
    def __init__(self, name, marks):
        self.args = name, marks
    def __reduce__(self):
        return DiesWhenUnpickled, self.args

def outcome(ref):
    try:
        return {"value": ray.get(ref, timeout=20)}
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error)}

ray.init(num_cpus=2)
ray.get([neighbour.remote(n) for n in range(200)])  # known to be short: they queue up
for name in DEATHS:
    print("case", name, file=sys.stderr, flush=True)
    marks = os.path.abspath(name)
    open(marks, "w").close()
    before = [neighbour.remote(n) for n in range(20)]
    ref = submit(name, marks)
    after = [neighbour.remote(n) for n in range(20, 40)]
    found = outcome(ref)
    try:
        found["neighbours"] = ray.get(before + after, timeout=20) == list(range(40))
    except Exception as error:
        found["neighbours"] = repr(error)
    found["usable"] = outcome(neighbour.remote("usable"))
    found["pids"] = [int(line) for line in open(marks).read().split()]
    print(json.dumps({"case": name, **found}), flush=True)
# Everything is given back.
ray.shutdown()
"""

PHASES = (
    "arg pickle",
    "arg unpickle",
    "before body",
    "body",
    "after body",
    "result pickle",
    "result unpickle",
    "GC of arguments",
)
IGNORED = {"after body", "GC of arguments"}
"""Here Python itself ignores an exception: sys.exit() does nothing."""


@pytest.fixture(scope="module")
def findings() -> Callable[[str], dict[str, dict[str, Any]]]:
    @cache
    def run(phase: str) -> dict[str, dict[str, Any]]:
        done = run_driver(PROGRAM, args=[phase], env={"PYTHONPATH": PATH})
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line.pop("case"): line for line in lines}

    return run


@pytest.mark.parametrize("name", DEATHS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_death_costs_its_own_task_and_nobody_else_FAULTS_A3(findings, phase, name):
    found = findings(phase)[name]

    assert found["neighbours"] is True
    assert found["usable"] == {"value": "usable"}
    told_as = DEATHS[name].told_as
    if not told_as and phase in IGNORED:
        assert found["value"] == "lived"
        assert len(found["pids"]) == 1
    elif not told_as:
        assert found["error"].startswith("RayTaskError"), found
        assert "SystemExit" in found["text"]
        assert len(set(found["pids"])) == 1, "an exit is an answer: no second attempt"
    else:
        assert found["error"] == "WorkerCrashedError"
        assert len(found["pids"]) == ATTEMPTS
        text = found["text"]
        for part in (
            f"worker {found['pids'][-1]} {told_as} while it ran call",
            f"attempt {ATTEMPTS} of {ATTEMPTS}",
            f"last words: {name}",
        ):
            assert part in text
        assert ("Segmentation fault" in text) == (name == "segfault")
