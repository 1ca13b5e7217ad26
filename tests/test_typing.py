"""mypy and pyright agree with ``typing/assertions.py``, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ASSERTIONS: Final = ROOT / "tests" / "typing" / "assertions.py"

Checker = Callable[[Path], list[str]]


def mypy(path: Path) -> list[str]:
    """What mypy has to say about a file, with the settings of the project."""
    done = run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--output", "json", str(path))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line]
    return [
        f"{Path(one['file']).name}:{one['line']}: {one['message']} [{one['code']}]"
        for one in found
        if one["severity"] == "error"
        # A file that cannot be read keeps mypy from looking at any other.
        and ((ROOT / one["file"]).resolve() == path or one["code"] == "syntax")
    ]


def pyright(path: Path) -> list[str]:
    """What pyright has to say about it; the package basedpyright brings all that it needs."""
    done = run("basedpyright", "--project", str(ROOT), "--outputjson", str(path))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [
        f"{path.name}:{one['range']['start']['line'] + 1}: {one['message']} [{one.get('rule')}]"
        for one in json.loads(done.stdout)["generalDiagnostics"]
        if Path(one["file"]) == path and one["severity"] == "error"
    ]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_checkers_find_the_types_and_errors_that_users_rely_on(checker: Checker):
    assert checker(ASSERTIONS) == []


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_assertions_can_fail(checker: Checker, tmp_path: Path):
    # A new name each time: for a module it knows mypy repeats what it said, old path included.
    wrong = tmp_path / f"wrong_{uuid.uuid4().hex}.py"
    wrong.write_text(
        "# pyright: reportUnnecessaryTypeIgnoreComment=error\n"
        "from typing import assert_type\n"
        "import taskloom as tl\n"
        "@tl.remote\n"
        "def f(x: int) -> int: return x\n"
        "assert_type(tl.get(f.remote(1)), str)\n"
        "f.remote(1)  # type: ignore[call-overload]\n"
        "f.remote('a')\n"
    )
    lines = {int(complaint.split(":")[1]) for complaint in checker(wrong)}
    assert lines == {6, 7, 8}
