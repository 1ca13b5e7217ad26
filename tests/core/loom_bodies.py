"""What the bodies of simulated calls do, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loom_driver import Trouble
from loom_plan import Call, Step
from loom_worker import Worker

from taskloom._core.node import ObjectRecord
from taskloom._wire import messages as m

if TYPE_CHECKING:
    from loom_simulation import Simulation

MOST_CRASHES = 30
"""Who may be tried for ever would be: coroutines die of their neighbours, too."""


class Body:
    """A call that a worker runs: where it is, and what it has."""

    def __init__(self, worker: Worker, seq: int, call: Call, began: float) -> None:
        self.worker = worker
        self.seq = seq
        self.call = call
        self.began = began
        self.node = worker.nodes[seq]
        self.attempt = self.node.attempt
        self.next = 0
        self.over = False
        self.ignores = False
        self.strict = False
        self.keeps_s = -1.0
        self.refs: list[int] = list(dict.fromkeys(record.key for record in self.node.nested))
        self.asks = 0  # its open question, or await
        self.awaits: set[int] = set()
        self.asked: tuple[int, ...] = ()
        self.yielded = self.taken = 0
        self.limit = max(call.stream, 0)
        self.room = 0  # what it waits for, having yielded enough


def lost(key: int) -> ObjectRecord:
    """As the engine has it: a task that is ended does not keep its objects any more."""
    record = ObjectRecord(key)
    record.outcome = Trouble("lost", 0, inherited=True)
    record.failed = True
    return record


# Each does one step; True: and go on with the next, False: something else will see to that.


def _work(world: Simulation, body: Body, step: Step) -> bool:
    world.later(body, step[1])
    return False


def _submit_step(world: Simulation, body: Body, step: Step) -> bool:
    call: Call = step[1]
    worker, seq = body.worker, body.seq
    picked = {n: tuple(body.refs[p % len(body.refs)] for p in picks if body.refs)
              for n, picks in (("deps", call.deps), ("nested", call.nested))}  # fmt: skip
    key = world.next_key()

    def submit() -> None:
        objects = world.loom.graph.objects
        world.call(
            call,
            [objects.get(dep) or lost(dep) for dep in picked["deps"]],
            tuple(objects[inner] for inner in picked["nested"] if inner in objects),
            parent=worker.record.inflight.get(seq),
            by=worker.record,
            key=key,
        )

    worker.post((m.SUBMIT, submit))
    worker.flush()
    _own(world, body, [key + 1 + index for index in range(call.returns)])
    return True


def _put_step(world: Simulation, body: Body, step: Step) -> bool:
    key = world.next_key() + 1
    inner = tuple(body.refs[pick % len(body.refs)] for pick in step[1] if body.refs)
    body.worker.post((m.PUT, key, inner))
    body.worker.flush()
    _own(world, body, [key])
    return True


def _own(world: Simulation, body: Body, keys: list[int]) -> None:
    body.refs += keys
    world.hands[body.worker.record.number].refs.update(keys)


def _keys(world: Simulation, body: Body, picks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(body.refs[pick % len(body.refs)] for pick in picks))


def _get(world: Simulation, body: Body, step: Step) -> bool:
    what, picks, *_ = step
    if not body.refs:
        return True
    keys = body.asked = _keys(world, body, picks)
    worker = body.worker
    if what == "get":
        body.strict = step[3]
        body.asks = worker.ask(m.GET, keys, step[2])
    elif what == "wait":
        body.strict = False
        body.asked = ()
        body.asks = worker.ask(m.WAIT, keys, min(step[2], len(keys)), step[3])
    elif what == "await" and not worker.is_loop:
        body.strict = step[2]
        body.asks = worker.ask(m.GET, keys, None)
    elif what == "await":
        body.strict = step[2]
        body.awaits = set(keys)
        body.asks = worker.watch(keys, body.seq)
    else:
        number = worker.ask(m.GET, keys, step[2], running=0)
        world.threads[worker.record.number, number] = keys
        return True
    return False


def _stall(world: Simulation, body: Body, step: Step) -> bool:
    """A coroutine calls ``get`` for the call it has just made."""
    if not body.refs:
        return True
    body.strict = False
    body.asked = (body.refs[-1],)
    running = -1 if body.worker.is_loop else None
    body.asks = body.worker.ask(m.GET, body.asked, step[1], running=running)
    return False


def _cancel_step(world: Simulation, body: Body, step: Step) -> bool:
    if body.refs:
        body.worker.post((m.CANCEL, body.refs[step[1] % len(body.refs)], step[2], step[3]))
        body.worker.flush()
    return True


def _ignore(world: Simulation, body: Body, _step: Step) -> bool:
    body.ignores = True
    return True


def _keep(world: Simulation, body: Body, step: Step) -> bool:
    body.keeps_s = step[1]
    return True


def _raise_step(world: Simulation, body: Body, step: Step) -> bool:
    if body.attempt <= step[1]:
        world.fail_body(body, retry=step[2] and body.attempt < 20)
    return True


def _die_step(world: Simulation, body: Body, step: Step) -> bool:
    if body.attempt <= step[1] and world.crashes < MOST_CRASHES:
        world.crashes += 1
        world.die(body.worker)
    return True


def _yield_step(world: Simulation, body: Body, step: Step) -> bool:
    if body.call.stream < 0:
        return True  # a plan that was cut down
    worker, index = body.worker, body.yielded
    body.yielded += 1
    worker.post((m.ITEM, body.seq, index, item_of(body.node.key, index), ()))
    if step[1]:
        worker.flush()
    if not body.limit or body.yielded - body.taken < body.limit:
        return True
    body.room = world.next_key() + 1
    world.hands[worker.record.number].refs[body.room] += 1
    worker.post((m.ITEM_ROOM, body.seq, body.yielded, body.room))
    body.strict, body.asked = False, (body.room,)
    if worker.is_loop:
        body.awaits = {body.room}
        body.asks = worker.watch(body.asked, body.seq)
    else:
        body.asks = worker.ask(m.GET, body.asked, None)
    return False


def item_of(task: int, index: int) -> bytes:
    """What a call yields, in every attempt."""
    return b"item %d of %x" % (index, task)


STEPS: dict[str, Callable[[Simulation, Body, Step], bool]] = {
    "work": _work,
    "submit": _submit_step,
    "put": _put_step,
    "get": _get,
    "wait": _get,
    "await": _get,
    "thread": _get,
    "stall": _stall,
    "cancel": _cancel_step,
    "ignore": _ignore,
    "keep": _keep,
    "raise": _raise_step,
    "die": _die_step,
    "yield": _yield_step,
}
