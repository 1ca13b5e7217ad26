"""Every error a user can meet.

::

    RayError = TaskloomError
    ├── RayTaskError = TaskError            user code raised; get raises RayTaskError(KeyError)
    ├── TaskCancelledError                  cancel()
    ├── TaskTimeoutError                    timeout=; also a TimeoutError
    ├── TaskUnschedulableError              asks for more than there is
    ├── TaskPlacementGroupRemoved
    ├── WorkerCrashedError                  the process died while it ran the task
    ├── WorkerStartupError                  no worker could be started
    ├── NestedDepthError                    too many tasks are blocked in get inside tasks
    ├── DeadlockError                       tasks wait for one another, nothing can proceed
    ├── OutOfMemoryError                    killed to keep the machine alive
    ├── GetTimeoutError                     get(timeout=); also a TimeoutError
    ├── SessionClosedError                  shutdown() came first
    ├── InternalError                       a bug of taskloom
    ├── RayActorError
    │   ├── ActorDiedError                  for good
    │   └── ActorUnavailableError           it is being restarted
    ├── ActorUnschedulableError, ActorPlacementGroupRemoved
    ├── ActorAlreadyExistsError, ActorHandleNotFoundError       also ValueErrors
    ├── PendingCallsLimitExceeded, AsyncioActorExit
    ├── ObjectStoreFullError
    ├── OutOfDiskError
    ├── ObjectLostError
    │   ├── ObjectFreedError, OwnerDiedError, ObjectFetchTimedOutError
    │   ├── ReferenceCountingAssertionError                     also an AssertionError
    │   └── ObjectReconstructionFailedError (and two of the same name with a reason)
    ├── RuntimeEnvSetupError
    ├── UnserializableException, UserCodeException
    ├── ObjectRefStreamEndOfStreamError, StreamingGeneratorReplayInconsistentError
    ├── RaySystemError
    │   ├── RayChannelError ── RayChannelTimeoutError           also a TimeoutError
    │   └── RayCgraphCapacityExceeded
    └── clusters only: NodeDiedError, LocalRayletDiedError, PlasmaObjectNotAvailable, RpcError,
        AuthenticationError, CrossLanguageError, OufOfBandObjectRefSerializationException

    warnings: BlockingGetWarning, RayDeprecationWarning

What a task raises travels as a ``RayTaskError`` that carries the worker's traceback as text.
``get`` raises its :meth:`~RayTaskError.as_instanceof_cause`: an object of a class made for the
purpose, ``RayTaskError(KeyError)``, which is a ``RayTaskError`` *and* a ``KeyError`` and looks
like the cause in every attribute.  All errors can be pickled.
"""

from __future__ import annotations

import types
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from taskloom._exception_parts import Parts, bare, native_state, set_state

INPUT_FAILED = "At least one of the input arguments for this task could not be computed:"
LOCAL_IP = "127.0.0.1"


class RayError(Exception):
    """The root of all errors of taskloom: made with a message, or without for the usual one."""

    default_message: ClassVar[str] = ""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.default_message


TaskloomError = RayError


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
        if cause is None or isinstance(cause, RayTaskError) or is_control_flow(cause):
            return self
        try:
            return _as_dual(self._taskloom_report, cause)
        except Exception:
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


TaskError = RayTaskError


def _unpickle_task_error(report: tuple[Any, ...], cause: object, dual: bool) -> RayTaskError:
    if isinstance(cause, Parts):
        cause = cause.build()
    error = RayTaskError.from_report(TaskReport(*report), cast("BaseException | None", cause))
    return error.as_instanceof_cause() if dual else error


def class_name(cls: type) -> str:
    """``module.Class``, without the module for builtins."""
    module: object = cls.__module__  # a metaclass may say what it likes
    if not isinstance(module, str) or module == "builtins":
        return cls.__qualname__
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
    return not isinstance(error, Exception) or isinstance(error, _CONTROL_FLOW)


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
            namespace.update(_DUAL_METHODS, __module__=__name__, __qualname__=name)
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


# -- tasks and workers ------------------------------------------------------------------------


class TaskCancelledError(RayError):
    """The task, or one that it depends on, was cancelled (no ``asyncio.CancelledError``)."""

    def __init__(self, task_id: object = None, error_message: str = "") -> None:
        given = (task_id, error_message) if error_message else (task_id,)
        super().__init__(*(() if given == (None,) else given))
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        if self.task_id is None:
            text = "This task or its dependency was cancelled"
        else:
            text = f"Task {self.task_id} was cancelled"
        return f"{text}: {self.error_message}" if self.error_message else text


class TaskTimeoutError(RayError, TimeoutError):
    """The task ran longer than its ``timeout=``."""

    default_message = "The task ran longer than its timeout"


class _WithPrefix(RayError):
    """Errors whose text is a fixed sentence and the reason."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(*(() if error_message is None else (error_message,)))
        self.error_message = error_message

    def __str__(self) -> str:
        return f"{self.default_message}{self.error_message or ''}"


class TaskUnschedulableError(_WithPrefix):
    """The task asks for more than there is, or for a node that is not there."""

    default_message = "The task is not schedulable: "


class ActorUnschedulableError(_WithPrefix):
    """The actor asks for more than there is, or for a node that is not there."""

    default_message = "The actor is not schedulable: "


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed."""

    default_message = "The placement group corresponding to this task has been removed."


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor was removed."""

    default_message = "The placement group corresponding to this Actor has been removed."


class WorkerCrashedError(RayError):
    """The worker process died while it ran the task."""

    default_message = "The worker died unexpectedly while executing this task."


class WorkerStartupError(RayError):
    """A worker process could not be started."""

    default_message = "A worker process could not be started."


class NestedDepthError(RayError):
    """Too many tasks are blocked in ``get`` inside tasks: no further worker may be started."""


class DeadlockError(RayError):
    """Tasks wait for one another or for resources that the waiting ones hold."""


class OutOfMemoryError(RayError):
    """The worker was killed because the machine was running out of memory."""

    default_message = "The worker was killed because the machine was running out of memory."


class GetTimeoutError(RayError, TimeoutError):
    """``get(timeout=...)``: not everything was done in time."""

    default_message = "Get timed out: some object(s) not ready."


class SessionClosedError(RayError):
    """The session was shut down before, or while, this was asked for."""

    default_message = "The session has been shut down."


class InternalError(RayError):
    """A bug of taskloom: please report it with its traceback."""

    def __str__(self) -> str:
        return f"{super().__str__()} (this is a bug of taskloom: please report it)"


# -- actors -----------------------------------------------------------------------------------


class RayActorError(RayError):
    """The actor died, or cannot be reached, before it finished the call."""

    default_message = "The actor died unexpectedly before finishing this task."

    def __init__(
        self,
        error_msg: str | None = None,
        *,
        actor_id: str | None = None,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(*(() if error_msg is None else (error_msg,)))
        self.error_msg = error_msg or self.default_message
        self.actor_id = actor_id
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    @property
    def actor_init_failed(self) -> bool:
        """True when it died in its constructor."""
        return self._actor_init_failed

    @property
    def preempted(self) -> bool:
        """True when its node was taken away (clusters only)."""
        return self._preempted

    @classmethod
    def from_task_error(
        cls, task_error: RayTaskError, actor_id: str | None = None
    ) -> RayActorError:
        """The error of all calls to an actor whose constructor raised ``task_error``."""
        return cls(
            f"The actor died because of an error raised in its creation task, {task_error}",
            actor_id=actor_id,
            actor_init_failed=True,
        )


class ActorDiedError(RayActorError):
    """The actor is dead and will not be restarted."""


class ActorUnavailableError(RayActorError):
    """The actor is being restarted; the call may or may not have been executed."""

    default_message = "The actor is unavailable. The task may or may not have been executed on it."


class ActorAlreadyExistsError(ValueError, RayError):
    """Another live actor has the name."""


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle is of an actor that this session does not know."""


class PendingCallsLimitExceeded(RayError):
    """More calls of the actor are pending than ``max_pending_calls`` allows."""


class AsyncioActorExit(RayError):
    """An async actor ends itself (``exit_actor``)."""


# -- objects ----------------------------------------------------------------------------------


class ObjectStoreFullError(RayError):
    """The object does not fit in the store, and nothing in it can be moved out."""

    default_message = "The object store is full of objects that are still in use."


class OutOfDiskError(RayError):
    """The object fits neither in the store nor on the disk."""

    default_message = "The object store is full and there is no room left on the disk."


class ObjectLostError(RayError):
    """The value is gone and cannot be computed again."""

    default_message = "The object is lost."

    def __init__(
        self, error_message: str | None = None, owner_address: object = "", call_site: str = ""
    ) -> None:
        super().__init__(*(() if error_message is None else (error_message,)))
        self.object_ref_hex = ""
        self.owner_address = owner_address
        self.call_site = call_site


class ObjectFetchTimedOutError(ObjectLostError):
    """The value could not be fetched from another node in time."""


class ObjectFreedError(ObjectLostError):
    """The value was freed by the program although a ref to it was left."""

    default_message = "The object was freed."


class OwnerDiedError(ObjectLostError):
    """The process that owned the object is gone."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted while there was a ref to it: a bug."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The task that made the object cannot be run again."""


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectLostError):
    """The task that made the object has used up its retries."""


class ObjectReconstructionFailedLineageEvictedError(ObjectLostError):
    """It is no longer known how the object was made."""


class UnserializableException(RayError):
    """An exception of a task could not be unpickled."""


class ObjectRefStreamEndOfStreamError(RayError):
    """A stream has no more items."""


class StreamingGeneratorReplayInconsistentError(RayError):
    """A generator that was run again yielded something else than the first time."""


# -- surroundings -----------------------------------------------------------------------------


class RuntimeEnvSetupError(_WithPrefix):
    """A ``runtime_env`` could not be set up."""

    default_message = "Failed to set up runtime environment.\n"


class RaySystemError(RayError):
    """The engine cannot do what is asked for in its present state."""

    def __init__(self, client_exc: object = "", traceback_str: str | None = None) -> None:
        super().__init__(client_exc, traceback_str)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = f"System error: {self.client_exc}"
        return f"{text}\ntraceback: {self.traceback_str}" if self.traceback_str else text


class RayChannelError(RaySystemError):
    """A channel of a compiled graph failed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel of a compiled graph was not ready in time."""


class RayCgraphCapacityExceeded(RaySystemError):
    """A compiled graph has too many executions in flight."""


class UserCodeException(RayError):
    """User code that the engine called for its own purposes raised."""


class CrossLanguageError(RayError):
    """An error of another language (clusters only)."""


class NodeDiedError(RayError):
    """A node is dead (clusters only)."""


class LocalRayletDiedError(RayError):
    """The daemon of this node died (clusters only)."""

    default_message = "The task's local raylet died."


class PlasmaObjectNotAvailable(RayError):
    """An object was not in the store in time (clusters only)."""


class RpcError(RayError):
    """A remote procedure call failed (clusters only)."""

    def __init__(self, message: str = "", rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code


class AuthenticationError(RayError):
    """The cluster refused the credentials (clusters only)."""


class OufOfBandObjectRefSerializationException(RayError):
    """A ref was pickled where that is forbidden (the name is Ray's)."""


# -- warnings ---------------------------------------------------------------------------------


class BlockingGetWarning(UserWarning):
    """``get`` or ``wait`` blocks a running event loop: use ``await``."""


class RayDeprecationWarning(DeprecationWarning):
    """Something of Ray's API that Ray has deprecated."""


def _family(root: type[RayError]) -> list[type[RayError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == __name__]
    return [root, *(error for child in children for error in _family(child))]


RAY_EXCEPTION_TYPES = [error for error in _family(RayError) if error is not _WithPrefix]
