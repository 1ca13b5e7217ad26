"""Actors on Dask, seen from those who make and call them: see ``dask_hosts``."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import distributed

from taskloom import _ids
from taskloom._spec import TaskSpec
from taskloom.backends import dask_head
from taskloom.backends.base import FoundActor
from taskloom.backends.cluster_driver import ActorHome, Job
from taskloom.backends.dask_handles import Promise, make_future
from taskloom.backends.dask_hosts import ActorHost, Turn, call_actor, tell_actor

if TYPE_CHECKING:
    from taskloom.backends.dask_driver import DaskDriver


_BIRTH_S: Final = 2.0
"""How long the one who makes an actor may take from its name to its birth, seconds."""


class DaskActors:
    """The actors of a session, for one process.

    Args:
        driver: of the process.
    """

    def __init__(self, driver: DaskDriver) -> None:
        self._driver = driver
        self._caller = os.urandom(8).hex()
        self._turns: dict[int, itertools.count[int]] = {}
        self._ordered: dict[int, bool] = {}
        self._tells = itertools.count(1)

    @staticmethod
    def check(spec: TaskSpec) -> None:
        """Refuse what Dask has not."""
        facts = spec.actor
        assert facts is not None
        special = [name for name, _ in (*spec.request, *facts.placement) if name != "CPU"]
        refused = {
            "max_restarts": facts.max_restarts != 0,
            "lifetime='detached'": facts.detached,
            f"resources ({', '.join(sorted(set(special)))})": bool(special),
        }
        for what, is_asked_for in refused.items():
            if is_asked_for:
                raise NotImplementedError(
                    f"{facts.class_name}: {what} of actors is not possible on Dask, whose actors "
                    "live in a worker that they share, and die with it: leave it out, or use the "
                    "local backend or Ray"
                )

    def create(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> ActorHome | FoundActor:
        """Make an actor; the living one when its name is taken meanwhile."""
        facts, driver = spec.actor, self._driver
        assert facts is not None
        key = _ids.object_of(_ids.TaskKey(job.task), 0)
        if facts.name:
            entry = pickle.dumps((key, facts.manifest), 5)
            note = _note_name(facts.namespace, facts.name)
            if not driver.write_fresh(note, entry):
                found = self.find(facts.namespace, facts.name)
                if found is not None:
                    return FoundActor(found.key, found.manifest)
                driver.write(note, entry)  # the one that has it is dead
        promise = driver.send(
            spec, job, fills, ActorHost, key=self._key_of(key), free=True, actor=True
        )
        self._ordered[key] = facts.is_ordered
        # Others ask the scheduler whether it lives: from now on it knows.
        driver.client.run_on_scheduler(dask_head.wait_for, promise.key)
        driver.write(f"actor/{key:x}", b"1" if facts.is_ordered else b"")
        return ActorHome(promise, key, facts.manifest)

    def _key_of(self, key: int) -> str:
        return f"actor-{self._driver.session[:12]}{key:x}"

    # -- calls --------------------------------------------------------------------------------

    def call(self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Promise:
        """Queue a call."""
        key = actor.key
        is_ordered = self._ordered.get(key)
        if is_ordered is None:
            is_ordered = self._ordered[key] = bool(self._driver.read(f"actor/{key:x}"))
        turn = None
        if is_ordered:
            numbers = self._turns.setdefault(key, itertools.count())
            turn = Turn(self._caller, next(numbers))
        session_id = bytes.fromhex(self._driver.session)
        promise = self._driver.send(
            spec,
            job,
            fills,
            call_actor,
            free=True,
            before=(
                actor.handle.future,
                turn,
                _ids.actor_bytes(session_id, key).hex(),
                spec.num_returns,
            ),
        )
        promise.on_lost = partial(self._on_lost, actor, turn)
        return promise

    def _on_lost(self, actor: ActorHome, turn: Turn | None) -> None:
        """A call never comes to its actor: those behind it need not wait."""
        if turn is not None:
            self._tell(actor, "skip", turn)

    def _tell(self, actor: ActorHome, word: str, *args: Any) -> Any:
        key = f"taskloom_{word}-{self._caller}{next(self._tells):08x}"
        return self._driver.client.submit(
            tell_actor,
            key.encode(),
            actor.handle.future,
            word,
            *args,
            key=key,
            **self._driver.free_options(),
        )

    def kill(self, actor: ActorHome) -> None:
        """End an actor; its process is others', too."""
        self._driver.write(f"dead/{actor.key:x}", b"1")
        try:
            self._tell(actor, "kill").result(timeout=10)
        except (Exception, distributed.CancelledError):
            pass  # it is dead already

    # -- finding ------------------------------------------------------------------------------

    def find(self, namespace: str, name: str) -> ActorHome | None:
        """The living actor of that name."""
        entry = self._driver.read(_note_name(namespace, name))
        if entry is None:
            return None
        key, manifest = pickle.loads(entry)
        until = monotonic() + _BIRTH_S
        while self._driver.read(f"actor/{key:x}") is None and monotonic() < until:
            sleep(0.01)  # it has its name, and is on its way to the scheduler
        found = self.by_key(key)
        return None if found is None else replace(found, manifest=manifest)

    def by_key(self, key: int) -> ActorHome | None:
        """The living actor of that key."""
        name = self._key_of(key)
        if self._driver.read(f"dead/{key:x}") is not None:
            return None
        if not self._driver.client.run_on_scheduler(dask_head.is_alive, name):
            return None
        return ActorHome(Promise(name, 1, 0, make_future(name)), key, b"")

    def names(self, namespace: str) -> list[tuple[str, str]]:
        """Those that have names."""
        found = []
        for note in self._driver.names("name/"):
            _, size, rest = note.split("/", 2)
            space, name = rest[: int(size)], rest[int(size) + 1 :]
            if namespace in ("", space) and self.find(space, name) is not None:
                found.append((space, name))
        return found


def _note_name(namespace: str, name: str) -> str:
    return f"name/{len(namespace)}/{namespace}/{name}"
