"""Make a virtual environment with taskloom in it, or leave it alone when it is current.

An environment is current when its stamp says the same as we would write now: which interpreter
it was made with, where it stands, and what ``pyproject.toml`` asks to be installed.  pip runs as
the machine has it configured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
STAMP: Final = "taskloom.stamp"

_IDENTITY = """
import os, sys
print(sys.version.replace(os.linesep, " "))
print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
"""


class SetupError(Exception):
    """An environment cannot be made; the text says why and what to do."""


def ensure(directory: Path, *, python: str, extras: str) -> Path:
    """Make ``directory`` a current environment.

    Args:
        directory: where it stands; made or made again when it is missing or stale.
        python: the interpreter to make it with.
        extras: taskloom's extras to install, joined by commas.

    Returns:
        The environment's own interpreter.

    Raises:
        SetupError: Python has no ``venv`` or ``ensurepip``, or pip failed.
    """
    interpreter = directory / "bin" / "python"
    stamp = directory / STAMP
    made_with, installed = _wanted(directory, python, extras)
    known = stamp.read_text().splitlines() if stamp.exists() and interpreter.exists() else []
    if known == [made_with, installed]:
        return interpreter
    # Without its stamp, an environment whose installation breaks off is never taken for current.
    stamp.unlink(missing_ok=True)
    if known[:1] != [made_with]:
        _make(directory, python)
    print(f"{directory.name}: installing taskloom[{extras}] (a minute or two)", flush=True)
    _run(
        [str(interpreter), "-m", "pip", "install", "--quiet", "--editable", f".[{extras}]"],
        f"pip could not install taskloom[{extras}] into {directory.name}",
    )
    stamp.write_text(f"{made_with}\n{installed}\n")
    return interpreter


def _wanted(directory: Path, python: str, extras: str) -> tuple[str, str]:
    """The two lines of the stamp: what the environment is made with, and what is in it."""
    identity = subprocess.run(
        [python, "-I", "-c", _IDENTITY], capture_output=True, text=True, check=False
    )
    if identity.returncode:
        raise SetupError(f"{python} does not run: {identity.stderr.strip()}")
    made_with = f"{identity.stdout.splitlines()} at {directory.absolute()}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = json.dumps([project["build-system"], project["project"], extras], sort_keys=True)
    return made_with, hashlib.sha256(asked.encode()).hexdigest()


def _make(directory: Path, python: str) -> None:
    if directory.exists() and not (directory / "pyvenv.cfg").exists() and any(directory.iterdir()):
        raise SetupError(f"{directory} is in the way: it is not a virtual environment")
    if lacks := missing_modules(python):
        raise SetupError(f"{python} has no {lacks}: on Debian and Ubuntu install python3-venv")
    print(f"{directory.name}: made with {python}", flush=True)
    _run([python, "-m", "venv", "--clear", str(directory)], f"{directory.name} cannot be made")


def missing_modules(python: str) -> str:
    """Which of the modules that an environment needs ``python`` lacks, as words; '' for none."""
    script = (
        "from importlib.util import find_spec\n"
        "print(' and no '.join(m for m in ('venv', 'ensurepip') if not find_spec(m)))"
    )
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _run(command: list[str], complaint: str) -> None:
    # An activated environment must not decide where pip installs to.
    environ = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONHOME"}}
    if subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode:
        raise SetupError(complaint)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make or update a virtual environment.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--extras", default="dev,demo")
    arguments = parser.parse_args()
    # `make` may itself run inside an environment: build on what is below it.
    python = getattr(sys, "_base_executable", sys.executable)
    try:
        ensure(ROOT / arguments.directory, python=python, extras=arguments.extras)
    except SetupError as error:
        sys.exit(f"make: {error}")


if __name__ == "__main__":
    main()
