"""Find the CPythons on this machine and run the tests on them.

``here`` runs the suite on the interpreter that runs this file; ``others`` on one interpreter of
every other minor version from 3.11 on, each in an environment of its own (``.venv-3.12``);
``list`` only shows what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from environment import ROOT, SetupError, ensure, missing_modules

OLDEST: Final = (3, 11)
MOST_AT_ONCE: Final = 4
"""Test processes side by side; one more than there are cores, since many tests mostly wait."""
OTHERS_SCALE: Final = "0.2"
"""Which part the other Pythons do of what tests do many times (``tests/scale.py``)."""
_NAME: Final = re.compile(r"python3\.(\d+)t?")

_PROBE = """
import json, os, platform, sys, sysconfig
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": list(sys.version_info[:3]),
    "level": sys.version_info[3],
    "threads_free": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "executable": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
}))
"""


@dataclass(frozen=True, slots=True)
class Python:
    """One interpreter, as it describes itself."""

    path: str
    version: tuple[int, int, int]
    unusable: str = ""
    """Why the suite does not run on it; empty when it does."""

    @property
    def minor(self) -> tuple[int, int]:
        return self.version[:2]

    def __str__(self) -> str:
        return f"CPython {'.'.join(map(str, self.version))} ({self.path})"


def candidate_paths(home: Path, path: str) -> Iterator[Path]:
    """Where interpreters usually are; some of them may be shims that do not run."""
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    directories = [Path(entry) for entry in path.split(os.pathsep) if entry]
    directories += [Path("/usr/local/bin"), Path("/usr/bin"), home / ".local/bin"]
    for root, pattern in (
        (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")), "versions/*/bin"),
        (uv, "*/bin"),
        (home / ".asdf/installs/python", "*/bin"),
        (home / ".local/share/mise/installs/python", "*/bin"),
        (Path("/opt"), "*/bin"),
        (Path("/opt/python"), "*/bin"),
        (Path("/opt/homebrew/opt"), "python@3.*/bin"),
        (Path("/Library/Frameworks/Python.framework/Versions"), "*/bin"),
    ):
        directories += sorted(root.glob(pattern))
    for directory in dict.fromkeys(directories):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue  # an entry of PATH that does not exist
        for name in names:
            match = _NAME.fullmatch(name)
            if match and (3, int(match[1])) >= OLDEST:
                yield directory / name


def probe(path: Path) -> Python | None:
    """What ``path`` says of itself; None when it does not run or is no CPython from 3.11 on."""
    try:
        done = subprocess.run(
            [str(path), "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        facts = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if not facts or facts["implementation"] != "CPython" or tuple(facts["version"]) < OLDEST:
        return None
    major, minor, micro = facts["version"]
    executable: str = facts["executable"]
    unusable = ""
    if facts["level"] != "final":
        unusable = f"a pre-release ({facts['level']})"
    elif facts["threads_free"]:
        unusable = "a free-threaded build"
    elif lacks := missing_modules(executable):
        unusable = f"it has no {lacks}"
    return Python(executable, (major, minor, micro), unusable)


def find_pythons(paths: Iterator[Path]) -> list[Python]:
    """All that run, each once: usable ones and newer ones first within their minor version."""
    found: dict[str, Python] = {}
    for path in {Path(os.path.realpath(path)): path for path in paths}.values():
        python = probe(path)
        if python is not None:
            found.setdefault(python.path, python)
    return sorted(
        found.values(),
        key=lambda python: (python.minor, bool(python.unusable), [-n for n in python.version]),
    )


def choose(found: list[Python], done: tuple[int, int]) -> tuple[list[Python], list[str]]:
    """One usable interpreter of each minor version but ``done``, and a line on each one found."""
    chosen: dict[tuple[int, int], Python] = {}
    lines = []
    for python in found:
        if python.minor == done:
            verdict = "the version of .venv"
        elif python.unusable:
            verdict = f"skipped: {python.unusable}"
        elif python.minor in chosen:
            verdict = "skipped: another of this version is taken"
        else:
            chosen[python.minor] = python
            verdict = f"taken, in .venv-{python.minor[0]}.{python.minor[1]}"
        lines.append(f"  {python}: {verdict}")
    return list(chosen.values()), lines


def run_tests(interpreter: Path, arguments: list[str]) -> bool:
    """Run the suite; True when it passed."""
    # Many tests start programs of their own.  Where the environment forbids Python to cache byte
    # code, each of them would compile taskloom again.
    subprocess.run([interpreter, "-m", "compileall", "-q", "src"], cwd=ROOT, check=False)
    # By files: the tests of one module share a session.  ``ARGS=-n0`` runs them one by one.
    spread = ["-n", str(min(MOST_AT_ONCE, 1 + (os.cpu_count() or 1))), "--dist", "loadfile"]
    command: list[str | Path] = [interpreter, "-m", "pytest", *spread, *arguments]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def run_on_others(pythons: list[Python], arguments: list[str]) -> list[str]:
    """Run the suite on each of ``pythons``; a line for each that did not pass."""
    failures = []
    for python in pythons:
        name = f"{python.minor[0]}.{python.minor[1]}"
        print(f"\n== tests on {python}", flush=True)
        started = time.monotonic()
        try:
            interpreter = ensure(ROOT / f".venv-{name}", python=python.path, extras="test")
        except SetupError as error:
            failures.append(f"{python}: {error}")
            continue
        os.environ.setdefault("TASKLOOM_TEST_SCALE", OTHERS_SCALE)
        passed = run_tests(interpreter, arguments)
        verdict = "passed" if passed else "FAILED"
        print(f"== {python}: {verdict} in {time.monotonic() - started:.0f} s", flush=True)
        if not passed:
            failures.append(f"{python}: the tests failed")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["here", "others", "list"])
    options, arguments = parser.parse_known_args()
    here = sys.version_info[:2]
    if options.what == "here":
        sys.exit(not run_tests(Path(sys.executable), arguments))
    found = find_pythons(candidate_paths(Path.home(), os.environ.get("PATH", "")))
    chosen, lines = choose(found, here)
    print("CPython >= 3.11 on this machine:", *lines, sep="\n", flush=True)
    if options.what == "list":
        return
    if not chosen:
        print("no other version to run the tests on")
    failures = run_on_others(chosen, arguments)
    sys.exit("\n".join(failures) if failures else 0)


if __name__ == "__main__":
    main()
