"""Programs whose workers are in all kinds of states, and the ways in which such a program ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from tests.conftest import RUN_TAG, TAG, tagged_processes
from tests.faults.deaths import PATH
from tests.gates import eventually

STATES: Final = {
    "idle": "",
    "busy": "while True: pass",
    "asleep": "time.sleep(1000)",
    "holding the GIL": "ctypes.PyDLL(None).sleep(1000)",
    "ignoring signals": (
        "signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))\n    time.sleep(1000)"
    ),
    "swallowing everything": (
        "while True:\n        try: time.sleep(1000)\n        except BaseException: pass"
    ),
    "flooding stdout": "while True: os.write(1, b'x' * 60_000 + b'\\n')",
    "with children": (
        "sleeper = subprocess.Popen(['sleep', '1000'])\n"
        "    gate.note(f'child-{sleeper.pid}')\n"
        "    child = os.fork()\n"
        "    if child: gate.note(f'child-{child}')\n"
        "    time.sleep(1000)"
    ),
    "waiting for another": "ray.get(ray.remote(num_cpus=0)(time.sleep).remote(1000))",
    "in a coroutine": "await asyncio.sleep(1000)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}
"""What a worker does when its driver ends."""

ENDS: Final = {
    "end of program": "",
    "exception": "raise RuntimeError('the program itself')",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(4)",
    "segfault": "faulthandler._sigsegv()",
    "abort": "os.abort()",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(1000)",
    "SIGHUP": "os.kill(os.getpid(), signal.SIGHUP); time.sleep(1000)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT); time.sleep(1000)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
}
"""How the driver ends: what it does once it is told to."""

CODES: Final = {
    "end of program": 0, "exception": 1, "sys.exit": 3, "os._exit": 4,
    "segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT, "SIGTERM": -signal.SIGTERM,
    "SIGHUP": -signal.SIGHUP, "SIGINT": -signal.SIGINT, "SIGKILL": -signal.SIGKILL,
}  # fmt: skip

_PROGRAM: Final = """
import asyncio, ctypes, faulthandler, os, signal, subprocess, sys, time
import taskloom as ray
from tests.gates import Gate, eventually

gate = Gate(os.getcwd())
{functions}
ray.init(num_cpus=2)
refs = [{calls}]
more = [ray.remote(num_cpus=2)(time.sleep).remote(1000) for _ in range(50)]
for name in {names}:
    gate.wait_for(name)
gate.note("ready")
sys.stdin.readline()
{end}
"""

_FUNCTION: Final = """
@ray.remote(num_cpus=0, max_retries=0)
{kind} state_{number}():
    gate.note({name!r})
    {body}
"""


@dataclass(slots=True)
class Driver:
    """A running program; ``home`` is where it and its temporary files live."""

    process: subprocess.Popen[bytes]
    home: Path
    tag: str
    pids: dict[str, list[int]] = field(default_factory=dict)

    def end(self, limit_s: float) -> float:
        """Tell it to end; the seconds until nothing of it was left.

        Raises:
            AssertionError: somebody is left after ``limit_s``, or a file.
        """
        assert self.process.stdin is not None
        start = time.monotonic()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        everybody = [*self.pids.values(), [self.process.pid]]
        left = {pid for pids in everybody for pid in pids}

        def gone() -> bool:
            left.difference_update([pid for pid in left if not is_alive(pid)])
            return not left and self.process.poll() is not None

        ended = eventually(gone, limit_s)
        seconds = time.monotonic() - start
        states = [name for name, pids in self.pids.items() if left.intersection(pids)]
        assert ended, f"left after {limit_s} s: {states}, {self.others()}, {self.errors()}"
        assert eventually(lambda: not self.others(), limit_s), self.others()
        files = os.listdir(self.home / "tmp")
        assert not files, f"files are left: {files}"
        return seconds

    def others(self) -> list[str]:
        """All other processes that descend from it."""
        return [f"{p.pid} {p.name()}" for p in tagged_processes(self.tag) if is_alive(p.pid)]

    def errors(self) -> str:
        return (self.home / "stderr").read_text(errors="replace")[-5000:]

    def close(self) -> None:
        """Whatever happened: nobody stays."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        for process in tagged_processes(self.tag):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(home: Path, states: Iterable[str], end: str) -> Driver:
    """Start a program with one worker in each of ``states``; returns once all are there.

    Args:
        home: an empty directory.
        states: of ``STATES``.
        end: of ``ENDS``.
    """
    names = list(states)
    functions = "".join(
        _FUNCTION.format(
            number=number,
            name=name,
            body=STATES[name],
            kind="async def" if "await" in STATES[name] else "def",
        )
        for number, name in enumerate(names)
    )
    calls = ", ".join(f"state_{number}.remote()" for number in range(len(names)))
    program = home / "driver.py"
    program.write_text(
        _PROGRAM.format(functions=functions, calls=calls, names=names, end=ENDS[end])
    )
    (home / "tmp").mkdir()
    tag = f"{RUN_TAG}/{uuid.uuid4().hex}"
    environ = {**os.environ, "PYTHONPATH": PATH, "TMPDIR": str(home / "tmp"), TAG: tag}
    with (home / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=home,
            env=environ,
            start_new_session=True,
        )
    driver = Driver(process, home, tag)
    marks = home / "ready.marks"
    if not eventually(lambda: marks.exists() or process.poll() is not None, 60) or not (
        marks.exists()
    ):
        errors = driver.errors()
        driver.close()
        raise AssertionError(f"the program did not come up: {errors}")
    for name in names:
        driver.pids[name] = [int(pid) for pid in (home / f"{name}.marks").read_text().split()]
    if "with children" in driver.pids:
        eventually(lambda: len(list(home.glob("child-*.marks"))) == 2)
        driver.pids["with children"] += [
            int(path.name.removeprefix("child-").removesuffix(".marks"))
            for path in home.glob("child-*.marks")
        ]
    return driver


def describe(driver: Driver) -> str:
    return json.dumps(driver.pids)
