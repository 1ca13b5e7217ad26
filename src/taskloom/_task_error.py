"""The root of all errors, and the error that carries what user code raised.

They are public as ``taskloom.exceptions.RayError`` and ``RayTaskError``, and say so when they are
pickled or printed.  What a task raised is a :class:`RayTaskError` with the worker's traceback as
text; what ``get`` raises is of a class made for the purpose that has the user's class as a base
as well.
"""

from __future__ import annotations

import types
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from taskloom._exception_parts import Parts, bare, native_state, set_state

_PUBLIC_MODULE = "taskloom.exceptions"
INPUT_FAILED = "At least one of the input arguments for this task could not be computed:"
LOCAL_IP = "127.0.0.1"


class RayError(Exception):
    """The root of all errors of taskloom: made with a message, or without for the usual one."""

    __module__ = _PUBLIC_MODULE

    default_message: ClassVar[str] = ""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.default_message


# -- what user code raised --------------------------------------------------------------------


class TaskReport(NamedTuple):
    """What is known of the call that failed; one for all errors made of it."""

    function_name: str
    traceback_str: str
    proctitle: str
    pid: int | None
    ip: str
    actor_repr: str | None
    cause_class: str
    inherited: bool = False
    rebuilt: bool = False  # the cause cannot pass through its own __init__ or __reduce__


class _Reported:
    """An attribute read from the report.

    Not a data descriptor, so that an attribute of the same name that the user's own exception
    has (``pid``, say) wins in the dual error.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, error: RayTaskError | None, owner: type) -> Any:
        return self if error is None else getattr(error._taskloom_report, self._name)


class RayTaskError(RayError):
    """A task raised an exception.

    Attributes:
        cause: the exception; None when nothing of it but text could travel.
        cause_class: the name of its class, ``"module.Class"``.
        function_name: the remote function.
        traceback_str: the traceback in the worker, as text.
        pid, ip, proctitle: where it ran.
    """

    __module__ = _PUBLIC_MODULE
    travels_whole: ClassVar = True  # it pickles itself: see ``_exception_parts``

    if TYPE_CHECKING:
        function_name: str
        traceback_str: str
        proctitle: str
        pid: int | None
        ip: str
        actor_repr: str | None
        cause_class: str
    else:
        function_name = _Reported()
        traceback_str = _Reported()
        proctitle = _Reported()
        pid = _Reported()
        ip = _Reported()
        actor_repr = _Reported()
        cause_class = _Reported()

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException | None,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
    ) -> None:
        report = TaskReport(
            function_name,
            traceback_str,
            proctitle or f"taskloom::{function_name}()",
            pid,
            ip or LOCAL_IP,
            actor_repr,
            class_name(type(cause)) if cause is not None else "",
        )
        self._settle(report, cause)

    def _settle(self, report: TaskReport, cause: BaseException | None) -> None:
        # Straight into the dict: the cause's class may forbid or redefine setting attributes.
        own = self.__dict__
        own["_taskloom_report"] = report
        own["_taskloom_cause"] = cause
        notes = getattr(cause, "__notes__", None)
        if isinstance(notes, list):
            own["__notes__"] = list(notes)
        if type(self) is RayTaskError:
            self.args = (*report[:2], cause, *report[2:5])

    @classmethod
    def from_report(cls, report: TaskReport, cause: BaseException | None) -> RayTaskError:
        """The error for ``cause``, not yet an instance of the cause's class."""
        error = RayTaskError.__new__(RayTaskError)
        error._settle(report, cause)
        return error

    @property
    def cause(self) -> BaseException | None:
        return cast("BaseException | None", self.__dict__.get("_taskloom_cause"))

    @property
    def _taskloom_report(self) -> TaskReport:
        return cast("TaskReport", self.__dict__["_taskloom_report"])

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as an instance of the cause's class too, or itself where that cannot be.

        It cannot be when the class refuses to be subclassed, or when raising such an error
        would mean something else to the program that gets it: ``SystemExit``,
        ``KeyboardInterrupt``, ``StopIteration``, ``CancelledError`` and their like.
        """
        cause = self.cause
        if cause is None or issubclass(type(cause), RayTaskError) or is_control_flow(cause):
            return self
        try:
            return _as_dual(self._taskloom_report, cause)
        except KeyboardInterrupt:
            raise  # Ctrl-C
        except BaseException:
            return self  # the class of the cause forbids it: its name is in the text

    def __str__(self) -> str:
        report = self._taskloom_report
        where = f"{report.proctitle} (pid={report.pid}, ip={report.ip}"
        where += f", repr={report.actor_repr})" if report.actor_repr else ")"
        text = report.traceback_str.strip("\n").removeprefix("Traceback (most recent call last):\n")
        lines = [where, text]
        if report.inherited:
            lines.insert(0, INPUT_FAILED)
        return "\n".join(lines)

    def __repr__(self) -> str:
        try:
            cause = repr(self.cause)
        except Exception:
            cause = f"<{self._taskloom_report.cause_class}>"
        return f"{type(self).__name__}({cause})"

    # Both are defined so that neither of the cause's class is used.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __reduce__(self) -> tuple[Any, ...]:
        cause: object = self.cause
        if cause is not None and self._taskloom_report.rebuilt:
            cause = Parts.of(cast("BaseException", cause))
        return _unpickle_task_error, (
            tuple(self._taskloom_report),
            cause,
            type(self) is not RayTaskError,
        )


def _unpickle_task_error(report: tuple[Any, ...], cause: object, dual: bool) -> RayTaskError:
    if isinstance(cause, Parts):
        cause = cause.build()
    error = RayTaskError.from_report(TaskReport(*report), cast("BaseException | None", cause))
    return error.as_instanceof_cause() if dual else error


def class_name(cls: type) -> str:
    """``module.Class``, without the module for builtins."""
    module: object = cls.__module__  # a metaclass may say what it likes
    if not isinstance(module, str) or module == "builtins":
        return f"{cls.__qualname__}"
    return f"{module}.{cls.__qualname__}"


_CONTROL_FLOW = (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
)


def is_control_flow(error: BaseException) -> bool:
    """True for what would stop, cancel or end something in the program that gets it."""
    # Not isinstance: it asks the error's own __class__, which may say anything.
    return not issubclass(type(error), Exception) or issubclass(type(error), _CONTROL_FLOW)


# -- the class that is both a RayTaskError and the cause's ------------------------------------

# Weak on both sides: the dual class holds the cause's class as its base, and classes that arrive
# by value come and go.
_duals: weakref.WeakKeyDictionary[type, weakref.ref[type[RayTaskError]]]
_duals = weakref.WeakKeyDictionary()


def _dual_class(cause_class: type[BaseException]) -> type[RayTaskError]:
    known = _duals.get(cause_class)
    if known is None or (dual := known()) is None:
        name = f"RayTaskError({cause_class.__name__})"

        def fill(namespace: dict[str, Any]) -> None:
            namespace.update(_DUAL_METHODS, __module__=_PUBLIC_MODULE, __qualname__=name)
            for reported in TaskReport._fields:
                for base in cause_class.__mro__:
                    if reported in vars(base):  # the user's own property or slot wins
                        namespace[reported] = vars(base)[reported]
                        break

        bases = (RayTaskError, cause_class)
        dual = cast("type[RayTaskError]", types.new_class(name, bases, {}, fill))
        _duals[cause_class] = weakref.ref(dual)
    return dual


def _as_dual(report: TaskReport, cause: BaseException) -> RayTaskError:
    new_args: tuple[Any, ...] = ()
    if isinstance(cause, BaseExceptionGroup):
        new_args = (cause.message, cause.exceptions)  # they cannot be set later
    dual = bare(_dual_class(type(cause)), new_args, cause.args)
    set_state(dual, native_state(cause), cause.__dict__)
    dual._settle(report, cause)
    return cast("RayTaskError", dual)


def _dual_getattr(self: RayTaskError, name: str) -> Any:
    cause = self.__dict__.get("_taskloom_cause")
    if cause is None or (name.startswith("__") and name.endswith("__")):
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    return getattr(cause, name)


def _dual_derive(self: RayTaskError, excs: Any) -> Any:
    # Only asked of groups, by split and except*: the parts are groups of the user's own class.
    return cast("BaseExceptionGroup[Any]", self.cause).derive(excs)


_DUAL_METHODS = {
    "__getattr__": _dual_getattr,
    "__setattr__": object.__setattr__,  # the cause may be a frozen dataclass
    "__delattr__": object.__delattr__,
    "derive": _dual_derive,
}
