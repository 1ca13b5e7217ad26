"""Programs that are started in other ways than ``python script.py`` (FAULTS.md rows 90, 91)."""

from __future__ import annotations

import re
import sys
import zipapp
from pathlib import Path
from types import SimpleNamespace

import pytest

import taskloom

PROGRAM = """
import asyncio, threading
import taskloom as ray

class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

@ray.remote
def add(pair):
    return Pair(pair.a + pair.b, 0)

@ray.remote
async def later(x):
    await asyncio.sleep(0)
    return x

@ray.remote
def nested(n):
    return n if n == 0 else ray.get(nested.remote(n - 1)) + 1

@ray.remote
def fails():
    raise KeyError("k")

@ray.remote
def large(n):
    return bytes(n)

@ray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def up(self):
        self.n += 1
        return self.n

@ray.remote
def says():
    print("said")

async def main():
    return await add.remote(Pair(3, 4))

if __name__ == "__main__":
    ray.init(num_cpus=2)
    counter = Counter.remote()
    answers = [
        ray.get(add.remote(Pair(1, 2))).a, ray.get(later.remote(5)), ray.get(nested.remote(3)),
        len(ray.get(large.remote(1_000_000))), ray.get([counter.up.remote(), counter.up.remote()]),
        asyncio.run(main()).a,
    ]
    for call in (fails.remote, lambda: add.remote(threading.Lock())):
        try:
            ray.get(call())
        except (KeyError, TypeError) as error:
            answers.append(type(error).__name__)
    ray.get(says.options(name="teller").remote())
    print(answers, flush=True)
    del counter
    ray.shutdown()
"""
ANSWERS = "[3, 5, 3, 1000000, [1, 2], 7, 'RayTaskError(KeyError)', 'TypeError']"


@pytest.mark.parametrize(
    "flags",
    [
        ["-O"],
        ["-OO"],
        ["-bb", "-W", "error"],
        ["-X", "dev", "-W", "error"],
        ["-I", "-c", "import sys; sys.path.append({src!r}); exec(open({program!r}).read())"],
        ["-S", "-c", "import sys; sys.path[:] = {path!r}; exec(open({program!r}).read())"],
    ],
    ids=lambda flags: " ".join(flags[:3]).split(" -c")[0],
)
def test_a_program_runs_with_the_options_of_python_FAULTS_90(run_driver, flags):
    facts = {"src": str(Path(taskloom.__file__).parent.parent), "path": sys.path}

    def command(program: Path) -> list[str]:
        plain = not any(flag == "-c" for flag in flags)
        filled = [flag.format(program=str(program), **facts) for flag in flags]
        return [*filled, str(program)] if plain else filled

    _expect(run_driver(PROGRAM, command=command))


def test_a_program_runs_with_the_debug_hooks_of_the_allocator_FAULTS_90(run_driver):
    _expect(run_driver(PROGRAM, env={"PYTHONMALLOC": "debug", "PYTHONASYNCIODEBUG": "1"}))


def _as_text(program: Path) -> list[str]:
    return ["-c", program.read_text()]


def _as_package(program: Path) -> list[str]:
    package = program.parent / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    text = program.read_text().replace(
        "import taskloom", "from .words import WORD\nimport taskloom"
    )
    (package / "__main__.py").write_text(text.replace('print("said")', "print(WORD)"))
    (package / "words.py").write_text('WORD = "said"')
    return ["-m", "package"]


def _as_directory(program: Path) -> list[str]:
    (program.parent / "here").mkdir()
    (program.parent / "here" / "__main__.py").write_text(program.read_text())
    return ["here"]


def _as_archive(program: Path) -> list[str]:
    _as_directory(program)
    zipapp.create_archive(program.parent / "here", program.parent / "app.pyz")
    return ["app.pyz"]


def _by_runpy(program: Path) -> list[str]:
    return ["-c", f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"]


def _under_the_profiler(program: Path) -> list[str]:
    return ["-m", "cProfile", "-o", "profile", str(program)]


@pytest.mark.parametrize(
    "command",
    [_as_text, _as_package, _as_directory, _as_archive, _by_runpy, _under_the_profiler],
)
def test_a_program_runs_however_it_is_started_FAULTS_91(run_driver, command):
    _expect(run_driver(PROGRAM, command=command))


def _expect(done) -> None:
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("(teller pid=")
    assert first.endswith(") said")
    assert second == ANSWERS
    # On a busy machine asyncio's debug mode has something to say.
    slow = re.compile(r".*Executing <Handle .*> took [0-9.]+ seconds\n")
    assert slow.sub("", done.stderr) == ""


def test_a_session_is_refused_at_the_interpreters_very_end_FAULTS_26(run_driver):
    done = run_driver(
        """
import taskloom as ray, sys, builtins

class Last:
    def __del__(self, write=sys.stdout.write, get=ray.get, function=ray.remote(abs)):
        try:
            get(function.remote(-1))
        except RuntimeError as error:
            write(str(error))

ray.init(num_cpus=1)
builtins.last = Last()  # outlives the modules
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "taskloom is shut down: the interpreter is ending"


@pytest.mark.parametrize(
    ("module", "asked"),
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
def test_a_session_is_refused_where_threads_are_not_the_systems(fresh, monkeypatch, module, asked):
    patched = {"threading"}
    fake = SimpleNamespace(**{asked: lambda name: name in patched})
    monkeypatch.setitem(sys.modules, module, fake)
    with pytest.raises(RuntimeError, match=module.partition(".")[0]):
        fresh.init(num_cpus=1)
    assert not fresh.is_initialized()
    fresh.init(num_cpus=1, local_mode=True)  # needs no thread
    assert fresh.get(fresh.remote(abs).remote(-1)) == 1
    fresh.shutdown()
    patched.clear()
    fresh.init(num_cpus=1)
    assert fresh.get(fresh.remote(abs).remote(-2)) == 2
