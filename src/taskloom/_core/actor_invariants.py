"""Do the tables of actors agree with each other and with the rest of the loom?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskloom._core.actor_record import ActorRecord, ActorState
from taskloom._core.resources import Allocation
from taskloom._core.states import TERMINAL, NodeState
from taskloom.exceptions import InternalError

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor


def check(loom: Reactor) -> None:
    """Raise InternalError, naming the first table that disagrees with another."""
    for actor in loom.actors.by_key.values():
        _check_actor(loom, actor)
        _check_lines(actor)
    for (namespace, name), key in loom.actors.names.items():
        owner = loom.actors.by_key.get(key)
        _must(
            owner is not None
            and owner.state is not ActorState.DEAD
            and (owner.facts.namespace, owner.facts.name) == (namespace, name),
            f"the name {name!r} belongs to {owner!r}",
        )
    constructing = {actor for actor in loom.actors.by_key.values() if actor.creation is not None}
    placed = {actor for actor in constructing if actor.allocation is not None}
    dying = {actor for actor in loom.actors.placed if actor.state is ActorState.DEAD}
    _must(loom.actors.placed - dying == placed, f"placed: {loom.actors.placed}, not {placed}")
    for worker in loom.actors.spare:
        _must(worker.actor is None, f"{worker!r} is spare and belongs to {worker.actor!r}")


def queued_calls(loom: Reactor) -> Counter[int]:
    """How often each READY call or constructor stands in a line, by key."""
    queued: Counter[int] = Counter()
    for actor in loom.actors.by_key.values():
        for line in actor.lines.values():
            queued.update(node.key for node in line.calls if node.state is NodeState.READY)
    waiting = (*loom.actors.unplaced, *loom.actors.awaiting)
    queued.update(
        actor.creation.key
        for actor in waiting
        if actor.creation is not None and actor.creation.state is NodeState.READY
    )
    return queued


def allocations(loom: Reactor) -> Iterator[Allocation]:
    """What actors hold."""
    for actor in loom.actors.by_key.values():
        for held in (actor.allocation, actor.placement):
            if held is not None:
                yield held


def held_objects(loom: Reactor) -> Iterator[int]:
    """The keys of what actors hold for their restarts, and of actors that are detached."""
    for actor in loom.actors.by_key.values():
        if actor.blueprint is not None:
            for record in (*actor.blueprint.deps, *actor.blueprint.nested):
                yield record.key
        if actor.facts.detached and actor.state is not ActorState.DEAD:
            yield actor.key


def _check_actor(loom: Reactor, actor: ActorRecord) -> None:
    state, worker = actor.state, actor.worker
    _must((actor.death is not None) == (state is ActorState.DEAD), f"{actor!r}: {actor.death}")
    if worker is not None:
        _must(worker.actor is actor, f"{actor!r} is not the actor of its worker")
        _must(worker.number in loom.workers, f"{actor!r} has a worker that is gone")
        _must(actor.allocation is not None, f"{actor!r} has a process and holds nothing")
    if state is ActorState.DEAD:
        _must(not actor.lines and not actor.waiting, f"{actor!r} has calls")
        _must(
            worker is not None or (actor.allocation is None and actor.placement is None),
            f"{actor!r} has no process and holds resources",
        )
        _must(actor not in loom.actors.awaiting, f"{actor!r} waits for a process")
        return
    _must(
        (actor.creation is None) == (state is ActorState.ALIVE),
        f"{actor!r}: constructor {actor.creation!r}",
    )
    if state is ActorState.ALIVE:
        _must(worker is not None, f"{actor!r} has no process")
        _must(actor.placement is None, f"{actor!r} still holds its placement")


def _check_lines(actor: ActorRecord) -> None:
    busy: Counter[int] = Counter()
    inflight = actor.worker.inflight.values() if actor.worker is not None else ()
    if actor.state is not ActorState.DEAD:
        for node in inflight:
            if node is not actor.creation:
                busy[id(actor.line_of(node))] += 1
    for place, line in actor.lines.items():
        _must(line.busy == busy[id(line)], f"{actor!r}: line {place!r} is busy {line.busy} times")
        _must(line.busy <= line.limit, f"{actor!r}: {line.busy} calls, limit {line.limit}")
    for node in actor.waiting.values():
        waits = node.state in (NodeState.WAITING, NodeState.BACKOFF)
        _must(waits, f"{node!r} waits in {actor!r}")


def check_idle_hands(loom: Reactor) -> None:
    """After a pass nothing is left that could be handed out."""
    for actor in loom.actors.by_key.values():
        if actor.state is not ActorState.ALIVE:
            continue
        for place, line in actor.lines.items():
            waits = line.is_strict or actor.is_held
            could = line.head() if line.busy < line.limit and not waits else None
            _must(
                could is None or line.busy > 0 or could.state in TERMINAL,
                f"{actor!r}: {could!r} could run and stands in line {place!r}",
            )


def _must(condition: bool, text: str) -> None:
    if not condition:
        raise InternalError(text)
