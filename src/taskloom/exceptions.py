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

from taskloom._task_error import RayError as RayError  # noqa: PLC0414  # public here
from taskloom._task_error import RayTaskError as RayTaskError  # noqa: PLC0414  # public here

TaskloomError = RayError
TaskError = RayTaskError


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
    """The task ran longer than its ``timeout=``.

    Attributes:
        task_name: which task; "" when it is not known.
        timeout_s: how many seconds it had.
        attempt: which attempt it was, from 1.
    """

    default_message = "The task ran longer than its timeout"
    task_name = ""
    timeout_s: float | None = None
    attempt = 0

    @classmethod
    def of(cls, task_name: str, timeout_s: float, attempt: int) -> TaskTimeoutError:
        """The error of one attempt."""
        error = cls(
            f"The task {task_name} ran longer than its timeout of {timeout_s:g} s "
            f"(attempt {attempt})"
        )
        error.task_name, error.timeout_s, error.attempt = task_name, timeout_s, attempt
        return error


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
