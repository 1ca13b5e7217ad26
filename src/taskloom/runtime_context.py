"""``get_runtime_context()``: where the calling code runs, and on whose behalf."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskloom import _current, _ids, _waiting
from taskloom._actor_handle import weak_handle
from taskloom._options import from_units

if TYPE_CHECKING:
    from taskloom.backends.base import Backend, ExecutionContext

_NOT_INITIALISED = "taskloom is not initialised: call taskloom.init() first"


class RuntimeContext:
    """Facts about the caller: the session, and the task if there is one.

    All of it is looked up when asked for, so that one object serves all threads, tasks and
    sessions of a process.
    """

    # -- the session --------------------------------------------------------------------------

    def _backend(self) -> Backend:
        backend = _current.peek()
        if backend is None:
            raise RuntimeError(_NOT_INITIALISED)
        return backend

    def get_job_id(self) -> str:
        """The id of the program.

        Raises:
            RuntimeError: there is no session.
        """
        return self._backend().job_id

    def get_node_id(self) -> str:
        """The id of the machine.

        Raises:
            RuntimeError: there is no session.
        """
        return self._backend().node_id

    def get_worker_id(self) -> str:
        """The id of the process.

        Raises:
            RuntimeError: there is no session.
        """
        return self._backend().worker_id

    def get_session_name(self) -> str:
        """The name of the session, new for each ``init``.

        Raises:
            RuntimeError: there is no session.
        """
        return f"session_{self._backend().session_id.hex()}"

    @property
    def namespace(self) -> str:
        """Where named actors are found."""
        return self._backend().namespace

    @property
    def gcs_address(self) -> str:
        """Ray's; empty, because there is no such server."""
        return ""

    def get_node_labels(self) -> dict[str, str]:
        """The labels of the machine; it has none."""
        return {}

    def get_temp_dir(self) -> str:
        """A directory for temporary files."""
        directory: str = import_module("tempfile").gettempdir()  # costly to load, seldom asked
        return directory

    # -- the task -----------------------------------------------------------------------------

    def _task(self) -> ExecutionContext:
        return self._backend().context()

    def get_task_id(self) -> str | None:
        """The id of the running task, as 48 hex digits; None in the driver."""
        backend = self._backend()
        key = backend.context().task_key
        return None if key is None else _ids.task_bytes(backend.session_id, key).hex()

    def get_task_name(self) -> str | None:
        """The name of the running task: its ``name=`` or its function's; None in the driver."""
        return self._task().task_name

    def get_task_function_name(self) -> str | None:
        """The function of the running task; None in the driver."""
        return self._task().function_name

    def get_actor_id(self) -> str | None:
        """The id of the running actor, as 32 hex digits; None outside of actors."""
        backend = self._backend()
        key = backend.context().actor_key
        return None if key is None else _ids.actor_bytes(backend.session_id, key).hex()

    def get_actor_name(self) -> str | None:
        """The name of the running actor, "" when it has none; None outside of actors."""
        spec = self._task().actor_spec
        return None if spec is None else spec.name

    def get_placement_group_id(self) -> str | None:
        """The placement group of the caller; None when it runs in none."""
        return None

    @property
    def current_actor(self) -> Any:
        """A handle of the running actor, which does not keep it alive.

        Raises:
            RuntimeError: the caller is not an actor.
        """
        backend = self._backend()
        here = backend.context()
        if here.actor_key is None or here.actor_spec is None:
            raise RuntimeError("This method is only available in an actor.")
        return weak_handle(here.actor_key, backend.session_id, here.actor_spec.manifest)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the running actor was restarted; False outside of actors."""
        return self._task().actor_restarted

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether tasks submitted here run in the caller's placement group."""
        return False

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task asked for, by name; ``{"CPU": 1.0}`` when nothing was said.

        Raises:
            AssertionError: the caller is not a task.
        """
        task = self._task()
        if task.task_key is None:
            raise AssertionError("get_assigned_resources() is only available in a task")
        return {name: from_units(units) for name, units in task.resources}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The ids of the accelerators that the running task may use, by kind."""
        found: dict[str, list[str]] = {"GPU": []}
        found.update((name, list(ids)) for name, ids in self._task().accelerator_ids)
        return found

    def is_canceled(self) -> bool:
        """True when the cancellation of the running task was asked for.

        Raises:
            RuntimeError: the caller is not a task, or it is a coroutine of an async actor, which
                gets a CancelledError.
        """
        backend = self._backend()
        here = backend.context()
        if here.task_key is None:
            raise RuntimeError("is_canceled() is only available in a task")
        is_async = here.actor_spec is not None and here.actor_spec.is_async
        if is_async and _waiting.has_running_loop():
            raise RuntimeError(
                "is_canceled() is not available in coroutines of actors: see CancelledError"
            )
        return backend.is_canceled()


_runtime_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The facts about the caller; starts a session when there is none."""
    _current.require()
    return _runtime_context


def get_gpu_ids() -> list[int] | list[str]:
    """The ids of the GPUs that the running task may use; empty in the driver.

    They are numbers, unless the machine names its GPUs otherwise.
    """
    _current.require()
    ids = _runtime_context.get_accelerator_ids()["GPU"]
    return [int(id) for id in ids] if all(id.isdecimal() for id in ids) else ids
