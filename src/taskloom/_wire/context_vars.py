"""Context variables between processes.

They have no pickle of their own.  One that a module holds is found there again; one of
``__main__`` (or a local one) becomes a new variable of that name, the same for each mention.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from typing import Any, Final

from taskloom._wire.careful import line_of

_MISSING: Final = "taskloom: no default"
_NOT_CARRIED: Final = frozenset(
    {"asyncio", "anyio", "sniffio", "trio", "uvloop", "cloudpickle", "taskloom"}
)
"""Packages whose variables say where the *caller* runs: they would be lies in a worker."""

_IMMUTABLE: Final = frozenset({str, int, bytes, bool, type(None)})

_homes: dict[ContextVar[Any], tuple[str, str] | None] = {}
_tokens: dict[ContextVar[Any], str] = {}
_by_token: dict[str, ContextVar[Any]] = {}

Dumps = Callable[[object], bytes]
Loads = Callable[[bytes], Any]


def reduce_context_var(var: ContextVar[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """How a pickler writes a context variable."""
    home = _home_of(var)
    if home is not None:
        return _var_of_module, home
    token = _tokens.get(var)
    if token is None:
        token = _tokens[var] = f"{var.name}-{os.getpid()}-{id(var)}"
        _by_token[token] = var
    try:
        default = Context().run(var.get)
    except LookupError:
        default = _MISSING
    return _var_of_token, (token, var.name, default)


def _home_of(var: ContextVar[Any]) -> tuple[str, str] | None:
    """Module and attribute that hold a variable; None: no module does."""
    if var not in _homes:
        _homes[var] = next(
            (
                (module_name, attribute)
                for module_name, module in list(sys.modules.items())
                if module_name != "__main__"
                for attribute, value in list(getattr(module, "__dict__", {}).items())
                if value is var
            ),
            None,
        )
    return _homes[var]


def _var_of_module(module: str, name: str) -> ContextVar[Any]:
    var: ContextVar[Any] = getattr(import_module(module), name)
    return var


def _var_of_token(token: str, name: str, default: Any) -> ContextVar[Any]:
    var = _by_token.get(token)
    if var is None:
        missing = isinstance(default, str) and default == _MISSING
        var = ContextVar(name) if missing else ContextVar(name, default=default)
        _by_token[token] = var
        _tokens[var] = token
    return var


class ContextPacker:
    """Packs the caller's context, and knows when it is the one it packed last."""

    def __init__(self, dumps: Dumps, loads: Loads) -> None:
        self._dumps = dumps
        self._loads = loads
        self._last: tuple[list[object], bytes | None] = ([], None)
        self._left_out: dict[ContextVar[Any], Any] = {}  # with the value that could not travel
        self._never_carried: set[ContextVar[Any]] = set()
        self._warned: set[str] = set()

    def pack(self) -> bytes | None:
        """The variables that are set here and can travel; None when there are none."""
        context = copy_context()
        if not context:
            return None
        print_ = self._fingerprint(context)
        known, blob = self._last
        if print_ != known:
            blob = self._pack(context)
            self._last = (self._fingerprint(context), blob)
        return blob

    def _fingerprint(self, context: Context) -> list[object]:
        """Equal for contexts that pack to the same bytes; cheap, as it is made for each call."""
        prints: list[object] = []
        for var, value in context.items():
            if var in self._never_carried:
                continue
            kind = type(value)
            prints.append(var)
            if kind in _IMMUTABLE:
                prints += (kind, value)
            elif self._left_out.get(var, _MISSING) is not value:
                try:
                    prints.append(pickle.dumps(value, 5))  # it may have been changed in place
                except KeyboardInterrupt:
                    raise  # Ctrl-C
                except BaseException:
                    prints.append(object())  # equal to nothing: pack anew
        return prints

    def _pack(self, context: Context) -> bytes | None:
        pairs: list[bytes] = []
        for var, value in context.items():
            home = _home_of(var)
            if home is not None and home[0].partition(".")[0] in _NOT_CARRIED:
                self._never_carried.add(var)
                continue
            try:
                pair = self._dumps((var, value))
                self._loads(pair)
            except KeyboardInterrupt:
                raise  # Ctrl-C
            except BaseException as error:  # a stranger's value: the call goes on without it
                self._left_out[var] = value
                self._warn(var.name, error)
            else:
                pairs.append(pair)
        return pickle.dumps(pairs, 5) if pairs else None

    def _warn(self, name: str, error: BaseException) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"the context variable {name!r} is not carried into tasks: its value cannot be "
                f"pickled ({line_of(error)})",
                RuntimeWarning,
                stacklevel=5,
            )


def unpack_context(blob: bytes, loads: Loads) -> Context:
    """A context in which the variables of :meth:`ContextPacker.pack` are set.

    One whose value cannot be unpickled here (its module is missing, say) is left out, with a
    line on stderr: it is no concern of a task that does not look at it.
    """
    context = Context()
    for pair in pickle.loads(blob):
        try:
            var, value = loads(pair)
        except KeyboardInterrupt:
            raise  # the task was cancelled
        except BaseException as error:
            sys.stderr.write(
                "taskloom: a context variable is not carried into the task: its value cannot be "
                f"unpickled here ({line_of(error)})\n"
            )
        else:
            context.run(var.set, value)
    return context
