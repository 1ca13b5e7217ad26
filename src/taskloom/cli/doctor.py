"""``python -m taskloom doctor``: can taskloom run here, with what, and on that cluster?

Each check gives findings, which are printed as they come: first what the machine has, then whether
a session starts on it, then what a cluster says of itself.  A problem has one sentence that says
what to do, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from taskloom import api
from taskloom._machine import usable_cpus, usable_memory_bytes
from taskloom._version import __version__
from taskloom.backends._addresses import Address, parse_address
from taskloom.cli.probes import Verdict, Word, try_all
from taskloom.remote_function import remote

if TYPE_CHECKING:
    from argparse import _SubParsersAction

MEMORY_BYTES: Final = 256 * 2**20
"""With less than that, a driver and two workers with numpy have no room."""
DESCRIPTORS: Final = 256
"""A session takes some three for each worker, and programs have files of their own."""
EXTRAS: Final = (("ray", "ray", (2, 40)), ("dask", "distributed", (2026, 8)))
"""(extra, its package, the oldest version that we ask for in ``pyproject.toml``)."""
_LIBRARIES: Final = {"local": (), "ray": ("ray",), "dask": ("distributed",)}
LARGE_BYTES: Final = 4 * 2**20
ANSWER_S: Final = 60.0
"""How long the first task may take; a cluster may have to start a process for it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        what: it is about.
        text: what was found.
        advice: one sentence that says what to do; empty when there is no problem.
    """

    what: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        mark = "PROBLEM" if self.advice else "ok"
        line = f"{mark:8} {self.what:18} {self.text}"
        return f"{line}\n{'':8} {'':18} -> {self.advice}" if self.advice else line


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make it a command."""
    about = "tell whether taskloom can run here, and on a cluster"
    parser = commands.add_parser("doctor", help=about, description=about)
    parser.add_argument(
        "--address", help="of a cluster to ask, too: ray+gcs://host:6379, dask://host:8786, ..."
    )
    parser.set_defaults(run=lambda options: run(options.address))


def run(address: str | None) -> int:
    """Look at everything and print it; 0 when there is no problem, else 1."""
    problems = 0
    for finding in examine(address):
        print(finding, flush=True)
        problems += bool(finding.advice)
    print("no problem" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return 1 if problems else 0


def examine(address: str | None) -> Iterator[Finding]:
    """All findings, each as soon as it is there."""
    yield from machine()
    yield from extras()
    yield from guarded("session", local_session)
    if address is not None:
        yield from guarded("cluster", lambda: cluster(address))


def guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check that starts a session, which ends with it, however it ends."""
    try:
        yield from check()
    except Exception as error:  # whatever it is, the one who asked is to see it
        text = f"{type(error).__name__}: {error}".strip().splitlines()
        yield Finding(what, text[0], _advice(error))
    finally:
        api.shutdown()


def _advice(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Install what is missing here, and on the machines of the cluster if there is one."
    if isinstance(error, ConnectionError):
        return "Check that the cluster runs, its port, and that no firewall is between."
    if isinstance(error, (ValueError, NotImplementedError)):
        return "Give another address: docs/backends.md lists those that there are."
    if isinstance(error, TimeoutError):
        return "Look whether the cluster has a free CPU, and what its own tools say."
    return "If the text does not name the cause, report it, with this output."


# -- the machine ------------------------------------------------------------------------------


def machine() -> Iterator[Finding]:
    """What this process may use."""
    yield Finding("taskloom", __version__)
    yield Finding(
        "python",
        f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
    )
    yield Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("cores", f"{usable_cpus()} usable, the machine has {os.cpu_count()}")
    yield memory(usable_memory_bytes())
    yield shared_memory()
    yield event_loop()
    yield descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def memory(usable_bytes: int) -> Finding:
    """What is free now, within the limits of the containers."""
    advice = ""
    if usable_bytes < MEMORY_BYTES:
        advice = "Give the container more memory, or end other programs: workers will not fit."
    return Finding("memory", f"{usable_bytes / 2**30:.1f} GiB usable", advice)


def shared_memory() -> Finding:
    """Where large values go."""
    try:
        if hasattr(os, "memfd_create"):
            os.close(os.memfd_create("taskloom-doctor"))
            return Finding("shared memory", "memfd: needs no /dev/shm")
    except OSError as error:
        return Finding(
            "shared memory",
            f"memfd_create fails: {error}",
            "Allow memfd_create in the sandbox (seccomp) that this process runs in.",
        )
    return Finding("shared memory", "files in the temporary directory (no memfd here)")


def event_loop() -> Finding:
    """Which loop the engine runs in."""
    found = installed("uvloop")
    text = f"uvloop {found}" if found else "asyncio's own (uvloop is not installed)"
    return Finding("event loop", text)


def descriptors(limit: int) -> Finding:
    """How many files this process may have open."""
    if limit == resource.RLIM_INFINITY:
        return Finding("file descriptors", "no limit")
    advice = ""
    if limit < DESCRIPTORS:
        advice = "Raise the limit before the program starts: ulimit -n 4096."
    return Finding("file descriptors", f"at most {limit}", advice)


def extras() -> Iterator[Finding]:
    """What is installed beside."""
    for extra, package, oldest in EXTRAS:
        yield library(extra, package, oldest, installed(package))


def library(extra: str, package: str, oldest: tuple[int, int], found: str) -> Finding:
    """The library of one kind of cluster; it may be missing, but not be too old."""
    install = f"pip install 'taskloom[{extra}]'"
    if not found:
        return Finding(f"extra {extra}", f"not installed ({install})")
    numbers = re.findall(r"\d+", found)[:2]
    advice = ""
    if tuple(map(int, numbers)) < oldest:
        advice = f"It is older than {'.'.join(map(str, oldest))}: {install} brings one that fits."
    return Finding(f"extra {extra}", f"{package} {found}", advice)


def installed(package: str) -> str:
    """The version of a package that is installed, or ""; it is not imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# -- sessions ---------------------------------------------------------------------------------


class Block:
    """A large value that says where its bytes are."""

    def __init__(self, content: Any) -> None:
        self.view = memoryview(content)

    def __reduce_ex__(self, _protocol: object) -> tuple[type[Block], tuple[pickle.PickleBuffer]]:
        return Block, (pickle.PickleBuffer(self.view),)


@remote
def make_block() -> Block:
    """A large value, made in a worker."""
    return Block(bytearray(LARGE_BYTES))


@remote
def versions() -> dict[str, str]:
    """What a worker runs."""
    return versions_here()


def versions_here() -> dict[str, str]:
    """The versions that must fit on both sides."""
    return {
        "python": platform.python_version(),
        "taskloom": __version__,
        "ray": installed("ray"),
        "distributed": installed("distributed"),
    }


def local_session() -> Iterator[Finding]:
    """Does the engine start, and does it share memory?"""
    began = perf_counter()
    api.init("local", log_to_driver=True)
    yield Finding("session", f"started in {_ms(began)}")
    began = perf_counter()
    api.get(versions.remote(), timeout=ANSWER_S)
    first = _ms(began)
    began = perf_counter()
    api.get(versions.remote(), timeout=ANSWER_S)
    yield Finding("task", f"the first took {first}, the second {_ms(began)}")
    yield zero_copy()


def zero_copy() -> Finding:
    """Whether a large value from a worker is read where it lies."""
    ref = make_block.remote()
    block = api.get(ref, timeout=ANSWER_S)
    (stored,) = (one for one in api.memory().objects if one.object_id == ref.hex())
    size = f"{len(block.view) / 2**20:.0f} MiB"
    # The store knows who looks into it; nobody would if the driver had got a copy.
    if any("views" in holder for holder in stored.holders):
        return Finding("large values", f"{size} from a worker: zero-copy")
    return Finding(
        "large values",
        f"{size} from a worker: copied",
        "Report it: values that large should be mapped, not copied.",
    )


def cluster(address: str) -> Iterator[Finding]:
    """Does the cluster answer, do the versions of both sides fit, and what does it do?"""
    where = parse_address(address)
    began = perf_counter()
    api.init(address)
    nodes = [node for node in api.nodes() if node["Alive"]]
    yield Finding("cluster", f"{where.text} answered in {_ms(began)}, {len(nodes)} nodes")
    amounts = api.cluster_resources()
    text = ", ".join(f"{name} {amounts[name]:g}" for name in sorted(amounts) if ":" not in name)
    yield Finding("its resources", text)
    began = perf_counter()
    there = api.get(versions.remote(), timeout=ANSWER_S)
    yield Finding("its first task", f"took {_ms(began)}")
    here = versions_here()
    for name in ("python", "taskloom", *_LIBRARIES[where.kind]):
        yield compared(name, here[name], there[name])
    yield from rows(where)


def rows(where: Address) -> Iterator[Finding]:
    """Which behaviours of the matrix hold there."""
    counts: Counter[str] = Counter()
    for verdict in try_all(where):
        counts[verdict.word] += 1
        yield row(verdict)
    text = ", ".join(f"{count} {word}" for word, count in counts.items())
    page = f"docs/backends.md of taskloom {__version__}"
    yield Finding("rows of the matrix", f"{text}; {page} has all of them, as the suite found them")


def row(verdict: Verdict) -> Finding:
    """One of them; what is refused where the docs say so is no problem."""
    subject, _, behaviour = verdict.row.partition(": ")
    text = f"{verdict.word}: {behaviour} ({verdict.text})"
    return Finding(subject, text, _ROW_ADVICE[verdict.word] if verdict.is_problem else "")


_ROW_ADVICE: Final[dict[Word, str]] = {
    "fails": "Look into the logs of the cluster. If they name no cause, report this output.",
    "refused": "The docs do not say that it is refused here: report this output.",
    "not tried": "Look whether the cluster has a free CPU, and what its own tools say.",
}


def compared(name: str, here: str, there: str) -> Finding:
    """One version of both sides."""
    what = f"{name} there"
    if here == there:
        return Finding(what, f"{there}, as here")
    if name == "python" and here.split(".")[:2] == there.split(".")[:2]:
        return Finding(what, f"{there}, here {here}: they fit")
    text = f"{there or 'not installed'}, here {here or 'not installed'}"
    return Finding(what, text, f"Run the same version of {name} on both sides.")


def _ms(began: float) -> str:
    return f"{(perf_counter() - began) * 1000:.0f} ms"
