"""A Dask cluster of processes that somebody else runs: one dies in the middle, or is not there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gates import eventually

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def python(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """How a Python process of its own ends, and what it prints."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
    )


def run(program: str, *args: str, timeout: float = 400) -> str:
    """What a program prints that runs in a process of its own."""
    done = python("-c", textwrap.dedent(program), *args, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Cluster:
    """A scheduler and two workers of Dask's own, with one thread each."""

    def __init__(self, protocol: str = "tcp") -> None:
        self.port = _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        listen = ("--host", "127.0.0.1", "--port", self.port, "--protocol", protocol)
        self.scheduler = self._start("dask_scheduler", *listen)
        assert eventually(self._answers, START_S)
        place = f"{protocol}://127.0.0.1:{self.port}"
        common = ("--nthreads", 1, "--no-nanny", "--resources", "away=1")
        self.workers = [self._start("dask_worker", place, *common) for _ in range(2)]

    def _start(self, program: str, *args: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, args)]
        process = subprocess.Popen(
            [*command, "--no-dashboard"], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        self._processes.append(process)
        return process

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def theirs() -> Iterator[Cluster]:
    """A running cluster."""
    found = Cluster()
    yield found
    found.close()


@pytest.fixture
def certificates(tmp_path, monkeypatch) -> None:
    """The programs of this test find a key, and a certificate for it, in Dask's configuration."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificates, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *request.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    found = {"CA_FILE": certificate}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found |= {f"{role}__KEY": key, f"{role}__CERT": certificate}
    for name, path in found.items():
        monkeypatch.setitem(ENVIRONMENT, f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(path))


@pytest.fixture
def encrypted(certificates) -> Iterator[Cluster]:
    """A running cluster that speaks TLS only."""
    found = Cluster("tls")
    yield found
    found.close()


GRAPH = """
    import os, signal, sys, time
    import taskloom

    @taskloom.remote(max_retries=5)
    def work(n, directory):
        open(os.path.join(directory, f"{n}-{os.getpid()}"), "w").close()
        until = time.monotonic() + 100
        while len(os.listdir(directory)) < 2 and time.monotonic() < until:
            time.sleep(0.01)  # two run side by side, so both workers have one
        time.sleep(0.05)
        return n, taskloom.get_runtime_context().get_node_id()

    @taskloom.remote
    def total(*pairs):
        return sum(n for n, _ in pairs), len({node for _, node in pairs})

    @taskloom.remote
    def block():
        return bytes(10**6), os.getpid()

    address, directory, victim = sys.argv[1:]
    taskloom.init(address, connect_timeout=60)
    while taskloom.cluster_resources().get("CPU", 0) < 2:  # none at first
        time.sleep(0.05)
    first = [work.remote(n, directory) for n in range(8)]
    print("first", *taskloom.get(total.remote(*first), timeout=180))
    blocks = [block.remote() for _ in range(6)]
    taskloom.wait(blocks, num_returns=6, timeout=180)
    second = [work.remote(n, directory) for n in range(40)]
    taskloom.wait(second, num_returns=4, timeout=180)
    os.kill(int(victim), signal.SIGKILL)
    print("second", taskloom.get(total.remote(*second), timeout=180)[0])
    found = taskloom.get(blocks, timeout=180)
    print("made again", sum(len(data) for data, _ in found), int(victim) in {p for _, p in found})
    taskloom.shutdown()
"""


def test_a_worker_that_dies_in_the_middle_changes_no_answer(theirs, tmp_path):
    victim = str(theirs.workers[0].pid)
    printed = run(GRAPH, f"dask://127.0.0.1:{theirs.port}", str(tmp_path), victim)
    assert printed.splitlines() == ["first 28 2", "second 780", "made again 6000000 False"]


def test_workers_of_others_run_nested_coroutines_actors_and_streams(theirs):
    program = """
        import sys
        import taskloom

        @taskloom.remote
        def tree(depth):
            if not depth:
                return 1
            return sum(taskloom.get([tree.remote(depth - 1) for _ in range(2)]))

        @taskloom.remote
        async def double(n):
            return 2 * n

        @taskloom.remote
        class Counter:
            def __init__(self):
                self.n = 0

            def add(self):
                self.n += 1
                return self.n

            def items(self, n):
                yield from range(n)

        taskloom.init(sys.argv[1], connect_timeout=60)
        print(taskloom.get(tree.remote(3), timeout=180))
        print(sum(taskloom.get([double.remote(n) for n in range(50)], timeout=180)))
        counter = Counter.remote()
        print(taskloom.get([counter.add.remote() for _ in range(20)], timeout=180)[-1])
        print([taskloom.get(item) for item in counter.items.remote(3)])
        limited = taskloom.remote(lambda: "ran").options(resources={"away": 1}, num_cpus=0)
        print(taskloom.get(limited.remote(), timeout=180))
        try:
            taskloom.init(sys.argv[1], num_cpus=2, ignore_reinit_error=False)
        except RuntimeError:
            pass
    """
    printed = run(program, f"dask://127.0.0.1:{theirs.port}")
    assert printed.splitlines() == ["8", "2450", "20", "[0, 1, 2]", "ran"]


def test_all_kinds_of_calls_go_through_tls_and_nobody_comes_in_without_it(encrypted):
    program = """
        import sys
        import taskloom
        from taskloom import _current

        @taskloom.remote
        def tree(depth):
            return sum(taskloom.get([tree.remote(depth - 1) for _ in range(2)])) if depth else 1

        @taskloom.remote
        class Counter:
            def items(self, n):
                yield from range(n)

        port = sys.argv[1]
        taskloom.init(f"dask+tls://127.0.0.1:{port}", connect_timeout=60)
        print(_current.peek().driver.client.scheduler.address.partition(":")[0])
        print(taskloom.get(tree.remote(2), timeout=180))
        print(len(taskloom.get(taskloom.put(bytes(10**6)), timeout=180)))
        print([taskloom.get(item) for item in Counter.remote().items.remote(3)])
        taskloom.shutdown()
        try:
            taskloom.init(f"dask://127.0.0.1:{port}", connect_timeout=10)
        except ConnectionError:
            print("refused")
    """
    printed = run(program, str(encrypted.port))
    assert printed.splitlines() == ["tls", "4", "1000000", "[0, 1, 2]", "refused"]


def test_a_scheduler_that_is_gone_is_an_error_and_not_a_wait(theirs):
    program = """
        import os, signal, sys, time
        import taskloom
        from taskloom.exceptions import RaySystemError

        @taskloom.remote
        def slow():
            time.sleep(60)

        taskloom.init(sys.argv[1], connect_timeout=60)
        refs = [slow.remote() for _ in range(3)]
        taskloom.wait(refs, timeout=0.2)
        os.kill(int(sys.argv[2]), signal.SIGKILL)
        try:
            taskloom.get(refs, timeout=180)
        except RaySystemError as error:
            print("scheduler is gone" in str(error))
        try:
            slow.remote()
        except RaySystemError as error:
            print("scheduler is gone" in str(error))
        taskloom.shutdown()
        print("left")
    """
    address = f"dask://127.0.0.1:{theirs.port}"
    printed = run(program, address, str(theirs.scheduler.pid), timeout=400)
    assert printed.split() == ["True", "True", "left"]


def test_an_address_at_which_nobody_or_something_else_listens_is_one_clear_error():
    program = """
        import socket, sys, time
        import taskloom

        silent = socket.create_server(("127.0.0.1", 0))
        for address in (sys.argv[1], f"dask://127.0.0.1:{silent.getsockname()[1]}"):
            began = time.monotonic()
            try:
                taskloom.init(address, connect_timeout=2)
            except ConnectionError as error:
                print(address in str(error), time.monotonic() - began < 60)
        import os; sys.stdout.flush(); os._exit(0)
    """
    assert run(program, f"dask://127.0.0.1:{_free_port()}").split() == ["True"] * 4


# -- a cluster of our own -------------------------------------------------------------------------


def test_a_cluster_of_our_own_leaves_no_process_and_says_nothing():
    program = """
        import os, time
        import taskloom

        taskloom.init("dask", num_cpus=2)
        where = taskloom.remote(lambda: os.getpid()).options(num_cpus=0)
        print(*{pid for pid in taskloom.get([where.remote() for _ in range(20)])})
        taskloom.shutdown()
        taskloom.init("dask", num_cpus=1)
        print(*taskloom.get([where.remote()]))
        taskloom.remote(time.sleep).remote(60)  # nobody waits for it
    """
    done = python("-c", textwrap.dedent(program))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    pids = done.stdout.split()
    assert len(pids) >= 2
    assert eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_the_doctor_finds_all_well_and_ends_in_silence():
    done = python("-m", "taskloom", "doctor", "--address", "dask")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ok +rows of the matrix +\d+ holds", done.stdout, re.MULTILINE), done.stdout


def test_workers_end_when_their_program_is_killed():
    program = """
        import os, signal
        import taskloom

        taskloom.init("dask", num_cpus=1)
        print(taskloom.get(taskloom.remote(lambda: os.getpid()).remote()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = python("-c", textwrap.dedent(program))
    pid = int(done.stdout)
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def _seed(name: str) -> str:
    """A program that ``test_seeds`` holds, smaller, without a word of Dask."""
    seeds = (ROOT / "tests" / "api" / "test_seeds.py").read_text()
    found = re.search(rf'^{name} = """\\\n(.*?)"""', seeds, re.MULTILINE | re.DOTALL)
    assert found is not None
    text = found[1].replace("time.sleep(10)", "time.sleep(0.1)")
    return text.replace("import ray\n", "import taskloom as ray\n", 1).replace(
        "from ray import", "from taskloom import"
    )


def test_the_variable_alone_moves_a_program_to_dask(monkeypatch):
    program = _seed("TASK_PARALLELISM").replace("ray.init()", "ray.init(num_cpus=2)")
    local = run(program)
    monkeypatch.setitem(ENVIRONMENT, "TASKLOOM_ADDRESS", "dask")
    assert run(program) == local != ""
    where = """
        import sys, taskloom
        taskloom.init(num_cpus=1)
        print("distributed" in sys.modules)
    """
    assert run(where) == "True\n"


def test_dask_is_imported_only_when_it_is_asked_for():
    program = """
        import sys, taskloom
        taskloom.init(num_cpus=1)
        assert taskloom.get(taskloom.remote(lambda: 1).remote()) == 1
        print("distributed" in sys.modules)
    """
    assert run(program) == "False\n"
