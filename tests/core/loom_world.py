"""A whole session in one thread: workers that keep the protocol, and streams that take their time.

``World`` is a ``Core`` with workers that behave as real ones do.  What is sent lies in a stream
until somebody has it delivered: streams of different workers, and the two streams down to one
worker, are independent of each other.  So every race that the real thing can have can be had
here, and all of them on purpose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from loom_driver import LONG_S, LOOP, PROCESS, SHORT_S, Core, RecordingOutbox, Trouble, record_of

from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.states import NodeState

Message = tuple[Any, ...]


class Worker:
    """One worker: what it was sent, what it has started, what it has said."""

    def __init__(self, record: WorkerRecord) -> None:
        self.record = record
        self.data: deque[Message] = deque()  # down
        self.control: deque[Message] = deque()  # down
        self.up: deque[Message] = deque([("ready",)])
        self.queue: deque[int] = deque()
        self.started = 0
        self.revoked_to = 0
        self.cancelled: set[int] = set()
        self.running: list[int] = []  # one at most, unless it is an event loop
        self.waits_for_reply = False
        self.nodes: dict[int, Node] = {}
        self.needs: dict[int, list[int]] = {}  # what the task before is to make
        self.last = 0  # the object that was made here last

    @property
    def is_loop(self) -> bool:
        return self.record.kind is LOOP

    def hear_data(self) -> None:
        what, *content = self.data.popleft()
        if what == "run":
            node, seq, needs = content
            self.nodes[seq] = node
            self.needs[seq] = needs
            if self.is_loop:
                self.started = seq
                if seq in self.cancelled:
                    self._answer("failed", seq, cancelled=True)
                else:
                    self.running.append(seq)
            else:
                self.queue.append(seq)
        else:
            assert what == "reply"
            self.revoked_to = max(self.revoked_to, content[0])
            self.waits_for_reply = False
            if not content[1]:  # the task that asked was cancelled
                self._answer("failed", self.running[0], cancelled=True)

    def hear_control(self) -> None:
        what, seq = self.control.popleft()
        if what == "take_back":
            self.revoked_to = max(self.revoked_to, seq)
            self.up.append(("returned", self.started, seq))
        elif seq in self.running:
            self.cancelled.add(seq)
            if not self.waits_for_reply:
                self._answer("failed", seq, cancelled=True)
        elif seq > self.started:
            self.cancelled.add(seq)

    def is_ready(self) -> bool:
        return self.record.ready

    def is_idle(self) -> bool:
        """The pool may hang up on it."""
        record = self.record
        rests = not (self.up or self.data or self.control or self.running)
        free = not (record.inflight or record.pending_requests or record.borrowed)
        return record.ready and rests and free

    def reads_data(self) -> bool:
        """A PROCESS worker reads its data stream only when it has nothing else to do."""
        return self.is_loop or self.waits_for_reply or not (self.running or self.queue)

    def can_ask(self) -> bool:
        """Runs a task that may wait: two that held a whole tpu each would be stuck."""
        if self.is_loop or not self.can_end():
            return False
        return all(name == "CPU" for name, _ in self.nodes[self.running[0]].spec.request)

    def can_start(self) -> bool:
        return bool(self.queue) and not self.running

    def start(self) -> None:
        seq = self.queue.popleft()
        if seq <= self.revoked_to:
            return
        self.started = seq
        self.running.append(seq)
        if seq in self.cancelled or any(key != self.last for key in self.needs[seq]):
            self._answer("failed", seq, cancelled=True)

    def can_end(self) -> bool:
        return bool(self.running) and not self.waits_for_reply

    def finish(self, which: int, *, seconds: float, contains: tuple[int, ...] = ()) -> None:
        seq = self.running[which % len(self.running)]
        self.running.remove(seq)
        self.last = self.nodes[seq].key + 1
        self.up.append(("done", seq, seconds, contains))

    def fail(self, which: int, *, retry: bool) -> None:
        self._answer("failed", self.running[which % len(self.running)], retry=retry)

    def _answer(self, what: str, seq: int, *, cancelled: bool = False, retry: bool = False) -> None:
        if seq in self.running:
            self.running.remove(seq)
        self.up.append((what, seq, cancelled, retry))


class _Wires(RecordingOutbox):
    """Carries out what the loom asks for, by putting it into streams."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def run(self, worker: WorkerRecord, node: Node) -> None:
        assert worker.ready
        assert node.seq == worker.seq
        needs = [dep for dep in node.deps if dep.outcome is None]
        if needs:  # it follows what it waits for
            (dep,) = needs
            before = worker.inflight[node.seq - 1]
            assert dep.producer is before
            assert before.state is NodeState.ASSIGNED
            assert worker.kind is PROCESS
        assert not any(dep.failed for dep in node.deps)
        data = self._world.of(worker).data
        data.append(("run", node, node.seq, [dep.key for dep in needs]))

    def take_back(self, worker: WorkerRecord) -> None:
        self._world.of(worker).control.append(("take_back", worker.seq))

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        if force and worker.kind is PROCESS and self._world.of(worker).started == seq:
            self._world.doomed.append(self._world.of(worker))
            return
        self._world.of(worker).control.append(("interrupt", seq))
        self._world.interrupted.append((self._world.of(worker), seq))

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        starting = sum(w.record.kind is kind and not w.record.ready for w in self._world.workers)
        for _ in range(count - starting):
            self._world.spawn(kind)

    def resolve(self, record: ObjectRecord) -> None:
        waiters, record.waiters = record.waiters, None
        for waiter in waiters or ():
            waiter.on_done(record)

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        assert record.failed or not record.producer


class Question:
    """A task that waits for objects, until they are done, one has failed, or it is cancelled."""

    def __init__(self, world: World, worker: Worker, seq: int, wanted: list[ObjectRecord]) -> None:
        self.worker = worker
        self.seq = seq
        self.left = {record.key for record in wanted}
        self._world = world
        self._open = True
        for record in wanted:
            record.waiters = {**(record.waiters or {}), self: None}
        self._returned = world.loom.on_blocked(worker.record, seq)

    def on_done(self, record: ObjectRecord) -> None:
        self.left.discard(record.key)
        if not self.left or record.failed:
            self.answer(good=True)

    def answer(self, *, good: bool) -> None:
        if self._open:
            self.close()
            self._world.loom.on_unblocked(self.worker.record)
            self.worker.data.append(("reply", self._returned, good))

    def close(self) -> None:
        self._open = False
        if self in self._world.questions:
            self._world.questions.remove(self)


class World(Core):
    """A session of simulated workers; steps are taken by whoever drives it."""

    def __init__(self, *, cpus: float, max_processes: int, resources: dict[str, float]) -> None:
        self.workers: list[Worker] = []
        self.doomed: list[Worker] = []  # to be killed when the step is over
        self.interrupted: list[tuple[Worker, int]] = []
        self.questions: list[Question] = []
        super().__init__(
            cpus=cpus, max_processes=max_processes, resources=resources, outbox=_Wires(self)
        )
        self.last_outcome: dict[int, object] = {}

    def of(self, record: WorkerRecord) -> Worker:
        return next(worker for worker in self.workers if worker.record is record)

    def spawn(self, kind: WorkerKind) -> Worker:
        self._numbers += 1
        worker = Worker(WorkerRecord(self._numbers, kind))
        self.workers.append(worker)
        self.loom.on_worker_started(worker.record)
        return worker

    # -- steps --------------------------------------------------------------------------------

    def settle(self) -> None:
        """The end of each batch of events: a pass of the scheduler, and what was put off."""
        while self.doomed or self.interrupted:
            for worker, seq in self._taken(self.interrupted):
                for question in [q for q in self.questions if q.worker is worker and q.seq == seq]:
                    question.answer(good=False)
            for worker in self._taken(self.doomed):
                if worker in self.workers:
                    self.kill(worker)
        self.loom.schedule()
        self.check()

    @staticmethod
    def _taken(some: list[Any]) -> list[Any]:
        taken = some[:]
        some.clear()
        return taken

    def deliver_up(self, worker: Worker) -> None:
        """The driver hears what a worker has said first."""
        loom, record = self.loom, worker.record
        what, *content = worker.up.popleft()
        if what == "ready":
            loom.on_worker_ready(record)
        elif what == "done":
            seq, seconds, contains = content
            count = worker.nodes[seq].spec.num_returns
            loom.on_done(record, seq, [b"value"] * count, [contains] * count, seconds)
        elif what == "failed":
            seq, cancelled, retry = content
            error = None if cancelled else Trouble(f"raised as {seq} of {record!r}")
            loom.on_failed(record, seq, error, retry=retry, seconds=LONG_S)
        elif what == "returned":
            loom.on_returned(record, *content)
        elif what == "ask":
            seq, keys = content
            known = [self.loom.graph.objects.get(key) for key in keys]
            wanted = [one for one in known if one is not None and one.outcome is None]
            if not wanted or any(one is not None and one.failed for one in known):
                worker.data.append(("reply", 0, True))
            elif seq in record.inflight and record.inflight[seq].state is NodeState.CANCELLED:
                worker.data.append(("reply", 0, False))
            else:
                self.questions.append(Question(self, worker, seq, wanted))
        else:
            assert what == "submit"
            submit: Callable[[], object] = content[0]
            submit()

    def ask(self, worker: Worker, wanted: list[Node | ObjectRecord]) -> None:
        """The task that a worker runs waits for objects, in the worker's main thread."""
        worker.waits_for_reply = True
        keys = tuple(record_of(of).key for of in wanted)
        worker.up.append(("ask", worker.running[0], keys))

    def submit_child(self, worker: Worker, seq: int, deps: list[ObjectRecord], **kw: Any) -> None:
        """A task submits a call; the driver hears of it when the message is delivered."""

        def submit() -> None:
            alive = [dep for dep in deps if dep.key in self.loom.graph.objects]
            parent = worker.record.inflight.get(seq)
            self.submit(alive, parent=parent, by=worker.record, **kw)

        worker.up.append(("submit", submit))

    def kill(self, worker: Worker) -> None:
        """A worker dies; what it had said before is heard, what it was sent is lost."""
        while worker.up:
            self.deliver_up(worker)
        for question in [q for q in self.questions if q.worker is worker]:
            question.close()
        self.workers.remove(worker)
        self.loom.on_worker_lost(worker.record, worker.started, lambda node: Trouble("crash"))

    # -- a kind world -------------------------------------------------------------------------

    def take_a_kind_step(self) -> bool:
        """Let one thing happen that has to happen sooner or later; False when there is none."""
        for worker in self.workers:
            if worker.up:
                self.deliver_up(worker)
            elif worker.control:
                worker.hear_control()
            elif worker.data:
                worker.hear_data()
            elif worker.can_end():
                worker.finish(0, seconds=SHORT_S)
            elif worker.can_start():
                worker.start()
            else:
                continue
            self.settle()
            return True
        return False

    def run_kindly(self, most: int = 20_000) -> None:
        """From now on nothing bad happens: everything must come to an end by itself."""
        self.settle()
        for _ in range(most):
            if not self.take_a_kind_step():
                return
        raise AssertionError(f"still going on after {most} steps")
