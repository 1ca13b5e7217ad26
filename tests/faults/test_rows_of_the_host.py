"""What tasks, terminals and machines do to a session (FAULTS.md rows 13, 19, 28, 32, 34, 37)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.faults.deaths import PATH
from tests.faults.drivers import is_alive
from tests.faults.test_worker_death import HEAD, drive
from tests.gates import eventually

__all__ = ["drive"]  # the fixture

UNSHARE = shutil.which("unshare")


def test_a_worker_that_dies_in_the_middle_of_a_large_result_tries_again_FAULTS_13(drive):
    (line,) = drive("""
SIZE = 32 << 20

@ray.remote(max_retries=-1)
def large(delay):
    gate.note("in")
    if gate.count("in") < 8:
        threading.Thread(target=lambda: [time.sleep(delay), os.kill(os.getpid(), 9)]).start()
    return bytes(range(256)) * (SIZE // 256)

ray.init(num_cpus=1)
right = bytes(range(256)) * (SIZE // 256)
say(*(outcome(large.remote(n * 0.008)) == right for n in range(8)), gate.count("in") > 7)
""")
    assert line == [True] * 9


DEEDS = {
    "directory": "os.chdir('/')",
    "environment": "os.environ.clear()",
    "umask": "os.umask(0o777)",
    "output": "sys.stdout = sys.stderr = None",
    "closed output": "sys.stdout.close(); sys.stderr.close(); os.close(0)",
    "module path": "sys.path.clear()",
    "recursion limit": "sys.setrecursionlimit(60)",
    "signals blocked": "signal.pthread_sigmask(signal.SIG_SETMASK, {2, 10, 12, 15, 17})",
    "interrupt ignored": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "interrupt as in any program": "signal.signal(signal.SIGINT, signal.default_int_handler)",
    "child signals": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "alarm": "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(0, 0.01, 0.01)",
    "garbage collector": "import gc; gc.disable(); gc.set_threshold(1)",
    "threads": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "hooks": "sys.excepthook = sys.unraisablehook = threading.excepthook = None",
    "tracing": "sys.settrace(lambda *a: None); sys.setswitchinterval(1.0)",
    "low priority": "os.nice(5)",
    "group": "os.setpgid(0, os.getpgid(os.getppid()))",
    "session": "os.setsid() if os.getpid() != os.getpgrp() else None",
}


@pytest.mark.parametrize("name", DEEDS)
def test_what_a_task_does_to_its_process_harms_no_later_task_FAULTS_19(drive, name):
    lines = drive(f"""
@ray.remote(max_retries=0)
def disturb():
    {DEEDS[name]}

@ray.remote(max_retries=0)
def compute(n):
    return sum(range(n))

@ray.remote(max_retries=0)
def stay(path):
    open(path, "w").close()
    time.sleep(1000)

ray.init(num_cpus=1)
ray.get(disturb.remote())
say(ray.get([compute.remote(n) for n in range(10)]) == [sum(range(n)) for n in range(10)])
path = os.path.abspath("there")
ref = stay.remote(path)
assert eventually(lambda: os.path.exists(path))
ray.cancel(ref)
say(outcome(ref))
say(ray.get(compute.remote(3), timeout=20), ray.available_resources().get("CPU"))
""")
    assert lines[0] == [True]
    assert lines[1][0].startswith("TaskCancelledError")
    assert lines[2][0] == 3


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_while_a_program_awaits_a_ref_FAULTS_28(drive, count):
    lines = drive(f"""
import asyncio

@ray.remote
def stay():
    gate.note("in")
    time.sleep(1000)

async def main():
    ref = stay.remote()
    def interrupt():
        gate.wait_for("in", gate.count("done") + 1)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    await ref

ray.init(num_cpus=1)
for _ in range({count}):
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        gate.note("done")
        say("interrupted")
say(ray.get(good.remote("usable"), timeout=20))
""")
    assert lines == [["interrupted"]] * count + [["usable"]]


def test_a_terminal_that_is_closed_takes_everything_along_FAULTS_32(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        HEAD
        + """
@ray.remote
def stay():
    gate.note("in")
    time.sleep(1000)

ray.init(num_cpus=1)
ref = stay.remote()
gate.wait_for("in")
gate.note("ready")
time.sleep(1000)
"""
    )
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.login_tty(0); exec(open({str(script)!r}).read())"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    os.close(theirs)
    try:
        assert eventually((tmp_path / "ready.marks").exists)
        os.close(ours)
        assert process.wait(20) == -signal.SIGHUP
        worker = int((tmp_path / "in.marks").read_text())
        assert eventually(lambda: not is_alive(worker))
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(UNSHARE is None, reason="needs unshare")
def test_a_driver_that_is_the_first_process_of_a_container_leaves_no_zombies_FAULTS_34(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        HEAD
        + """
assert os.getpid() == 1
ray.init(num_cpus=2)
for _ in range(50):
    outcome(ray.remote(max_retries=0)(os._exit).remote(1))
def zombies():
    return [p.pid for p in psutil.process_iter() if p.status() == psutil.STATUS_ZOMBIE]
say(eventually(lambda: not zombies()))
ray.shutdown()
say([p.pid for p in psutil.process_iter()])
"""
    )
    done = subprocess.run(
        [UNSHARE, "-Urpf", "--mount-proc", sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    if "unshare" in done.stderr and not done.stdout:
        pytest.skip(f"no namespaces here: {done.stderr}")
    said = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert said == ["[true]", "[[1]]"], done.stdout + done.stderr


def test_a_session_that_sleeps_as_a_whole_goes_on_where_it_was_FAULTS_37(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        HEAD
        + """
@ray.remote(max_retries=0)
def count(n):
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        pass
    return n

ray.init(num_cpus=2)
refs = [count.remote(n) for n in range(20)]
gate.note("ready")
say(ray.get(refs) == list(range(20)))
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
        start_new_session=True,
    )
    try:
        assert eventually((tmp_path / "ready.marks").exists)
        import psutil

        everybody = [psutil.Process(process.pid)]
        everybody += everybody[0].children(recursive=True)
        for one in everybody:
            one.suspend()
        time.sleep(1.0)  # the lid is closed for a while
        for one in everybody:
            one.resume()
        out, _ = process.communicate(timeout=60)
        assert out.splitlines()[-1] == "[true]"
    finally:
        process.kill()
        process.wait()


def test_many_deaths_leave_no_descriptor_no_zombie_and_no_thread_P9(drive):
    lines = drive("""
def owned():
    me = psutil.Process()
    below = [p for p in me.children(recursive=True)]
    return (
        len(os.listdir("/proc/self/fd")),
        sum(p.status() == psutil.STATUS_ZOMBIE for p in below),
        threading.active_count(),
    )

ray.init(num_cpus=2, log_to_driver=False)
die = ray.remote(max_retries=0)(lambda: os._exit(1))
ray.get([good.remote(1) for _ in range(10)])
outcome(die.remote())
ray.get([ray.remote(time.sleep).remote(0.2) for _ in range(2)])
before = owned()
for _ in range(40):
    outcome(die.remote())
ray.get([ray.remote(time.sleep).remote(0.2) for _ in range(2)])
say(eventually(lambda: all(now <= then for now, then in zip(owned(), before))), before, owned())
""")
    assert lines[0][0] is True, lines
