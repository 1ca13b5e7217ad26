"""What workers submit: specs and nodes from their messages."""

from __future__ import annotations

from taskloom._core.node import NestedCall, Node, ObjectRecord, new_call
from taskloom._core.streams import Stream
from taskloom._engine.verdicts import lost
from taskloom._pool.process import WorkerProcess
from taskloom._spec import Function, Pace, TaskSpec
from taskloom._wire.frames import Message


def spec_from_worker(worker: WorkerProcess, message: Message) -> TaskSpec:
    """The spec of a SPEC message; its function came before it."""
    (_, _, key, function_name, module, is_coroutine, name, num_returns, request, max_retries,
     retry, priority, pace, actor, group, stream) = message  # fmt: skip
    function = Function(
        key=key,
        blob=worker.functions[key],
        name=function_name,
        module=module,
        is_coroutine=is_coroutine,
    )
    return TaskSpec(
        function=function,
        name=name,
        num_returns=num_returns,
        request=request,
        max_retries=max_retries,
        retry_exceptions=retry,
        priority=priority,
        pace=Pace(*pace) if pace is not None else None,
        actor=actor,
        group=group,
        stream=stream,
    )


def calls_from_worker(worker: WorkerProcess, message: Message) -> list[NestedCall] | None:
    """The calls of a SUBMIT_MANY message; None: each must be a node.

    They must where they belong to a group, or end as soon as they come.
    """
    _, keys, spec_number, payloads, parent_seq = message
    spec = worker.specs[spec_number]
    parent = worker.record.node_at(parent_seq)
    if not spec.is_plain:
        return None
    depth = 1
    if parent is not None:
        if parent.scope is not None or parent.cancel_asked or parent.overdue:
            return None
        depth = parent.depth + 1
    calls = []
    for key, payload in zip(keys, payloads, strict=True):
        call = new_call(NestedCall, key + 1, spec, payload)
        call.parent, call.depth = parent, depth
        calls.append(call)
    return calls


def node_from_worker(
    worker: WorkerProcess, message: Message, objects: dict[int, ObjectRecord]
) -> Node:
    """The node of a SUBMIT message.

    Its refs are borrowed by the worker, so they are there; unless the task that submits was ended
    before the driver heard so, and with it what it held.
    """
    _, key, spec_number, payload, holes, dep_keys, nested_keys, context, parent_seq = message[:9]
    spec = worker.specs[spec_number]
    # Mostly it is one output and no dependencies: a generator expression costs ten times as much.
    outputs: tuple[ObjectRecord, ...] = (ObjectRecord(key + 1),)
    if spec.num_returns != 1:
        outputs = tuple(ObjectRecord(key + 1 + index) for index in range(spec.num_returns))
    deps = tuple(objects.get(k) or lost(k) for k in dep_keys) if dep_keys else ()
    node = Node(key, spec, payload, holes, deps, outputs)
    if nested_keys:
        node.nested = tuple(objects[k] for k in nested_keys if k in objects)
    node.context = context
    node.parent = worker.record.node_at(parent_seq)
    if spec.stream is not None:
        node.stream = worker.streams[key + 1] = Stream(outputs[0], spec.stream)
    if node.parent is None:
        node.depth = 1
    else:
        node.depth = node.parent.depth + 1
        node.scope = node.parent.scope
    return node
