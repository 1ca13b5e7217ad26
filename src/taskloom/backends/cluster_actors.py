"""Actors on a cluster, seen from those who make and call them."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.base import FoundActor, Made
from taskloom.backends.cluster_driver import ActorHome, Place
from taskloom.backends.cluster_objects import State
from taskloom.exceptions import ActorDiedError, ActorHandleNotFoundError

if TYPE_CHECKING:
    from taskloom.backends.cluster import ClusterBackend


KILLED_S: Final = 10.0
"""How long a cluster may take to free the name of an actor that was killed."""


class ClusterActors:
    """The actors that a process knows, by key.

    Args:
        home: whose they are.
    """

    def __init__(self, home: ClusterBackend) -> None:
        self._home = home
        self._known: dict[int, bytes] = {}  # manifests of those this process has made or met
        # The cluster may take its time; for this process they are dead when ``kill`` returns.
        self._killed: set[int] = set()

    def create(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        """Make an actor, or find the living one that has its name."""
        home, facts = self._home, spec.actor
        assert facts is not None
        home.check_open()
        home.driver.check(spec)
        found = home.driver.find_actor(facts.namespace, facts.name) if facts.name else None
        if found is not None and found.key not in self._killed:
            return FoundActor(found.key, found.manifest)
        job, inputs = home.calls.encode(spec, args, kwargs)
        key = _ids.object_of(_ids.TaskKey(job.task), 0)
        fills = [home.calls.fill(record) for record in inputs]
        made = home.driver.create_actor(spec, job, fills)
        until = monotonic() + KILLED_S
        while isinstance(made, FoundActor):
            if made.key not in self._killed or monotonic() > until:
                return made
            sleep(0.02)  # its name is not free yet
            made = home.driver.create_actor(spec, job, fills)
        record = home.objects.new_there(key, Place(value=made))
        self._known[key] = facts.manifest
        return FoundActor(key, facts.manifest, home.ref_of(record))

    def _actor(self, key: int) -> ActorHome | None:
        if key in self._killed:
            return None
        record = self._home.objects.by_key.get(key)
        if record is not None and record.state == State.THERE and record.place is not None:
            actor = record.place.value
            if isinstance(actor, ActorHome):
                return actor
        return self._home.driver.actor_of(key)

    def call(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        """Queue one call."""
        calls = self._home.calls
        actor = self._actor(key)
        if actor is None:
            return calls.send(spec, args, kwargs, failure=self._gone(key))
        keeps = actor, self._home.objects.by_key.get(key)  # what is called is kept
        return calls.send(spec, args, kwargs, actor, keeps)

    def kill(self, key: int, *, no_restart: bool) -> None:
        """End an actor; nothing happens when it is dead."""
        actor = self._actor(key)
        if actor is not None:
            self._home.driver.kill_actor(actor, no_restart=no_restart)
            if no_restart:
                self._killed.add(key)
        elif key not in self._known and key not in self._killed:
            raise ActorHandleNotFoundError("the actor of this handle is not known any more")

    def answer(self, name: str, content: Any) -> Any:
        """As ``_engine/actor_desk`` does."""
        home = self._home
        if name == "find":
            found = home.driver.find_actor(*content)
            if found is None or found.key in self._killed:
                return ()
            return found.key, found.manifest
        if name == "list":
            return home.driver.list_actors(content)
        if name == "pending":
            calls = [call for call in list(home.calls.running.values()) if call.actor == content]
            if home.driver.waits_at_cluster:
                home.calls.look_at(calls)  # what is over does not count, told or not
            return sum(1 for call in calls if call.task in home.calls.running)
        if name == "is_known":
            return self._actor(content) is not None
        call = home.calls.of(content)
        return call is not None and bool(call.actor)

    def close(self) -> None:
        """The session ends."""
        self._known.clear()

    def _gone(self, key: int) -> Failure:
        actor_id = _ids.actor_bytes(self._home.session_id, key).hex()
        killed = key in self._killed
        why = "it was killed" if killed else "all handles that keep it alive were gone"
        return system_failure(
            ActorDiedError(
                f"The actor {actor_id} is dead: {why}.",
                actor_id=actor_id,
            )
        )
