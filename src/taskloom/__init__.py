"""taskloom: an asyncio-native task engine for Python with Ray's API.

::

    import taskloom as tl

    @tl.remote
    def square(x: int) -> int:
        return x * x

    total = sum(tl.get([square.remote(i) for i in range(10)]))

Everything is loaded when it is first used, so that ``import taskloom`` costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module

from taskloom import _current
from taskloom._version import __commit__ as __commit__
from taskloom._version import __version__ as __version__

TYPE_CHECKING = False  # what checkers take for true; typing itself would be most of the cost
if TYPE_CHECKING:
    from taskloom import actor as actor
    from taskloom import exceptions as exceptions
    from taskloom import util as util
    from taskloom.actor import get_actor, kill, method
    from taskloom.api import (
        available_resources,
        cancel,
        cluster_resources,
        get,
        init,
        is_initialized,
        memory,
        nodes,
        put,
        shutdown,
        wait,
    )
    from taskloom.executor import Executor
    from taskloom.generator import DynamicObjectRefGenerator, ObjectRefGenerator
    from taskloom.groups import as_completed, map, wait_async
    from taskloom.ref import ObjectRef
    from taskloom.ref import ObjectRef as ObjectID
    from taskloom.remote_function import RemoteFunction, remote
    from taskloom.runtime_context import get_gpu_ids, get_runtime_context
    from taskloom.task_group import TaskGroup

__all__ = [
    "LOCAL_MODE",
    "SCRIPT_MODE",
    "WORKER_MODE",
    "DynamicObjectRefGenerator",
    "Executor",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "RemoteFunction",
    "TaskGroup",
    "__commit__",
    "__version__",
    "actor",
    "as_completed",
    "available_resources",
    "cancel",
    "cluster_resources",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "map",
    "memory",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "util",
    "wait",
    "wait_async",
]

SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2

_HOMES = {
    "actor": ("get_actor", "kill", "method"),
    "api": (
        "available_resources",
        "cancel",
        "cluster_resources",
        "get",
        "init",
        "is_initialized",
        "memory",
        "nodes",
        "put",
        "shutdown",
        "wait",
    ),
    "executor": ("Executor",),
    "generator": ("DynamicObjectRefGenerator", "ObjectRefGenerator"),
    "groups": ("as_completed", "map", "wait_async"),
    "ref": ("ObjectRef",),
    "remote_function": ("RemoteFunction", "remote"),
    "runtime_context": ("get_gpu_ids", "get_runtime_context"),
    "task_group": ("TaskGroup",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_HOME_OF["ObjectID"] = "ref"
_MODULES = frozenset({"actor", "exceptions", "remote_function", "runtime_context", "util"})

# Names of Ray that programs may look for, and why they find nothing.
_ABSENT = {
    "dag": "lazily bound graphs are not there yet",
    "timeline": "the timeline is not there yet",
    **dict.fromkeys(
        ("data", "llm", "rllib", "serve", "train", "tune", "workflow"),
        "taskloom is Ray Core only",
    ),
    **dict.fromkeys(
        ("client", "ClientBuilder", "cluster_utils", "job_submission", "autoscaler"),
        "it is for clusters",
    ),
    **dict.fromkeys(
        ("cross_language", "java_function", "cpp_function", "Language"),
        "taskloom speaks Python only",
    ),
}


if not TYPE_CHECKING:  # checkers see the imports above, and report all other names

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is not None:
            value = getattr(
                import_module(f"taskloom.{home}"), "ObjectRef" if name == "ObjectID" else name
            )
        elif name in _MODULES:
            value = import_module(f"taskloom.{name}")
        else:
            why = f": {_ABSENT[name]}" if name in _ABSENT else ""
            raise AttributeError(f"module 'taskloom' has no attribute {name!r}{why}")
        globals()[name] = value  # the next one who asks does not come here
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _start_session() -> None:
    if sys.meta_path is None:  # Python's last moments: nothing can be imported any more
        raise RuntimeError("taskloom is shut down: the interpreter is ending")
    import_module("taskloom.api").auto_init()


_current.set_auto_init(_start_session)
