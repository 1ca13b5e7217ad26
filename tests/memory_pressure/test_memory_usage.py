"""How much memory is in use, read from files as the kernel writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskloom._engine.memory_usage import MemoryUsage, Process, gib, tell_largest

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
MEMINFO = "MemTotal:       4096000 kB\nMemFree:  1 kB\nMemAvailable:   3072000 kB\n"


@pytest.fixture
def machine(tmp_path: Path):
    """A machine made of files: {path below /: text}."""

    def make(files: Mapping[str, str]) -> MemoryUsage:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return MemoryUsage(str(tmp_path / "proc"), str(tmp_path / "cgroup"))

    return make


def v2(path: str, **files: object) -> dict[str, str]:
    return {f"cgroup/{path}/{name.replace('__', '.')}": f"{text}\n" for name, text in files.items()}


def test_what_is_available_is_not_in_use(machine):
    usage = machine({"proc/meminfo": MEMINFO}).read()
    assert (usage.used_bytes, usage.limit_bytes) == (1024000 * 1024, 4096000 * 1024)
    assert str(usage) == "1000 MiB of 3.91 GiB (25.0%) were in use in this machine"


def test_a_container_of_version_2_that_is_fuller_than_the_machine_counts(machine):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box/inner\n",
        **v2("box", memory__max=1000 * MIB, memory__current=900 * MIB, memory__stat="anon 5"),
        **v2("box/inner", memory__max="max", memory__current=100 * MIB),
    }
    usage = machine(files).read()
    assert (usage.used_bytes, usage.limit_bytes) == (900 * MIB, 1000 * MIB)
    assert usage.where.endswith("cgroup/box")


def test_the_page_cache_of_a_container_is_not_in_use(machine):
    stat = f"inactive_file {100 * MIB}\nactive_file {200 * MIB}\nslab_reclaimable {50 * MIB}"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        **v2("", memory__max=1000 * MIB, memory__current=900 * MIB, memory__stat=stat),
    }
    assert machine(files).read().used_bytes == 550 * MIB


def test_a_container_of_version_1_counts_with_all_groups_below_it(machine):
    stat = f"inactive_file 7\ntotal_inactive_file {100 * MIB}\ntotal_active_file {MIB}"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/box\n1:cpu:/\n0::/\n",
        "cgroup/memory/box/memory.limit_in_bytes": f"{500 * MIB}\n",
        "cgroup/memory/box/memory.usage_in_bytes": f"{400 * MIB}\n",
        "cgroup/memory/box/memory.stat": stat,
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/memory.usage_in_bytes": f"{4000 * MIB}\n",
    }
    usage = machine(files).read()
    assert (usage.used_bytes, usage.limit_bytes) == (299 * MIB, 500 * MIB)


def test_a_container_without_a_limit_says_nothing(machine):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box\n",
        **v2("box", memory__max="max", memory__current=4000 * MIB),
    }
    assert machine(files).read().where == "this machine"


def test_a_limit_that_changes_later_is_seen(machine, tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box\n",
        **v2("box", memory__max="max", memory__current=100 * MIB),
    }
    source = machine(files)
    (tmp_path / "cgroup/box/memory.max").write_text(f"{110 * MIB}\n")
    assert source.read().limit_bytes == 110 * MIB


def test_where_nothing_can_be_read_nothing_is_said(machine):
    source = machine({})
    assert source.read() is None
    assert source.kernel_kills() == 0
    assert source.processes() == []
    assert source.rss_bytes(1) == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/vmstat": "pgfault 3\noom_kill 5\n"}, 5),
        (
            {
                "proc/vmstat": "oom_kill 5\n",
                "proc/self/cgroup": "0::/box\n",
                "cgroup/box/memory.events": "low 0\noom 9\noom_kill 2\noom_group_kill 0\n",
            },
            2,
        ),
        (
            {
                "proc/vmstat": "oom_kill 5\n",
                "proc/self/cgroup": "4:memory:/box\n",
                "cgroup/memory/box/memory.oom_control": "under_oom 0\noom_kill 3\n",
                "cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 4\n",
            },
            3,
        ),
    ],
    ids=["machine", "version 2", "version 1"],
)
def test_the_kernel_s_kills_are_those_of_the_nearest_container(machine, files, expected):
    assert machine(files).kernel_kills() == expected


def test_processes_are_listed_the_largest_first(machine):
    files = {
        "proc/self/cgroup": "",
        "proc/12/stat": "12 (a (strange) na\x1bme) S 1 10 10 0 -1",
        "proc/12/statm": "900 300 100 1 0 1 0",
        "proc/13/stat": "13 (small) S 1 13 13 0 -1",
        "proc/13/statm": "900 20 10 1 0 1 0",
        "proc/14/stat": "",  # it ends while we look
        "proc/uptime": "1 1",
    }
    source = machine(files)
    assert source.processes() == [
        Process(12, 10, "a (strange) na?me", 300 * PAGE, 200 * PAGE),
        Process(13, 13, "small", 20 * PAGE, 10 * PAGE),
    ]
    assert source.rss_bytes(12) == 300 * PAGE


def test_this_machine_can_be_read():
    source = MemoryUsage()
    usage = source.read()
    assert 0 < usage.used_bytes < usage.limit_bytes
    me = next(process for process in source.processes() if process.pid == os.getpid())
    assert 0 < me.held_bytes < me.rss_bytes
    assert me.group == os.getpgid(0)


def test_sizes_are_told_as_people_read_them():
    assert (gib(300 * MIB), gib(3 << 30)) == ("300 MiB", "3.00 GiB")


def test_the_largest_processes_are_told_by_their_better_names():
    processes = [Process(n, n, f"p{n}", n * MIB, 0) for n in (900, 30, 2)]
    lines = tell_largest(processes, {30: "a worker, runs f"}, count=2).splitlines()
    assert [line.split(maxsplit=3) for line in lines] == [
        ["900", "900", "MiB", "p900"],
        ["30", "30", "MiB", "a worker, runs f"],
    ]
