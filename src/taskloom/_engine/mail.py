"""What workers say: each message on its way to the loom, the store or whoever answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from taskloom._core.node import Node, ObjectRecord, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._engine.actor_desk import ActorDesk
from taskloom._engine.groups import Groups
from taskloom._engine.requests import Requests
from taskloom._engine.storage import Storage
from taskloom._engine.stream_desk import StreamDesk
from taskloom._engine.submissions import calls_from_worker, node_from_worker, spec_from_worker
from taskloom._memory import MemoryReport
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._store.stored import Sealed
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.together import submits_of

_ANSWERS: Final = frozenset({m.DONE, m.DONE_MANY, m.FAILED, m.ITEM})


class Addressee(Protocol):
    """The engine, as far as the words of workers concern it."""

    loom: Reactor
    storage: Storage
    groups: Groups
    actors: ActorDesk
    streams: StreamDesk

    def enter(self, node: Node) -> None: ...
    def take_calls(self, calls: Sequence[Any]) -> None: ...
    def borrow_key(self, key: int) -> ObjectRecord | None: ...
    def abandon(self, record: ObjectRecord) -> None: ...
    def memory(self) -> MemoryReport: ...
    def why(self, key: int) -> str: ...
    def post(self, worker: WorkerProcess, message: Message) -> None: ...


class Mail:
    """Reads the messages of workers.

    Args:
        engine: what they are about.
        pool: of the workers.
        requests: takes their questions.
    """

    def __init__(self, engine: Addressee, pool: Pool, requests: Requests) -> None:
        self._engine = engine
        self._loom = loom = engine.loom
        self._storage = storage = engine.storage
        self._groups = groups = engine.groups
        self._pool = pool
        self._streams = streams = engine.streams
        self._handlers: dict[int, Callable[[WorkerProcess, Message], object]] = {
            m.READY: self._on_ready,
            m.RETURNED: lambda w, msg: loom.on_returned(w.record, msg[1], msg[2]),
            m.FUNCTION: self._on_function,
            m.SPEC: self._on_spec,
            m.FORGET_FUNCTION: lambda w, msg: w.functions.pop(msg[1], None),
            m.FORGET_SPEC: lambda w, msg: w.specs.pop(msg[1], None),
            m.SUBMIT: self._on_submit,
            m.SUBMIT_MANY: self._on_submit_many,
            m.PUT: self._on_put,
            m.GET: requests.on_get,
            m.WAIT: requests.on_wait,
            m.WATCH: requests.on_watch,
            m.UNWATCH: requests.on_unwatch,
            m.BORROW: lambda w, msg: loom.on_borrow(w.record, msg[1]),
            m.RELEASE: lambda w, msg: loom.on_release(w.record, msg[1]),
            m.CANCEL: lambda _, msg: loom.on_cancel(msg[1], force=msg[2], recursive=msg[3]),
            m.PIN: lambda _, msg: engine.borrow_key(msg[1]),
            m.ABANDON: self._on_abandon,
            m.QUERY: self._on_query,
            m.ROOM: storage.on_room,
            m.UNPIN: storage.on_unpin,
            m.UNUSED: storage.on_unused,
            m.BEGAN: lambda w, msg: loom.on_began(w.record, msg[1], msg[2]),
            **groups.handlers,
            **streams.handlers,
            **engine.actors.handlers,
        }

    def read(self, worker: WorkerProcess, batch: list[Message]) -> None:
        """Take in what came from a worker at once, in order."""
        drained = False
        for message in batch:
            op = message[0]
            if op in _ANSWERS:
                if not drained:  # what a task printed is out before its result is
                    drained = True
                    worker.drain_output()
                self._read_answer(worker, message)
            else:
                self._handlers[op](worker, message)

    def _read_answer(self, worker: WorkerProcess, message: Message) -> None:
        op = message[0]
        if op == m.DONE:
            _, seq, outcome, contained, seconds = message
            if type(outcome) is bytes:  # one small value: nearly always
                record = worker.record
                if seq in record.calls and not contained:
                    self._loom.calls.on_answer(record, seq, outcome, seconds)
                else:
                    self._loom.on_done(record, seq, (outcome,), (contained,), seconds)
            else:
                self._on_done(worker, message)
        elif op == m.DONE_MANY:
            self._on_done_many(worker.record, message)
        elif op == m.ITEM:
            self._streams.on_item(worker, message)
        else:
            _, seq, error, retry, seconds = message
            self._loom.on_failed(worker.record, seq, error, retry=retry, seconds=seconds)

    # -- tasks --------------------------------------------------------------------------------

    def _on_ready(self, worker: WorkerProcess, _message: Message) -> None:
        self._pool.on_ready(worker)
        self._loom.on_worker_ready(worker.record)

    def _on_done(self, worker: WorkerProcess, message: Message) -> None:
        _, seq, outcome, contained, seconds = message
        record = worker.record
        if type(outcome) is list:
            outcomes = [
                self._landed(worker, one, _output_key(record, seq, index))
                for index, one in enumerate(outcome)
            ]
            self._loom.on_done(record, seq, outcomes, contained, seconds)
            return
        if type(outcome) is Sealed:
            outcome = self._landed(worker, outcome, _output_key(record, seq, 0))
        self._loom.on_done(record, seq, (outcome,), (contained,), seconds)

    def _on_done_many(self, worker: WorkerRecord, message: Message) -> None:
        _, seqs, outcomes, seconds = message
        self._loom.calls.on_done(worker, seqs, outcomes, seconds)

    def _on_function(self, worker: WorkerProcess, message: Message) -> None:
        worker.functions[message[1]] = message[2]

    def _on_spec(self, worker: WorkerProcess, message: Message) -> None:
        worker.specs[message[1]] = spec_from_worker(worker, message)

    def _on_submit(self, worker: WorkerProcess, message: Message) -> None:
        node = node_from_worker(worker, message, self._loom.graph.objects)
        if self._groups.joining:
            self._groups.settle_node(node)
        for record in node.outputs:
            worker.record.borrowed[record.key] = record
        self._engine.enter(node)

    def _on_submit_many(self, worker: WorkerProcess, message: Message) -> None:
        calls = None if self._groups.joining else calls_from_worker(worker, message)
        if calls is None:
            for one in submits_of(message):
                self._on_submit(worker, one)
            return
        borrowed = worker.record.borrowed
        for call in calls:
            borrowed[call.key] = call
        self._engine.take_calls(calls)

    # -- objects ------------------------------------------------------------------------------

    def _on_put(self, worker: WorkerProcess, message: Message) -> None:
        _, key, payload, contained = message
        record = ObjectRecord(key)
        worker.record.borrowed[key] = record
        self._loom.on_put(record, self._landed(worker, payload, key), contained)

    def _landed(self, worker: WorkerProcess, payload: Any, key: int) -> Any:
        """A payload as the driver keeps it: what lies in the store is the driver's from now on."""
        if type(payload) is not Sealed:
            return payload
        block = self._storage.adopt(worker, payload)
        block.keys.append(key)
        return block

    def _on_abandon(self, _worker: WorkerProcess, message: Message) -> None:
        record = self._loom.graph.objects.get(message[1])
        if record is not None:
            self._engine.abandon(record)

    # -- questions about the session ----------------------------------------------------------

    def _on_query(self, worker: WorkerProcess, message: Message) -> None:
        _, number, name, key, running = message
        facts: object
        if name == "withdraw":
            facts = self._loom.on_withdraw(key)
        elif name == "stream":
            facts = self._streams.glimpse(worker, key)
        elif name == "memory":
            facts = self._engine.memory()
        elif name == "why":
            facts = self._engine.why(key)
        elif name == "cluster_resources":
            facts = self._loom.ledger.describe_total()
        elif name == "available_resources":
            facts = self._loom.ledger.describe_free()
        else:
            facts = self._engine.actors.answer(name, key, worker)
        reply = (m.REPLY, number, 0, facts)
        if running > 0:
            self._engine.post(worker, reply)
        else:
            worker.control.send([reply])


def _output_key(worker: WorkerRecord, seq: int, index: int) -> int:
    node = worker.inflight.get(seq)
    return node.key + 1 + index if node is not None else 0
