"""``python -m taskloom doctor``: what it looks at, what it advises, and its exit code."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from taskloom import __version__, _current
from taskloom.cli import doctor

ADVICE = re.compile(r"[A-Z][^.]* [^.]*.*\.")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskloom", *arguments], capture_output=True, text=True, timeout=60
    )


def test_a_healthy_machine_has_no_problem_and_exit_code_0():
    done = run("doctor")

    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("python", "cores", "memory", "shared memory", "event loop", "file descriptors"):
        assert re.search(rf"^ok +{what} ", done.stdout, re.MULTILINE), what
    assert re.search(r"^ok +session +started in \d+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +large values .*zero-copy$", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +extra dask ", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "no problem"
    assert done.stderr == ""


def test_a_cluster_that_does_not_answer_is_a_problem_with_advice_and_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "local_session", lambda: iter(()))
    monkeypatch.setattr(doctor.api, "init", _nobody)
    (*_, last) = doctor.examine("ray://127.0.0.1:1")

    assert last.text == "ConnectionError: nobody there"
    assert ADVICE.fullmatch(last.advice)
    assert doctor.run("ray://127.0.0.1:1") == 1


def _nobody(*_arguments: object, **_options: object) -> None:
    raise ConnectionError("nobody there\nand more")


def test_an_address_that_makes_no_sense_is_a_problem():
    found = list(doctor.guarded("cluster", lambda: doctor.cluster("spark://here")))

    assert "ValueError" in found[-1].text
    assert "docs/backends.md" in found[-1].advice


def test_a_check_that_breaks_leaves_no_session(fresh):
    def check():
        fresh.init(num_cpus=1)
        yield doctor.Finding("session", "started")
        raise RuntimeError("and broke")

    found = list(doctor.guarded("session", check))

    assert [finding.text for finding in found] == ["started", "RuntimeError: and broke"]
    assert _current.peek() is None


@pytest.mark.parametrize(
    ("finding", "is_problem"),
    [
        (doctor.memory(2**30), False),
        (doctor.memory(2**20), True),
        (doctor.descriptors(resource.RLIM_INFINITY), False),
        (doctor.descriptors(1024), False),
        (doctor.descriptors(64), True),
        (doctor.library("ray", "ray", (2, 40), ""), False),
        (doctor.library("ray", "ray", (2, 40), "2.60.0"), False),
        (doctor.library("ray", "ray", (2, 40), "2.9.3"), True),
        (doctor.compared("python", "3.11.7", "3.11.9"), False),
        (doctor.compared("python", "3.11.7", "3.12.1"), True),
        (doctor.compared("taskloom", "0.1.0", "0.1.0"), False),
        (doctor.compared("ray", "2.60.0", ""), True),
    ],
)
def test_each_problem_has_a_sentence_that_says_what_to_do(finding, is_problem):
    assert bool(finding.advice) == is_problem
    assert str(finding).startswith("PROBLEM" if is_problem else "ok")
    if is_problem:
        assert ADVICE.fullmatch(finding.advice)
        assert str(finding).endswith(f"-> {finding.advice}")


def test_a_sandbox_without_memfd_is_told(monkeypatch):
    def refuse(*_arguments: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(doctor.os, "memfd_create", refuse)

    assert "seccomp" in doctor.shared_memory().advice


def test_zero_copy_is_known_from_a_copy(fresh, monkeypatch):
    fresh.init(num_cpus=1)
    assert doctor.zero_copy().advice == ""
    small = fresh.remote(lambda: doctor.Block(bytearray(100)))
    monkeypatch.setattr(doctor, "make_block", small)
    assert doctor.zero_copy().advice != ""


def test_a_cluster_is_asked_for_nodes_resources_and_versions(fresh, monkeypatch):
    # The local engine stands for the cluster: the questions are the same.
    start = doctor.api.init
    monkeypatch.setattr(doctor.api, "init", lambda _address: start("local", num_cpus=1))
    found = {one.what: one for one in doctor.cluster("ray+gcs://somewhere:6379")}

    assert found["its resources"].text.startswith("CPU 1")
    assert found["taskloom there"].text == f"{__version__}, as here"
    assert found["python there"].advice == ""
    assert re.match(r"27 holds; docs/backends\.md of ", found["rows of the matrix"].text)
    assert not any(one.advice for one in found.values())


def test_the_command_tells_its_version_and_its_commands():
    main = import_module("taskloom.__main__").main
    assert run("--version").stdout == f"taskloom {__version__}\n"
    assert "doctor" in run("--help").stdout
    with pytest.raises(SystemExit) as caught:
        main(["surgeon"])
    assert caught.value.code == 2


def test_the_oldest_versions_are_those_of_the_package_itself():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    wanted = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra, package, oldest in doctor.EXTRAS:
        for requirement in wanted.get(extra, ()):
            if re.match(rf"({package}|{extra})\b(\[.*\])?>=", requirement):
                assert f">={'.'.join(map(str, oldest))}" in requirement
