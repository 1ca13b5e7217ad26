"""Which member of a value could not be unpickled, and the error that says so.

Only asked after unpickling has failed.  The pickle is read a second time, by the unpickler that
is written in Python, to learn at which instruction it fails.  Then its instructions are walked
through without carrying out any of them: that shows what would have been built by each, and
where in the value it would have gone.  Bounded in size and in time.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from taskloom._task_error import is_control_flow
from taskloom._wire.careful import Patience, line_of, repr_of
from taskloom._wire.unpicklable import attribute_step
from taskloom.exceptions import RayError, RaySystemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_BYTES: Final = 256 * 1024
_MAX_TIME_S: Final = 0.5


class Misbehaved(BaseException):
    """A value could not be pickled or unpickled on behalf of a task; its cause is the error.

    Never leaves a worker: ``capture`` takes the cause, and a task is not retried for it.

    Args:
        where: one sentence for the error's text, such as "args[0] could not be unpickled".
    """

    def __init__(self, where: str = "") -> None:
        self.where = where


def blame(error: BaseException, find_path: Callable[[], str], whose: str) -> BaseException:
    """What to raise for ``error``, which unpickling ``whose`` value has raised.

    It is the same error with a note; but one that would stop, cancel or end the program that
    asks (``SystemExit``, ``StopIteration`` and their like) becomes a RaySystemError.
    """
    if type(error) is KeyboardInterrupt or issubclass(type(error), RayError):
        return error  # Ctrl-C, most probably; or the engine's own
    text = f"{whose} could not be unpickled here"
    if path := find_path():
        text = f"{text}: it fails at value{path}"
    if is_control_flow(error):
        stopped = RaySystemError(f"{text} ({line_of(error)})")
        stopped.__cause__ = error
        return stopped
    try:
        notes = getattr(error, "__notes__", ())
        if text not in notes:
            error.add_note(text)
    except BaseException:
        pass  # it does not take notes: then it goes as it is
    return error


def path_to_unreadable(data: Any, buffers: Sequence[Any] = ()) -> str:
    """The steps from a pickled value to the member that does not unpickle; never raises.

    Returns:
        Such as ``[0].conn._lock``; empty for the value itself, and when it cannot be told.
    """
    try:
        if memoryview(data).nbytes > _MAX_BYTES:
            return ""
        number = _failing_instruction(data, buffers)
        return "" if number is None else _path_at(bytes(data), number)
    except KeyboardInterrupt:
        raise  # Ctrl-C: this takes a while
    except BaseException:
        return ""  # a pickle of another kind than we know: the error stands without a path


# -- at which instruction ----------------------------------------------------------------------


class _TookTooLong(BaseException):
    pass


class _Counting(dict[int, Any]):
    """The unpickler's table of instructions; counts how many were looked up."""

    count = 0
    patience: Patience

    def __getitem__(self, opcode: int) -> Any:
        self.count += 1
        if self.patience.is_over():
            raise _TookTooLong
        return super().__getitem__(opcode)


def _failing_instruction(data: Any, buffers: Sequence[Any]) -> int | None:
    """The number, from 0, of the instruction that raises; None when none does this time."""
    unpickler: Any = pickle._Unpickler(io.BytesIO(data), buffers=buffers)
    unpickler.dispatch = table = _Counting(unpickler.dispatch)
    table.patience = Patience(_MAX_TIME_S)
    try:
        unpickler.load()
    except _TookTooLong:
        return None
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise
        return table.count - 1
    return None


# -- what it would have built ------------------------------------------------------------------

_STATE: Final = "<state>"
_INSIDE: Final = "<inside>"  # what an object is made from: its class, a function's arguments
_AFTERWARDS: Final = "<afterwards>"  # what a function of its own fills it with


class _Part:
    """What one instruction would have left on the stack, and where in the value it goes."""

    __slots__ = ("constant", "homes", "length")

    def __init__(self, constant: object = None) -> None:
        self.constant = constant  # of a str or a number: it may be a key
        self.homes: list[tuple[_Part, str, object]] = []  # in what, by which step, under which key
        self.length = 0  # of a list: how many items it has so far

    def put_into(self, home: _Part, step: str, key: object = None) -> None:
        self.homes.append((home, step, key))


class _Walk:
    """The unpickler's stack machine, with parts in place of values."""

    def __init__(self) -> None:
        self.stack: list[_Part] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Part] = {}

    def take(self, op: Any, arg: Any) -> _Part | None:
        """Walk over one instruction; the part that it makes or changes."""
        name, stack = op.name, self.stack
        if name == "MARK":
            self._marks.append(len(stack))
            return None
        if name == "POP":
            gone = stack.pop()
            if stack:
                gone.put_into(stack[-1], _AFTERWARDS)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[arg])
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._pop(1 if name == "APPEND" else None)
            _add_items(stack[-1], items, sets=name == "ADDITEMS")
        elif name in ("SETITEM", "SETITEMS"):
            pairs = self._pop(2 if name == "SETITEM" else None)
            _add_pairs(stack[-1], pairs)
        elif name == "BUILD":
            self._pop(1)[0].put_into(stack[-1], _STATE)
        elif op.stack_after:
            stack.append(self._made(op, arg))
        return stack[-1] if stack else None

    def _made(self, op: Any, arg: Any) -> _Part:
        """The one part that all other kinds of instructions leave, from those they take."""
        marked = any(kind.name == "mark" for kind in op.stack_before)
        parts = self._pop(None if marked else len(op.stack_before))
        made = _Part(arg)
        if op.name.startswith("TUPLE"):
            _add_items(made, parts, sets=False)
        elif op.name == "FROZENSET":
            _add_items(made, parts, sets=True)
        else:
            for part in parts:
                part.put_into(made, _INSIDE)
        return made

    def _pop(self, count: int | None) -> list[_Part]:
        """The last ``count`` parts; None: all since the last mark."""
        start = self._marks.pop() if count is None else len(self.stack) - count
        parts = self.stack[start:]
        del self.stack[start:]
        return parts


def _add_items(home: _Part, items: list[_Part], *, sets: bool) -> None:
    for item in items:
        item.put_into(home, ".<member>" if sets else f"[{home.length}]")
        home.length += 1


def _add_pairs(home: _Part, parts: list[_Part]) -> None:
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        shown = repr_of(key.constant, 60) if key.constant is not None else "<key>"
        key.put_into(home, f".<key {shown}>")
        value.put_into(home, f"[{shown}]", key.constant)


def _path_at(data: bytes, number: int) -> str:
    """The path of what instruction ``number`` makes or changes."""
    pickletools = import_module("pickletools")  # who is here has an error to explain
    walk = _Walk()
    culprit: _Part | None = None
    root: _Part | None = None
    for count, (op, arg, _) in enumerate(pickletools.genops(data)):
        if op.name == "STOP":
            root = walk.stack[-1]
            break
        part = walk.take(op, arg)
        if count == number:
            culprit = part
    if culprit is None or root is None:
        return ""
    return _spell(_way_home(culprit, root))


def _way_home(part: _Part, root: _Part) -> list[tuple[str, object]]:
    """The steps from the root to a part: the shortest way, as a part may be in many places."""
    came_from: dict[int, tuple[_Part | None, str, object]] = {id(part): (None, "", None)}
    queue = deque([part])
    while queue:
        here = queue.popleft()
        if here is root:
            break
        for home, step, key in here.homes:
            if id(home) not in came_from:
                came_from[id(home)] = (here, step, key)
                queue.append(home)
    steps = []
    inner, step, key = came_from.get(id(root), (None, "", None))
    while inner is not None:
        steps.append((step, key))
        inner, step, key = came_from[id(inner)]
    return steps


def _spell(steps: list[tuple[str, object]]) -> str:
    """The steps as a user would write them: an item of an object's state is an attribute."""
    path = ""
    in_state = inside = False
    for step, key in steps:
        if step == _AFTERWARDS:
            break  # how a class or function of ``__main__`` is put together: nobody's member
        if step == _STATE:
            in_state = True
        elif step == _INSIDE:
            inside = True
        elif in_state and isinstance(key, str):
            path += attribute_step(key)
            in_state = inside = False
        elif not in_state:
            path += f".<args>{step}" if inside else step
            inside = False
    return path
