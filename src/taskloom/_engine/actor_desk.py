"""The engine's desk for actors: what callers and workers ask about them, and what they are told.

Runs in the engine's thread.  What happens to an actor is decided in ``_core/actors``; here are
the messages, the texts of errors, and the limits of time that the loom knows nothing of.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final

from taskloom import _ids
from taskloom._core.actor_record import ActorRecord, ActorState
from taskloom._core.node import Node, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._core.resources import describe
from taskloom._engine.groups import Groups
from taskloom._engine.submissions import node_from_worker
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    DeadlockError,
)

LEAVE_S: Final = 30.0
"""How long an actor may take to end in good order (Ray's limit)."""


class ActorDesk:
    """See above.

    Args:
        loom: decides.
        pool: has the processes.
        groups: to which calls may belong.
        session_id: of the session.
        post: has a message sent on a worker's data stream at the end of this tick.
        warn: has a line printed on the driver's stderr.
    """

    def __init__(
        self,
        loom: Reactor,
        pool: Pool,
        groups: Groups,
        session_id: bytes,
        post: Callable[[WorkerProcess, Message], None],
        warn: Callable[[str], None],
    ) -> None:
        self._loom = loom
        self._pool = pool
        self._groups = groups
        self.handlers: dict[int, Callable[[WorkerProcess, Message], None]] = {
            m.CREATE: self.on_create,
            m.CALL: self.on_call,
            m.KILL: self.on_kill,
            m.LEAVING: self.on_leaving,
        }
        self._session_id = session_id
        self._post = post
        self._warn = warn
        self._loop: AbstractEventLoop | None = None
        self.broken: Failure | None = None  # nothing can run any more: why

    def attach(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    # -- what the driver asks -----------------------------------------------------------------

    def create(self, node: Node) -> tuple[int, bytes] | None:
        """A new actor, or key and manifest of the living one that has its name."""
        actor = node.actor
        assert actor is not None
        other = self._loom.actors.find(actor.facts.namespace, actor.facts.name)
        if other is not None:
            return other.key, other.facts.manifest
        self._fill_nested(node)
        self._create(node)
        return None

    def _create(self, node: Node) -> None:
        if self.broken is not None:
            self._loom.graph.add(node)
            self._loom.graph.fail(node, self.broken, "workers cannot be started")
        else:
            self._loom.actors.on_create(node)

    def call(self, entry: tuple[Node, int]) -> None:
        """A call of the actor with that key."""
        node, key = entry
        if node.nested:
            self._fill_nested(node)
        self._call(node, key)

    def kill_actor(self, entry: tuple[int, bool]) -> None:
        key, no_restart = entry
        actor = self._loom.actors.by_key.get(key)
        if actor is not None:
            self._loom.actors.on_kill(actor, no_restart=no_restart)

    def answer(self, name: str, content: Any, worker: WorkerProcess | None = None) -> Any:
        """The answer to a question of a caller, in the driver or in a worker; never None.

        =======================  ==================================  ==========================
        name                     content                             answer
        =======================  ==================================  ==========================
        "create"                 a CREATE message                    () or (key, manifest)
        "find"                   (namespace, name)                   () or (key, manifest)
        "list"                   namespace, or "" for all            [(namespace, name), ...]
        "pending"                key of an actor                     how many calls of the caller
        "is_call"                key of an object                    bool
        "is_known"               key of an actor                     bool
        =======================  ==================================  ==========================
        """
        actors = self._loom.actors
        if name == "create":
            assert worker is not None
            spec = worker.specs[content[2]].actor
            found = self.answer("find", (spec.namespace, spec.name)) if spec is not None else ()
            if not found:
                self.on_create(worker, content)
            return found
        if name == "find":
            actor = actors.find(*content)
            return () if actor is None else (actor.key, actor.facts.manifest)
        if name == "list":
            return [pair for pair in actors.names if content in ("", pair[0])]
        if name == "pending":
            actor = actors.by_key.get(content)
            process = 0 if worker is None else worker.record.number
            return 0 if actor is None else actors.pending_calls(actor, process)
        if name == "is_known":
            return content in actors.by_key
        record = self._loom.graph.objects.get(content)
        node = self._loom.graph.node_of(record) if record is not None else None
        return node is not None and node.actor is not None

    def _fill_nested(self, node: Node) -> None:
        objects = self._loom.graph.objects
        keys: Any = node.nested  # keys until now
        node.nested = tuple(objects[key] for key in keys if key in objects)

    def _call(self, node: Node, key: int) -> None:
        actor = self._loom.actors.by_key.get(key)
        if actor is None or self.broken is not None:
            self._loom.graph.add(node)
            if node.scope is not None:
                node.scope.enter(node)
            error = self.broken or self._gone(key)
            self._loom.graph.fail(node, error, "its actor is gone")
            return
        node.actor = actor
        if actor.death is None:
            # What is called is kept.
            node.nested = (*node.nested, actor) if node.nested else (actor,)
        self._loom.actors.on_call(node)

    # -- what workers say ---------------------------------------------------------------------

    def on_create(self, worker: WorkerProcess, message: Message) -> None:
        node = node_from_worker(worker, message, self._loom.graph.objects)
        node.actor = actor = ActorRecord(node.key + 1, node.spec)
        node.outputs = (actor,)
        node.parent = node.scope = None  # an actor outlives whoever has made it
        worker.record.borrowed[actor.key] = actor
        self._create(node)

    def on_call(self, worker: WorkerProcess, message: Message) -> None:
        node = node_from_worker(worker, message, self._loom.graph.objects)
        if self._groups.joining:
            self._groups.settle_node(node)
        for record in node.outputs:
            worker.record.borrowed[record.key] = record
        self._call(node, message[9])

    def on_kill(self, _worker: WorkerProcess, message: Message) -> None:
        self.kill_actor((message[1], message[2]))

    def on_leaving(self, worker: WorkerProcess, message: Message) -> None:
        self._loom.actors.on_leaving(worker.record, message[1])

    def on_worker_gone(self, worker: WorkerProcess, started: int, remark: str) -> None:
        why = f"its process {worker.pid} {worker.how_it_ended()}"
        actor = worker.record.actor
        node = worker.record.inflight.get(started)
        if node is not None:
            why += f" while it ran {node.spec.name}"
        elif actor is not None and actor.state is not ActorState.ALIVE:
            why += " before it was constructed"
        if remark:
            why += f" ({remark})"
        lines = worker.last_error_lines()
        if lines:
            why += "; the last lines of its stderr:\n  " + "\n  ".join(lines)
        self._loom.on_actor_worker_lost(worker.record, started, why)

    # -- the loom's verbs ---------------------------------------------------------------------

    def stop_actor(self, worker: WorkerRecord) -> None:
        process = self._pool.by_number[worker.number]
        self._post(process, (m.STOP,))
        self.expect_end(worker)

    def expect_end(self, worker: WorkerRecord) -> None:
        process = self._pool.by_number[worker.number]
        assert self._loop is not None
        timer = self._loop.call_later(LEAVE_S, process.kill)
        process.on_end = timer.cancel

    def died(self, actor: ActorRecord, why: str) -> Failure:
        return system_failure(
            ActorDiedError(
                f"The actor {self._name(actor)} is dead: {why}.", actor_id=self._id(actor.key)
            )
        )

    def unavailable(self, actor: ActorRecord, why: str) -> Failure:
        return system_failure(
            ActorUnavailableError(
                f"The actor {self._name(actor)} is restarted: {why}. The call may or may not have "
                "been executed; max_task_retries=... would try it again.",
                actor_id=self._id(actor.key),
            )
        )

    def unschedulable(self, actor: ActorRecord) -> Failure:
        request = actor.facts.placement or actor.spec.request
        return system_failure(
            ActorUnschedulableError(
                f"the actor {self._name(actor)} asks for {describe(request)}, but this session "
                f"has only {self._loom.ledger.describe_total()}: it can never be created"
            )
        )

    def many_calls(self, actor: ActorRecord, count: int) -> None:
        self._warn(
            f"more than {count} calls of the actor {self._name(actor)} wait for their turn: they "
            "are made faster than they run. Wait for some of them before making more, or give "
            "the actor max_pending_calls=..."
        )

    def self_wait(self, node: Node) -> Failure:
        return system_failure(
            DeadlockError(
                f"{node.spec.name} was called by a method of the same actor, which waits for it: "
                "an actor runs one call at a time, so neither could ever end. Call the method "
                "directly (self...), return the ref, or give the actor max_concurrency=..."
            )
        )

    def _gone(self, key: int) -> Failure:
        actor_id = self._id(key)
        return system_failure(
            ActorDiedError(
                f"The actor {actor_id} is dead: all handles that keep it alive were gone (those of "
                "get_actor() and current_actor do not).",
                actor_id=actor_id,
            )
        )

    def _name(self, actor: ActorRecord) -> str:
        facts = actor.facts
        named = f" named {facts.name!r}" if facts.name else ""
        return f"{facts.class_name}{named} ({self._id(actor.key)})"

    def _id(self, key: int) -> str:
        return _ids.actor_bytes(self._session_id, key).hex()
