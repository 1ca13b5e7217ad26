"""One suite, run on every backend: what users rely on, wherever their program runs.

Each test is a behaviour, written once.  ``--backends local,ray`` says where it runs (by default on
the backends that need nothing else installed; ``all``: whatever is here).  Where a backend is
different, the test says so::

    @pytest.mark.lacks("ray", "Ray has no priorities", raises=NotImplementedError)
    @pytest.mark.differs("local_mode", "a task is over before anybody could cancel it")

``lacks``: the backend refuses at once, and the test asserts that it does.  ``differs``: it accepts
the program and does something else by nature; the test does not run there.  Both sentences are
written for users: the table in ``docs/backends.md`` is made of them (``--matrix``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
from tests.conformance.matrix import Matrix, behaviour_of
from tests.conformance.stages import STAGES, Stage, chosen
from tests.conformance.subjects import LONG_S

AT_ONCE_S: Final = 30.0
"""How long a refusal may take, on a machine that is busy with other things."""
LINGER_S: Final = 30.0
"""How long the processes of a cluster may take to notice that their program has ended."""

_matrix: Final = pytest.StashKey[Matrix]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    different = {mark.args[0] for mark in metafunc.definition.iter_markers("differs")}
    names = [stage.name for stage in _stages(metafunc.config) if stage.name not in different]
    metafunc.parametrize("backend", names, indirect=True, scope="package")


def _stages(config: pytest.Config) -> list[Stage]:
    try:
        return chosen(config.getoption("backends"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


# -- sessions ---------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def backend(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The backend that the test runs on; its session is shared by all tests."""
    stage = STAGES[request.param]
    import_module("taskloom").shutdown()  # another's
    yield stage
    stage.end()


@pytest.fixture(scope="module", autouse=True)
def _leave_no_session() -> Iterator[None]:
    """Other tests may come next in this process.  A cluster goes on: it takes long to start."""
    yield
    session: Any = import_module("taskloom._current").peek()
    if session is not None and not hasattr(session, "driver"):
        import_module("taskloom").shutdown()


@pytest.fixture(autouse=True)
def no_leaks(backend: Stage, request: pytest.FixtureRequest) -> Iterator[None]:
    """As everywhere, but not on clusters: their libraries keep threads and descriptors."""
    backend.ensure()
    if not backend.is_cluster:
        request.getfixturevalue("no_leaks")
        yield
        return
    before = backend.calls()
    yield
    if left := backend.calls_left(before):
        pytest.fail(f"calls that are not over: {left}", pytrace=False)


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name for an actor that no other test has."""
    return f"{request.node.name} {time.monotonic_ns()}"


@pytest.fixture
def run_program(backend: Stage, run_driver: Callable[..., Any]) -> Callable[..., tuple[str, str]]:
    """Run a program of its own on the backend: what it prints, to stdout and to stderr.

    The one line of it that says where it runs, ``init()``, is made to say so.
    """

    def run(program: str) -> tuple[str, str]:
        assert program.count("init()") == 1
        program = program.replace("init()", f"init({backend.init_line()})")
        done = run_driver(program, timeout=LONG_S, linger_s=LINGER_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    return run


# -- refusals ---------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    name = _backend_of(pyfuncitem)
    marks = [mark for mark in pyfuncitem.iter_markers("lacks") if mark.args[0] == name]
    if not marks:
        return (yield)
    (mark,) = marks
    began = time.monotonic()
    try:
        yield
    except mark.kwargs["raises"]:
        took = time.monotonic() - began
        if took > AT_ONCE_S:
            pytest.fail(f"{name} refuses, but only after {took:.1f} s", pytrace=False)
        return True
    pytest.fail(f"{name} does not refuse it any more: remove the mark", pytrace=False)


# -- the matrix -------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = config.getoption("matrix")
    if path and config.getoption("numprocesses", None):
        raise pytest.UsageError("--matrix needs one process: -n0")
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    if path:
        matrix = config.stash[_matrix] = Matrix(Path(path))
        for item in ours:
            matrix.collected(item)
    # Where no backend is left to run on, pytest would run a test without one, and skip it.
    homeless = {item for item in ours if not isinstance(_backend_of(item), str)}
    items[:] = [item for item in items if item not in homeless]


def _backend_of(item: pytest.Item) -> object:
    assert isinstance(item, pytest.Function)
    return item.callspec.params["backend"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if (matrix := item.config.stash.get(_matrix, None)) is not None:
        matrix.record(behaviour_of(item), str(_backend_of(item)), report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (matrix := session.config.stash.get(_matrix, None)) is not None:
        matrix.write()
