"""Shared by all tests: the watch for leaks and hangs, a running engine, programs of their own.

``tl`` is taskloom with a running session, which all tests of a module share (to ask for another
one, a module says ``SESSION = {"num_cpus": 4}``).  ``fresh`` is taskloom without a session; what
the test starts is shut down after it.  ``run_driver`` runs a program in a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Final

import hypothesis
import psutil
import pytest

from taskloom._engine.portal import new_event_loop

# A shell that runs us in the background has us ignore Ctrl-C, and with us all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The first loop of a process makes libuv keep a pipe for signals, once and for all.
new_event_loop().close()

ROOT: Final = Path(__file__).resolve().parent.parent
TAG: Final = "TASKLOOM_TEST_TAG"
"""Every process that descends from this run has it in its environment, whoever adopted it."""
RUN_TAG: Final = f"{os.environ.get(TAG, '')}/{uuid.uuid4().hex}"
os.environ[TAG] = RUN_TAG
SETTLE_S: Final = 5.0
END_S: Final = 60.0  # for what ends by itself after the last test: the processes of a cluster do
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)

hypothesis.settings.register_profile(
    "taskloom", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
hypothesis.settings.load_profile("taskloom")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, because the options are read before the suite that they are for is found.
    group = parser.getgroup("conformance", "the suite that runs on every backend")
    group.addoption(
        "--backends",
        default="",
        metavar="NAMES",
        help="where tests/conformance runs: names with commas, or 'all' that are installed",
    )
    group.addoption(
        "--matrix",
        default="",
        metavar="FILE",
        help="write what passed where into this JSON file; what did not run stays as it was",
    )


# -- what a test may leave behind: nothing -----------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What the test process owns at one moment."""

    session: bool
    children: set[tuple[int, float]]
    zombies: set[int]
    threads: set[threading.Thread]
    descriptors: Counter[str]
    shared_memory: set[str]
    stored_bytes: int
    settings: dict[str, object]


def snapshot() -> Snapshot:
    children = _descendants(os.getpid())
    return Snapshot(
        session=_session_is_active(),
        children={child for child, is_zombie in children if not is_zombie},
        zombies={pid for (pid, _start), is_zombie in children if is_zombie},
        threads=set(threading.enumerate()),
        descriptors=_descriptors(),
        shared_memory={name for name in _listdir("/dev/shm") if "taskloom" in name},
        stored_bytes=_stored_bytes(),
        settings=_settings(),
    )


def leaks(before: Snapshot, after: Snapshot) -> list[str]:
    """What ``after`` has and ``before`` had not, in words.

    Between two moments of one session the number of workers may change, and with it all that
    the engine has open for them; the session is held to account when it ends.
    """
    found = []
    if after.session and not before.session:
        found.append("a session is active: call taskloom.shutdown(), or use `tl` or `fresh`")
    if not (before.session and after.session):
        for pid, _start in after.children - before.children:
            found.append(f"process {pid}: {_command_line(pid)}")
        found += [f"zombie {pid}" for pid in after.zombies - before.zombies]
        for kind, count in (after.descriptors - before.descriptors).items():
            found.append(f"{count} more file descriptors of kind {kind}")
    for thread in after.threads - before.threads:
        if not _thread_may_stay(thread, session=after.session):
            found.append(f"thread {thread.name!r}")
    if after.stored_bytes > before.stored_bytes:
        found.append(f"{after.stored_bytes - before.stored_bytes} more bytes in the object store")
    found += [f"/dev/shm/{name}" for name in after.shared_memory - before.shared_memory]
    for name in before.settings.keys() | after.settings.keys():
        old, new = before.settings.get(name), after.settings.get(name)
        if old != new:
            found.append(f"{name} was {old!r} and is {new!r}")
    return found


def settle(before: Snapshot) -> list[str]:
    """The leaks that are still there when everything had time to end."""
    deadline = time.monotonic() + SETTLE_S
    found = leaks(before, snapshot())
    while found and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        found = leaks(before, snapshot())
    return found


def _thread_may_stay(thread: threading.Thread, *, session: bool) -> bool:
    if thread.name == "taskloom-callbacks":
        return True  # one for the life of the process: it runs what users attached to futures
    if thread.name.startswith("Trio thread"):
        return True  # trio keeps idle threads for ten seconds
    return session and thread.name.startswith("taskloom")


def _settings() -> dict[str, object]:
    """Global settings of the process that belong to the user."""
    settings: dict[str, object] = {f"os.environ[{k!r}]": v for k, v in os.environ.items()}
    settings.pop("os.environ['PYTEST_CURRENT_TEST']", None)
    for number in SIGNALS:
        settings[f"the handler of {number.name}"] = signal.getsignal(number)
    settings["sys.excepthook"] = sys.excepthook
    settings["threading.excepthook"] = threading.excepthook
    # Read without the getter, which makes a policy when there is none.
    policy = getattr(asyncio.events, "_event_loop_policy", None)
    settings["the event loop policy"] = (
        None if type(policy).__module__.startswith("asyncio.") else policy
    )
    return settings


def _descriptors() -> Counter[str]:
    kinds: Counter[str] = Counter()
    for number in _listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith("/memfd:"):
            kinds["memfd"] += 1
        elif target.startswith("anon_inode:"):
            kinds[target.removeprefix("anon_inode:").strip("[]")] += 1
        elif not target.startswith("/"):
            kinds[target.partition(":")[0]] += 1
    return kinds


def _descendants(root: int) -> list[tuple[tuple[int, float], bool]]:
    """((pid, start time), is a zombie) of each process below ``root``."""
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):
        below = psutil.Process(root).children(recursive=True)
        pids = [process.pid for process in below]
    else:  # the same twenty times faster: it is asked twice for each test
        pids, unread = [], [root]
        while unread:
            pid = unread.pop()
            for thread in _listdir(f"/proc/{pid}/task"):
                try:
                    text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                except OSError:
                    continue  # it has ended meanwhile
                unread += map(int, text.split())
            pids.append(pid)
        pids.remove(root)
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            found.append(((pid, process.create_time()), is_zombie))
        except psutil.NoSuchProcess:
            continue
    return found


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline()) or "no command line"
    except psutil.Error:
        return "gone"


def _session_is_active() -> bool:
    # Not taskloom.is_initialized(): asking must not load what the test itself has not loaded.
    current = sys.modules.get("taskloom._current")
    return current is not None and current.peek() is not None


def _stored_bytes() -> int:
    """How much of the running session's shared memory is used by values."""
    if not _session_is_active():
        return 0
    engine = getattr(sys.modules["taskloom._current"].peek(), "_engine", None)
    if engine is None:
        return 0  # no store in the calling process
    engine.storage.store.tidy()
    used: int = engine.storage.store.used
    return used


def _end_session() -> None:
    if _session_is_active():
        import_module("taskloom").shutdown()


_failed: Final = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor or setting behind."""
    # The session is put in order here, so that the first snapshot sees it as the test will.
    if "fresh" in request.fixturenames:
        _end_session()
    elif "tl" in request.fixturenames:
        request.getfixturevalue("engine").ensure()
    before = snapshot()
    yield
    if "fresh" in request.fixturenames:
        _end_session()
    if request.node.stash.get(_failed, False):
        # Its traceback keeps things alive, and one report is enough.  What it did to the session
        # nobody knows: the next test gets another one.
        _end_session()
        return
    found = settle(before)
    if not before.session:
        _end_session()  # do not let the next test suffer
    if found:
        pytest.fail("the test leaves behind:\n  " + "\n  ".join(found), pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No process of the whole run is left, not even one that somebody else adopted."""
    own = {os.getpid(), *(pid for (pid, _start), _zombie in _descendants(os.getpid()))}
    deadline = time.monotonic() + END_S
    while left := [p for p in tagged_processes(RUN_TAG) if p.pid not in own]:
        if time.monotonic() > deadline:
            for process in left:
                print(f"\nleft behind by the tests: {process.pid} {_command_line(process.pid)}")
                _kill(process)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return
        time.sleep(0.05)


# -- a running engine --------------------------------------------------------------------------


class Engine:
    """The session that the tests of one module share, started when one of them first asks."""

    def __init__(self, options: Mapping[str, object]) -> None:
        self.options = options
        self.taskloom: ModuleType = import_module("taskloom")

    def ensure(self) -> None:
        """Start the session, unless it runs: a test may have shut it down."""
        if not self.taskloom.is_initialized():
            self.taskloom.init(**self.options)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    _end_session()
    before = snapshot()
    yield Engine(getattr(request.module, "SESSION", {"num_cpus": 2}))
    _end_session()
    if found := settle(before):
        pytest.fail("the session leaves behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def tl(engine: Engine) -> ModuleType:
    """taskloom, with the session that the tests of this module share."""
    return engine.taskloom


@pytest.fixture
def fresh() -> ModuleType:
    """taskloom, without a session; one that the test starts is shut down after it."""
    return import_module("taskloom")


# -- programs in a process of their own --------------------------------------------------------


def tagged_processes(tag: str) -> list[psutil.Process]:
    """The processes, whoever their parent is, whose environment has a tag that begins so."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG, "").startswith(tag):
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or is not ours to ask
    return found


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def run_driver(
    script: str,
    *,
    timeout: float = 30.0,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    command: Callable[[Path], Sequence[str]] | None = None,
    linger_s: float = 2.0,
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` as a program of its own and return how it ended and what it printed.

    The test fails when the program does not end in ``timeout`` seconds, or when a process that
    it started is alive ``linger_s`` seconds after its end.

    Args:
        script: the text of the program.
        timeout: seconds until it counts as hanging; it is then killed with all it started.
        args: its command-line arguments.
        env: variables to add to this process's environment.
        cwd: where it runs; by default a directory of its own, which also holds ``driver.py``.
        command: makes of the program's path what follows ``python``; by default the path itself.
        linger_s: how long what it started may outlive it.
    """
    tag = f"{RUN_TAG}/{uuid.uuid4().hex}"
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, **(env or {}), TAG: tag}
    environ.pop("PYTEST_CURRENT_TEST", None)
    with tempfile.TemporaryDirectory(prefix="driver-") as name:
        home = Path(name)
        program = home / "driver.py"
        program.write_text(script)
        # Files, not pipes: reading a pipe would wait for whoever inherited it.
        with (home / "stdout").open("w+b") as stdout, (home / "stderr").open("w+b") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *(command or _plainly)(program), *args],
                cwd=cwd or home,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                process.wait(timeout)
                complaint = ""
            except subprocess.TimeoutExpired:
                complaint = f"the program did not end in {timeout} s"
                process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread is
                _wait_until(lambda: process.poll() is not None, 2.0)
            finally:
                left = [] if complaint else _processes_left(tag, linger_s)
                survivors = [f"{p.pid} {_command_line(p.pid)}" for p in left]
                for other in tagged_processes(tag):
                    _kill(other)
                process.kill()
                process.wait()
            if survivors:
                complaint = "the program left processes:\n" + "\n".join(survivors)
            out, err = (_text(file) for file in (stdout, stderr))
    if complaint:
        pytest.fail(f"{complaint}\n--- stdout\n{out}\n--- stderr\n{err}", pytrace=False)
    return subprocess.CompletedProcess([str(program), *args], process.returncode, out, err)


def _plainly(program: Path) -> Sequence[str]:
    return [str(program)]


def _processes_left(tag: str, timeout: float) -> list[psutil.Process]:
    _wait_until(lambda: not tagged_processes(tag), timeout)
    return tagged_processes(tag)


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@pytest.fixture(name="run_driver")
def _run_driver() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_driver
