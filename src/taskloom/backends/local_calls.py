"""Tasks as the driver submits them: the plain calls and the nodes of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from taskloom import _current
from taskloom._core.node import Node, ObjectRecord, PlainCall, new_call
from taskloom._engine.backlog import LOOK_EVERY
from taskloom._spec import TaskSpec
from taskloom._wire.calls import encode_call
from taskloom.backends.base import Made
from taskloom.backends.local_streams import open_stream
from taskloom.ref import ObjectRef, new_ref

if TYPE_CHECKING:
    from taskloom.backends.local import LocalBackend
    from taskloom.backends.local_group import LocalGroup


def plain_call(home: LocalBackend, key: int, spec: TaskSpec, args: bytes) -> ObjectRef[Any]:
    """A new call that is no node, as the record of its ref."""
    return new_ref(key, home, new_call(PlainCall, key, spec, args))


def submit_node(
    home: LocalBackend,
    task: int,
    context: bytes | None,
    spec: TaskSpec,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Made:
    """The rest of ``Backend.submit`` for the backend ``home``.

    Args:
        task: the key of the call.
        context: the packed context variables, if there are any.
        spec, args, kwargs: as there.
    """
    payload, holes, refs, nested = encode_call(args, kwargs, spec.name, home._arguments.put)
    count = spec.num_returns
    outputs = tuple([ObjectRecord(task + 1 + index) for index in range(count)])
    deps = tuple([home._check(ref)._record for ref in refs]) if refs else ()
    node = Node(task, spec, payload, holes, deps, outputs)
    node.nested = nested  # type: ignore[assignment]  # keys; the engine looks them up
    node.context = context
    if home._open_groups and (group := _current.open_group(home)) is not None:
        node.scope = cast("LocalGroup", group).scope
    # Refs first: what Ctrl-C interrupts here is dropped.
    made: Any
    if count == 1:
        made = ObjectRef(outputs[0].key, home, outputs[0])
        if spec.stream is not None:
            made = open_stream(home, node, made)
    else:
        made = [ObjectRef(output.key, home, output) for output in outputs]
    if home._short_cut.shown is None or not home._short_cut.hand_over(node, home._portal):
        home._post(home._submit, node)
    if home._sites is not None:
        for output in outputs:
            home._sites.note(output.key, home._engine.loom.graph.objects)
    if not task & LOOK_EVERY:
        home._engine.note_backlog()
    return made or None
