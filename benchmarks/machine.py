"""Where and with what a run was made: a number without this is worth nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("uvloop", "cloudpickle", "anyio", "numpy")


def describe(root: Path) -> dict[str, str]:
    """The machine, the interpreter, and the libraries that matter, as printable facts."""
    facts = {
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "commit": _commit(root),
    }
    for name in _LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def load() -> str:
    """How busy the machine is: a benchmark beside other work measures that work too."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _commit(root: Path) -> str:
    git = ("git", "-C", str(root))
    try:
        commit = subprocess.check_output(
            (*git, "rev-parse", "--short", "HEAD"), stderr=subprocess.DEVNULL, text=True
        ).strip()
        status = subprocess.check_output(
            (*git, "status", "--porcelain"), stderr=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if status else commit
