"""Nothing of a session can be reached from outside: no listener, no name, no readable file."""

from __future__ import annotations

import os

import pytest

HEAD = """
import json, os, re, stat, subprocess, sys, tempfile, time
import taskloom as ray

def processes():
    '''The driver and everything below it.'''
    found, todo = [], [os.getpid()]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for thread in os.listdir(f"/proc/{pid}/task"):
            todo += map(int, open(f"/proc/{pid}/task/{thread}/children").read().split())
    return found

def descriptors(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try: yield int(fd), os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError: pass

@ray.remote
def work(n): return n

@ray.remote
async def snooze(n): return n

@ray.remote
def own_descriptors():
    out = subprocess.run([sys.executable, "-c", "import os; print(os.listdir('/proc/self/fd'))"],
                         capture_output=True, text=True, check=True, close_fds=False)
    return out.stdout.strip()

def begin(**options):
    ray.init(num_cpus=2, **options)
    ray.get([work.remote(bytes(300_000)) for _ in range(10)] + [snooze.remote(1)])
"""


@pytest.fixture
def drive(run_driver):
    """Run a program that begins with HEAD; what it prints, by line."""

    def drive(body: str, **options: object) -> list[str]:
        done = run_driver(HEAD + body, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return drive


def test_no_process_of_a_session_has_a_listener_or_a_name_SECURITY_1_2(drive):
    lines = drive("""
begin()
inodes = {link[8:-1] for pid in processes() for _, link in descriptors(pid)
          if link.startswith("socket:[")}
print(len(inodes) > 4)
for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink", "icmp"):
    try: rows = open(f"/proc/net/{table}").read().splitlines()[1:]
    except OSError: continue
    for row in rows:
        if inodes & set(row.split()): print(table, row)
unix = 0
for row in open("/proc/net/unix").read().splitlines()[1:]:
    fields = row.split()
    if fields[6] in inodes:
        unix += 1
        if len(fields) > 7: print("has a name:", row)
        if int(fields[3], 16) & 0x10000: print("listens:", row)
print(unix == len(inodes))
""")
    assert lines == ["True", "True"]


def test_it_works_where_there_is_no_network_at_all_SECURITY_3(drive):
    lines = drive("""
import ctypes
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None)
if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) and libc.unshare(CLONE_NEWNET):
    print("skip")
    sys.exit()
begin()
print(ray.get([work.remote(1), snooze.remote(2)]))
""")
    if lines == ["skip"]:
        pytest.skip("this process may not leave the network")
    assert lines == ["[1, 2]"]


def test_what_a_task_or_the_driver_starts_gets_no_descriptor_of_ours_SECURITY_30(drive):
    lines = drive("""
with os.scandir("/proc/self/fd"): pass
begin()
print(ray.get(own_descriptors.remote()))
print(own_descriptors.func())
print(sorted({fd for fd, _ in descriptors(os.getpid()) if fd > 2 and os.get_inheritable(fd)}))
""")
    alone = str([str(fd) for fd in range(4)])  # the last one is that of the listing
    assert lines == [alone, alone, "[]"]


def test_a_worker_has_no_descriptor_of_another_worker_or_of_the_zygote_SECURITY_30(drive):
    lines = drive("""
ray.init(num_cpus=3)
refs = [ray.remote(lambda: (time.sleep(0.3), os.getpid())[1]).remote() for _ in range(3)]
pids = set(ray.get(refs))
owners = {}
for pid in processes():
    for _, link in descriptors(pid):
        if link.startswith(("socket:", "pipe:")): owners.setdefault(link, set()).add(pid)
shared = [(link, pids_) for link, pids_ in owners.items() if len(pids_ & pids) > 1]
print(len(pids) > 1, shared)
""")
    assert lines == ["True []"]


def test_nothing_lies_where_other_users_could_read_it_SECURITY_10_12(drive, tmp_path):
    lines = drive(
        """
os.umask(0)
places = [sys.argv[1], tempfile.gettempdir(), "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")]
def listing():
    found = {}
    for place in filter(os.path.isdir, places):
        for name in os.listdir(place):
            path = os.path.join(place, name)
            try: found[path] = os.lstat(path)
            except OSError: pass
    return found
before = listing()
begin()
for path, status in listing().items():
    if path in before or status.st_uid != os.getuid() or "taskloom" not in path: continue
    if stat.S_IMODE(status.st_mode) & 0o077: print("open to others:", path, oct(status.st_mode))
for pid in processes():
    for fd, link in descriptors(pid):
        if link.startswith("/") and not link.startswith(("/dev/", "/proc/", "/memfd:")):
            mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
            if not stat.S_ISREG(mode): continue
            if link.endswith((".so", ".py", "/stdout", "/stderr")): continue
            print("a file is open:", link)
ray.shutdown()
new = set(listing()) - set(before)
print(sorted(path for path in new if path.startswith(sys.argv[1]) or "taskloom" in path))
""",
        args=[str(tmp_path)],
        env={"TMPDIR": str(tmp_path)},
    )
    assert lines == ["[]"]


def test_the_names_of_tasks_and_arguments_are_not_in_command_lines_SECURITY_6_9(drive):
    lines = drive("""
begin()
secret = "hunter2" + "x" * 20
ray.get([work.remote(secret), work.options(name="hidden-name").remote(secret)])
session = ray.get_runtime_context().get_job_id()
for pid in processes():
    if pid == os.getpid(): continue
    words = open(f"/proc/{pid}/cmdline").read()
    environ = open(f"/proc/{pid}/environ").read()
    for text in (secret, "hidden-name"):
        if text in words or text in environ: print(pid, words)
    ours = set(environ.split("\\0")) - {f"{k}={v}" for k, v in os.environ.items()}
    if ours - {""}: print("added to the environment:", ours)
env = ray.get(ray.remote(lambda: dict(os.environ)).remote())
print(sorted(k for k, v in env.items() if os.environ.get(k) != v))
""")
    assert lines == ["['OMP_NUM_THREADS']"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_can_read_nothing_of_the_processes_SECURITY_10(drive):
    lines = drive("""
begin()
pids = processes()
pid = os.fork()
if not pid:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    for other in pids:
        for path in (f"/proc/{other}/environ", f"/proc/{other}/mem", f"/proc/{other}/maps"):
            try:
                open(path, "rb").read(1)
                print("readable:", path, flush=True)
            except OSError: pass
        try: print("readable:", os.listdir(f"/proc/{other}/fd"), flush=True)
        except OSError: pass
        try: os.kill(other, 0); print("can be signalled", flush=True)
        except PermissionError: pass
    os._exit(0)
os.waitpid(pid, 0)
print(len(pids) > 2)
""")
    assert lines == ["True"]


def test_a_module_that_lies_in_the_directory_is_not_imported_by_accident_SECURITY_31(
    run_driver, tmp_path
):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "pickle", "socket", "mmap", "select", "ctypes", "cloudpickle", "uvloop"):
        (here / f"{name}.py").write_text(f"open('planted-{name}', 'w')\nraise SystemExit(9)\n")
    done = run_driver(
        HEAD
        + """
begin()
print(ray.get(ray.remote(lambda: ("" in sys.path, os.getcwd() in sys.path)).remote()))
""",
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(False, False)"]
    assert not list(here.glob("planted-*"))


def test_the_page_that_workers_write_has_no_name_SECURITY_10(drive):
    lines = drive("""
begin()
names = {link for pid in processes() for _, link in descriptors(pid) if "taskloom" in link}
mapped = {line.split(maxsplit=5)[5].strip() for pid in processes()
          for line in open(f"/proc/{pid}/maps") if "taskloom" in line and ".so" not in line}
print(bool(names), all(n.startswith("/memfd:") and n.endswith("(deleted)") for n in names | mapped))
""")
    assert lines == ["True True"]


def test_a_core_dump_leaves_out_what_processes_share_SECURITY_32(drive):
    lines = drive("""
begin()
ref = ray.put(bytes(1 << 20))
ray.get([ref, ray.remote(len).remote(ref)])
for pid in processes():
    flags, shared = {}, None
    for line in open(f"/proc/{pid}/smaps"):
        if "-" in line.split()[0]: shared = "memfd:taskloom-objects" in line
        elif shared and line.startswith("VmFlags:"): print("dd" in line.split())
""")
    assert lines
    assert set(lines) == {"True"}


def test_c_code_that_writes_to_a_shared_value_ends_itself_and_changes_nothing_SECURITY_11(
    run_driver,
):
    done = run_driver(
        HEAD
        + """
import ctypes
import numpy as np

@ray.remote(max_retries=0)
def spoil(array):
    for _ in range(4):
        ray.put(np.ones(len(array)))  # this process has written to the store as well
    ctypes.memset(array.ctypes.data, 0, 8)

@ray.remote
def made(n): return np.full(1 << 18, float(n))

ray.init(num_cpus=1)
refs = [ray.put(np.full(1 << 18, 7.0)), made.remote(7), made.remote(7)]
kept = ray.get(refs)
for ref in refs[:2]:
    try: ray.get(spoil.remote(ref))
    except ray.exceptions.WorkerCrashedError as error: print("SIGSEGV" in str(error))
pid = os.fork()
if pid == 0:
    ctypes.memset(kept[2].ctypes.data, 0, 8)
    os._exit(0)
print(os.WTERMSIG(os.waitpid(pid, 0)[1]))
print({float(array.min()) for array in (*kept, *ray.get(refs))})
"""
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "pid=" not in line]
    assert lines == ["True", "True", "11", "{7.0}"]
