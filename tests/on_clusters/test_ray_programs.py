"""Whole programs on Ray: the two that taskloom was asked to run, with one line changed."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.on_clusters.conftest import LONG_S

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "tests" / "api" / "test_seeds.py"


def text_of(name: str) -> str:
    """A program that ``test_seeds`` holds, smaller."""
    found = re.search(rf'^{name} = """\\\n(.*?)"""', SEEDS.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("time.sleep(10)", "time.sleep(0.1)")


def run(program: str) -> str:
    """What a program prints that runs in a process of its own, on a Ray of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ON_RAY = (
    'init("ray", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, '
    "log_to_driver=False)"
)


def test_the_program_of_task_parallelism_runs_unchanged_but_for_its_init():
    program = text_of("TASK_PARALLELISM").replace("import ray\n", "import taskloom as ray\n", 1)
    program = program.replace("from ray import", "from taskloom import")
    assert "ray.init()" in program
    local = run(program.replace("ray.init()", "ray.init(num_cpus=2)"))
    assert run(program.replace("ray.init()", f"ray.{ON_RAY}")) == local != ""


def test_the_variable_alone_moves_a_program_to_ray(monkeypatch):
    monkeypatch.setenv("TASKLOOM_ADDRESS", "ray")
    program = """
        import taskloom

        @taskloom.remote
        def where():
            import sys
            return "ray" in sys.modules

        taskloom.init(num_cpus=1, object_store_memory=200 * 2**20, include_dashboard=False)
        print(taskloom.get(where.remote()))
    """
    assert run(textwrap.dedent(program)).strip().endswith("True")


def test_ray_is_imported_only_when_it_is_asked_for():
    program = """
        import sys, taskloom
        taskloom.init(num_cpus=1)
        f = taskloom.remote(lambda: 1)
        assert taskloom.get(f.remote()) == 1
        print("ray" in sys.modules)
    """
    assert run(textwrap.dedent(program)).strip() == "False"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{port}", "ray+gcs://127.0.0.1:{port}"])
def test_an_address_at_which_something_else_listens_is_one_clear_error(address):
    program = """
        import socket, time, taskloom
        server = socket.create_server(("127.0.0.1", 0))
        address = ADDRESS.format(port=server.getsockname()[1])
        began = time.monotonic()
        try:
            taskloom.init(address, connect_timeout=3)
        except ConnectionError as error:
            print("refused", address in str(error), "Ray 2" in str(error))
        assert time.monotonic() - began < 100
        import os; os._exit(0)
    """
    program = textwrap.dedent(program).replace("ADDRESS", repr(address))
    program = program.replace("import os;", "import sys; sys.stdout.flush(); import os;")
    assert run(program).strip().endswith("refused True True")
