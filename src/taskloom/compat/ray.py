"""taskloom under the name ``ray``, for programs that say ``import ray``.

Either run a script unchanged::

    python -m taskloom.compat.ray script.py arguments...

or say ``taskloom.compat.ray.install()`` before the first ``import ray``.  Then ``ray`` and what
is below it are taskloom and its modules, the same objects, in the workers too.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

import taskloom
from taskloom import _current

_SETUP: Final = "taskloom.compat.ray:install"
_ELSEWHERE: Final = {"ray.cloudpickle": "cloudpickle"}  # Ray carries a copy of it
_RAN_AS: Final = "python -m taskloom.compat.ray"


def install() -> None:
    """Let ``import ray`` give taskloom, here and in the workers of sessions to come.

    Does nothing the second time.

    Raises:
        RuntimeError: the real Ray is imported already, or a session runs already.
    """
    present = sys.modules.get("ray")
    if present is taskloom:
        return
    if present is not None:
        raise RuntimeError(
            f"the real ray ({getattr(present, '__file__', None)}) is imported already: "
            "install() must come first"
        )
    backend = _current.peek()
    if backend is not None and not backend.is_worker:
        raise RuntimeError("a session runs already, without the name ray: install() comes first")
    sys.modules["ray"] = taskloom
    # First in the line: taskloom has a __path__, where the others would find each module a
    # second time, as a copy with classes of its own.
    sys.meta_path.insert(0, _Finder())
    _current.worker_setup.append(_SETUP)


class _Finder(MetaPathFinder):
    """Finds ``ray.x`` where ``taskloom.x`` is."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not fullname.startswith("ray."):
            return None
        ours = _ELSEWHERE.get(fullname, f"taskloom.{fullname.removeprefix('ray.')}")
        private = any(part.startswith("_") for part in fullname.split("."))
        if private or importlib.util.find_spec(ours) is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: ray is taskloom here, which has none of that name",
                name=fullname,
            )
        return ModuleSpec(fullname, _Loader(ours))


class _Loader(Loader):
    """Loads a module that has another name, once for both names."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands in sys.modules after this.
        sys.modules[module.__name__] = import_module(self._ours)


# -- python -m taskloom.compat.ray script.py -------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run a script as ``python script.py arguments...`` does, with ``ray`` being taskloom.

    Args:
        arguments: the script's path and its arguments.

    Returns:
        The exit code of a script that did not call ``sys.exit``.
    """
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: {_RAN_AS} script.py [arguments...]", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    install()
    script = arguments[0]
    sys.argv[:] = arguments
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"{_RAN_AS}: can't open file {script!r}: {error}", file=sys.stderr)
        return 2
    return run_as_main(source, script)


def run_as_main(source: bytes, path: str) -> int:
    """Run a program as the module ``__main__``, and leave it there.

    Not with ``runpy``, which takes ``__main__`` away at the end: exit handlers and threads of
    the program still want it.  An error is reported as Python does, without our own frames.

    Args:
        source: its text.
        path: where the text is from.

    Returns:
        0, or what Python returns when an error ends a program.
    """
    module = ModuleType("__main__")
    module.__file__ = path
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        ours = error.__traceback__
        error.__traceback__ = ours.tb_next if ours is not None else None
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    # This file runs as __main__ now, the module under its own name is the one to install.
    sys.exit(import_module("taskloom.compat.ray").main(sys.argv[1:]))
