"""Random sessions: whatever happens in whatever order, all tables agree and everything ends."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loom_driver import LONG_S, LOOP, SHORT_S
from loom_world import World, Worker

from taskloom._core.node import Node, ObjectRecord
from taskloom._core.states import TERMINAL, NodeState

pick = st.integers(0, 1 << 16)
functions = st.sampled_from(["f", "g", "h"])


class Session(RuleBasedStateMachine):
    """Callers, workers and the streams between them, one step at a time."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.refs: list[ObjectRecord] = []  # one entry for each ref that the driver has
        self.nodes: list[Node] = []
        self.ended: dict[int, tuple[NodeState, object]] = {}
        self.waits: list[tuple[ObjectRecord, list[ObjectRecord]]] = []

    @initialize(
        cpus=st.sampled_from([0, 1, 2, 3]), extra=st.integers(0, 3), short=st.sets(functions)
    )
    def begin(self, cpus: int, extra: int, short: set[str]) -> None:
        self.world = World(cpus=cpus, max_processes=max(1, cpus) + extra, resources={"tpu": 1})
        for function in short:
            self.world.learn(function)

    # -- callers ------------------------------------------------------------------------------

    @rule(
        deps=st.lists(pick, max_size=4),
        nested=st.lists(pick, max_size=2),
        cpus=st.sampled_from([1, 1, 1, 0, 0.5, 2]),
        tpu=st.sampled_from([0, 0, 0, 0.5, 1]),
        function=functions,
        coroutine=st.sampled_from([False, False, False, True]),
        priority=st.sampled_from([0, 0, 0, 1]),
        retries=st.sampled_from([0, 1, 3, -1]),
        num_returns=st.sampled_from([1, 1, 1, 0, 2]),
        times=st.sampled_from([1, 1, 1, 5]),
    )
    def submit(self, deps: list[int], nested: list[int], tpu: float, times: int, **kw: Any) -> None:
        for _ in range(times):
            node = self.world.submit(
                self._some(deps), nested=self._some(nested), needs={"tpu": tpu}, **kw
            )
            self.nodes.append(node)
            self.refs += node.outputs
        self.world.settle()

    @rule(contains=st.lists(pick, max_size=3))
    def put(self, contains: list[int]) -> None:
        self.refs.append(self.world.put(contains=self._some(contains)))

    @precondition(lambda self: self.refs)
    @rule(which=pick)
    def drop(self, which: int) -> None:
        self.world.drop(self.refs.pop(which % len(self.refs)))
        self.world.settle()

    @precondition(lambda self: self.refs)
    @rule(which=pick)
    def copy_ref(self, which: int) -> None:
        record = self.refs[which % len(self.refs)]
        self.world.copy_ref(record)
        self.refs.append(record)

    @precondition(lambda self: self.refs)
    @rule(which=pick, force=st.booleans(), recursive=st.booleans())
    def cancel(self, which: int, force: bool, recursive: bool) -> None:
        record = self.refs[which % len(self.refs)]
        self.world.cancel(record, force=force, recursive=recursive)
        self.world.settle()

    @precondition(lambda self: self.refs)
    @rule(which=pick)
    def wait_for(self, which: int) -> None:
        record = self.refs[which % len(self.refs)]
        self.waits.append((record, self.world.watch(record)))

    # -- what workers do ----------------------------------------------------------------------

    @rule(which=pick, what=st.sampled_from(["up", "data", "control", "start"]), times=pick)
    def go_on(self, which: int, what: str, times: int) -> None:
        for _ in range(1 + times % 4):
            worker = self._worker(
                which,
                {
                    "up": lambda worker: bool(worker.up),
                    "data": lambda worker: bool(worker.data) and self._reads(worker),
                    "control": lambda worker: bool(worker.control),
                    "start": Worker.can_start,
                }[what],
            )
            if worker is None:
                return
            if what == "up":
                self.world.deliver_up(worker)
            elif what == "data":
                worker.hear_data()
            elif what == "control":
                worker.hear_control()
            else:
                worker.start()
            self.world.settle()

    @rule(which=pick, task=pick, seconds=st.sampled_from([SHORT_S, LONG_S]))
    def finish(self, which: int, task: int, seconds: float) -> None:
        if worker := self._worker(which, Worker.can_end):
            held = tuple(worker.record.borrowed)
            contains = held[task % len(held) :][:2] if held else ()
            worker.finish(task, seconds=seconds, contains=contains)

    @rule(which=pick, task=pick, retry=st.booleans())
    def fail(self, which: int, task: int, retry: bool) -> None:
        if worker := self._worker(which, Worker.can_end):
            worker.fail(task, retry=retry)

    @rule(which=pick, wanted=st.lists(pick, min_size=1, max_size=3))
    def block(self, which: int, wanted: list[int]) -> None:
        """A task calls ``get`` for what was submitted before it, so nobody waits in a circle."""
        worker = self._worker(which, lambda worker: worker.can_end() and not worker.is_loop)
        if worker is None:
            return
        node = worker.nodes[worker.running[0]]
        if any(name == "tpu" for name, _ in node.spec.request):
            return  # only CPUs are lent: two that wait with a whole one each would be stuck
        older = [n for n in self.nodes if n.order < node.order and n.outputs]
        older += [child for child in (node.children or {}).values() if child.outputs]
        if older:
            self.world.ask(worker, [older[index % len(older)] for index in wanted])

    @rule(which=pick, task=pick, deps=st.lists(pick, max_size=2), function=functions)
    def submit_from_task(self, which: int, task: int, deps: list[int], function: str) -> None:
        worker = self._worker(which, Worker.can_end)
        if worker is not None:
            seq = worker.running[task % len(worker.running)]
            node = worker.nodes[seq]
            # What a task passes on was submitted before it, or it would have no ref to it.
            known = [r for r in self._some(deps) if r.producer is None or self._is_older(r, node)]
            self.world.submit_child(worker, seq, known, function=function)

    @rule(which=pick, task=pick)
    def wait_in_a_thread(self, which: int, task: int) -> None:
        """A thread of a worker asks, and is answered at once: work goes away and comes back."""
        if worker := self._worker(which, lambda worker: worker.record.ready):
            self.world.block(worker.record)
            self.world.settle()
            self.world.unblock(worker.record)
            self.world.settle()

    @precondition(lambda self: self.refs)
    @rule(which=pick, ref=pick)
    def borrow(self, which: int, ref: int) -> None:
        if worker := self._worker(which, lambda worker: worker.record.ready):
            self.world.borrow(worker.record, self.refs[ref % len(self.refs)])

    @rule(which=pick, ref=pick)
    def release(self, which: int, ref: int) -> None:
        if worker := self._worker(which, lambda worker: bool(worker.record.borrowed)):
            keys = list(worker.record.borrowed)
            self.world.loom.on_release(worker.record, [keys[ref % len(keys)]])
            self.world.check()

    # -- what happens to workers --------------------------------------------------------------

    @rule(coroutines=st.booleans())
    def worker_up(self, coroutines: bool) -> None:
        if coroutines and len(self.world.workers) < 6:
            self.world.spawn(LOOP)

    @rule(which=pick)
    def worker_down(self, which: int) -> None:
        if worker := self._worker(which, lambda worker: True):
            self.world.kill(worker)
            self.world.settle()

    @rule(which=pick)
    def retire(self, which: int) -> None:
        """The pool hangs up on an idle worker."""

        def idle(worker: Worker) -> bool:
            record = worker.record
            rests = not (worker.up or worker.data or worker.control or worker.running)
            free = not (record.inflight or record.pending_requests or record.borrowed)
            return record.ready and rests and free

        if worker := self._worker(which, idle):
            self.world.loom.on_worker_retired(worker.record)
            self.world.workers.remove(worker)
            self.world.settle()

    @rule()
    def look_for_long_tasks(self) -> None:
        self.world.loom.check_progress()
        self.world.check()

    # -- what must always hold ----------------------------------------------------------------

    @invariant()
    def what_has_ended_stays_as_it_is(self) -> None:
        self.world.check()
        for node in self.nodes:
            outcomes = tuple(record.outcome for record in node.outputs)
            if node.state in TERMINAL:
                before = self.ended.setdefault(node.key, (node.state, outcomes))
                assert before == (node.state, outcomes), "what has ended has changed"
                assert None not in outcomes
            else:
                assert not any(outcomes)
                budget = node.spec.max_retries
                assert budget < 0 or node.attempt <= budget + 1
        for record, told in self.waits:
            assert told == ([record] if record.outcome is not None else [])

    def teardown(self) -> None:
        """If the world is kind from now on, everything ends and nothing is left."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.run_kindly()
        left = [node for node in self.nodes if node.state not in TERMINAL]
        assert not left, f"never ended: {left}"
        assert not world.questions
        assert world.is_at_rest(), "something is still taken"
        world.drop(*self.refs)
        for worker in world.workers:
            world.loom.on_release(worker.record, list(worker.record.borrowed))
        assert not world.loom.graph.objects, "an object is kept for nobody"

    # -- choosing -----------------------------------------------------------------------------

    def _some(self, picks: list[int]) -> list[ObjectRecord]:
        return [self.refs[index % len(self.refs)] for index in picks if self.refs]

    def _worker(self, which: int, fits: Any) -> Worker | None:
        fitting = [worker for worker in self.world.workers if fits(worker)]
        return fitting[which % len(fitting)] if fitting else None

    @staticmethod
    def _is_older(record: ObjectRecord, node: Node) -> bool:
        return record.producer is not None and record.producer.order < node.order

    @staticmethod
    def _reads(worker: Worker) -> bool:
        """A PROCESS worker reads its data stream only when it has nothing else to do."""
        busy = bool(worker.running) and not worker.waits_for_reply
        return worker.is_loop or not (busy or worker.queue)


Session.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestSession = Session.TestCase
