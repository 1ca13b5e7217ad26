"""Actors as the driver makes and calls them: the nodes of constructors and of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from taskloom import _current
from taskloom._core.actor_record import ActorRecord
from taskloom._core.node import Node, ObjectRecord
from taskloom._engine.backlog import LOOK_EVERY
from taskloom._spec import TaskSpec
from taskloom._wire.calls import encode_call
from taskloom.backends.base import FoundActor, Made
from taskloom.backends.local_streams import open_stream
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom.backends.local import LocalBackend
    from taskloom.backends.local_group import LocalGroup


def create(
    home: LocalBackend, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
) -> FoundActor:
    """``Backend.create_actor`` for the backend ``home``."""
    facts = spec.actor
    assert facts is not None
    payload, holes, refs, nested = encode_call(args, kwargs, spec.name, home._arguments.put)
    task = home._next_task()
    actor = ActorRecord(task + 1, spec)
    deps = tuple([home._check(ref)._record for ref in refs])
    node = Node(task, spec, payload, holes, deps, (actor,))
    node.nested = nested  # type: ignore[assignment]  # keys; the engine looks them up
    node.context = home._contexts.pack()
    node.actor = actor
    if facts.name:  # whether it is free is known at once
        found = home._portal.call(lambda: home._engine.actors.create(node))
        if found is not None:
            return FoundActor(*found)
    else:
        home._post(home._create_actor, node)
    return FoundActor(actor.key, facts.manifest, ObjectRef(actor.key, home, actor))


def call(
    home: LocalBackend,
    key: int,
    spec: TaskSpec,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Made:
    """``Backend.call_actor`` for the backend ``home``."""
    payload, holes, refs, nested = encode_call(args, kwargs, spec.name, home._arguments.put)
    task = home._next_task()
    record = ObjectRecord(task + 1)
    outputs: tuple[ObjectRecord, ...] = (record,)
    if spec.num_returns != 1:
        outputs = tuple([ObjectRecord(task + 1 + index) for index in range(spec.num_returns)])
    deps = tuple([home._check(ref)._record for ref in refs]) if refs else ()
    node = Node(task, spec, payload, holes, deps, outputs)
    node.nested = nested  # type: ignore[assignment]  # keys; the engine looks them up
    node.context = home._contexts.pack()
    if home._open_groups and (group := _current.open_group(home)) is not None:
        node.scope = cast("LocalGroup", group).scope
    # First: what Ctrl-C interrupts here is dropped.
    made: Any
    if spec.num_returns == 1:
        made = ObjectRef(task + 1, home, record)
        if spec.stream is not None:
            made = open_stream(home, node, made)
    else:
        made = [ObjectRef(output.key, home, output) for output in outputs]
    if home._short_cut.shown is None or not home._short_cut.hand_over(node, home._portal, key):
        home._post(home._call_actor, (node, key))
    if not task & LOOK_EVERY:
        home._engine.note_backlog()
    return made or None
