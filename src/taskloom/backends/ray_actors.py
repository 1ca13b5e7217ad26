"""Actors on Ray: each of ours is one of Ray's, which hosts the user's object.

Every actor has a name at Ray, so that any process of the session finds it by its key: a handle
that does not keep it alive has nothing else.  One without a name of its own is called after the
key, in a namespace of the session's.  What handles are made of, the manifest, is kept by Ray's
head under the name, so that ``get_actor`` asks nobody who may be busy.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.util import list_named_actors

from taskloom import _ids
from taskloom._actor_facts import is_as_described
from taskloom._spec import TaskSpec
from taskloom.backends.base import FoundActor
from taskloom.backends.cluster_driver import ActorHome, Job
from taskloom.backends.ray_hosts import host_class
from taskloom.backends.ray_options import actor_options
from taskloom.backends.ray_wire import pack_call, pack_job

if TYPE_CHECKING:
    from taskloom.backends.ray_driver import RayDriver

_CALLERS: Final = 256
"""So many ways to call are kept for each actor."""
_ENTRY_S: Final = 2.0
"""How long the one who makes an actor may take from its name to its entry, seconds."""


class RayActors:
    """The actors of a session, for one process.

    Args:
        driver: of the process.
        session: its name, in hex digits.
        packed_facts: of the session, as they travel.
    """

    def __init__(self, driver: RayDriver, session: str, packed_facts: bytes) -> None:
        self._driver = driver
        self._session = session
        self._packed_facts = packed_facts
        self._space = f"taskloom-{session}"

    def create(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> ActorHome | FoundActor:
        """Make an actor; the living one when its name is taken meanwhile."""
        facts = spec.actor
        assert facts is not None
        key = _ids.object_of(_ids.TaskKey(job.task), 0)
        name, namespace = facts.name or f"{key:x}", facts.namespace if facts.name else self._space
        make = ray.remote(name=name, namespace=namespace, **actor_options(spec, facts))
        try:
            handle = make(host_class(facts.class_name, is_async=facts.is_async)).remote(
                self._packed_facts, self._driver.packed(spec), pack_job(job), *fills
            )
        except (ValueError, ray.exceptions.RayError):
            found = self._wait_for_entry(namespace, name) if facts.name else None
            if found is None:
                raise
            return FoundActor(found.key, found.manifest)
        if facts.name:
            entry = (key, facts.manifest, self._session)
            self._note(key, namespace, name)
            self._driver.write(_entry_name(namespace, name), pickle.dumps(entry))
        return ActorHome(handle, key, facts.manifest)

    # -- calls --------------------------------------------------------------------------------

    def call(self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Any:
        """Queue a call."""
        is_small = self._driver.is_small(spec)
        method = _bound(actor, "call", spec, 1 if is_small else spec.num_returns + 1)
        packed = pack_call(self._driver.packed(spec), job, wants_one=is_small)
        return method.remote(packed, *fills)

    def call_bare(self, actor: ActorHome, spec: TaskSpec) -> Any:
        """Queue a call that has no arguments and answers with one object.

        Ray's name of the call says all that its actor must know, if it is a method as the class
        describes it.

        Returns:
            Ray's ref; None: the actor does not know this spec.
        """
        if not actor.manifest or not is_as_described(spec, actor.manifest):
            return None
        return _bound(actor, "bare", spec, 1).remote()

    def stream(self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Any:
        """Queue a call of a generator method."""
        method = _bound(actor, "stream", spec, "streaming")
        packed = pack_call(self._driver.packed(spec), job, wants_one=False)
        return method.remote(packed, *fills)

    # -- finding ------------------------------------------------------------------------------

    def find(self, namespace: str, name: str) -> ActorHome | None:
        """The living actor of that name; also one that another program has made."""
        entry = self._driver.read(_entry_name(namespace, name))
        handle = _get(name, namespace) if entry is not None else None
        if entry is None or handle is None:
            return None
        key, manifest, session = pickle.loads(entry)
        if session != self._session:  # tasks of ours that get a handle know its key alone
            self._note(key, namespace, name)
        return ActorHome(handle, key, manifest)

    def _note(self, key: int, namespace: str, name: str) -> None:
        """Tell all processes of the session which name at Ray a key stands for."""
        self._driver.write(f"{self._session}/actor/{key:x}", pickle.dumps((namespace, name)))

    def _wait_for_entry(self, namespace: str, name: str) -> ActorHome | None:
        """The actor that has just been given the name by somebody else."""
        until = monotonic() + _ENTRY_S
        while (found := self.find(namespace, name)) is None and monotonic() < until:
            sleep(0.01)
        return found

    def by_key(self, key: int) -> ActorHome | None:
        """The living actor of that key."""
        entry = self._driver.read(f"{self._session}/actor/{key:x}")
        namespace, name = pickle.loads(entry) if entry is not None else (self._space, f"{key:x}")
        handle = _get(name, namespace)
        return None if handle is None else ActorHome(handle, key, b"")

    def names(self, namespace: str) -> list[tuple[str, str]]:
        """Those that have names."""
        return [
            (found["namespace"], found["name"])
            for found in list_named_actors(all_namespaces=True)
            if namespace in ("", found["namespace"])
            and self._driver.read(_entry_name(found["namespace"], found["name"])) is not None
        ]


def _bound(actor: ActorHome, name: str, spec: TaskSpec, num_returns: int | str) -> Any:
    """A method of Ray's actor with the options of a spec; it is kept: Ray takes long to make it."""
    known = name, spec.number, num_returns
    method = actor.callers.get(known)
    if method is None:
        options: dict[str, Any] = {
            "num_returns": num_returns,
            "max_task_retries": spec.max_retries,
            "name": spec.name,
        }
        if num_returns == "streaming" and spec.stream:
            options["_generator_backpressure_num_objects"] = spec.stream
        if spec.group and not hasattr(actor.handle, "counts_groups_itself"):
            options["concurrency_group"] = spec.group
        if len(actor.callers) >= _CALLERS:
            actor.callers.clear()
        method = getattr(actor.handle, name).options(**options)
        actor.callers[known] = method
    return method


def _entry_name(namespace: str, name: str) -> str:
    return f"actor/{len(namespace)}/{namespace}/{name}"


def _get(name: str, namespace: str) -> Any:
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None  # it is dead, or has never been
