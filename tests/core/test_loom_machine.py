"""Random sessions: whatever happens in whatever order, all tables agree and everything ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loom_driver import LONG_S, LOOP, SHORT_S
from loom_world import Worker, World

from taskloom._core.node import Node, ObjectRecord, WorkerRecord
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
        self.threads: list[WorkerRecord] = []  # workers of which a thread waits

    @initialize(
        cpus=st.sampled_from([1, 2, 3, 0]), extra=st.integers(0, 3), short=st.sets(functions)
    )
    def begin(self, cpus: int, extra: int, short: set[str]) -> None:
        self.world = World(cpus=cpus, max_processes=max(1, cpus) + extra, resources={"tpu": 1})
        for function in short:
            self.world.learn(function)

    # -- callers ------------------------------------------------------------------------------

    # No more at once: all of them are looked at after each step.
    @precondition(lambda self: len(self.world.loom.graph.nodes) < 20 and len(self.refs) < 40)
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
        times=st.sampled_from([1, 4, 8]),
    )
    def submit(self, deps: list[int], nested: list[int], tpu: float, times: int, **kw: Any) -> None:
        for _ in range(times):
            node = self.world.submit(
                self._some(deps), nested=self._some(nested), needs={"tpu": tpu}, **kw
            )
            self.nodes.append(node)
            self.refs += node.outputs
        self.world.settle()

    @precondition(lambda self: len(self.world.loom.graph.nodes) < 20 and len(self.refs) < 40)
    @rule(length=st.integers(2, 6), function=functions, retries=st.sampled_from([0, 1, -1]))
    def submit_chain(self, length: int, function: str, retries: int) -> None:
        """Each is the only one that waits for the one before: they may travel together."""
        node = None
        for _ in range(length):
            deps = [node] if node is not None else []
            node = self.world.submit(deps, function=function, retries=retries)
            self.nodes.append(node)
            self.refs += node.outputs
        self.world.settle()

    @precondition(lambda self: len(self.refs) < 40)
    @rule(contains=st.lists(pick, max_size=3))
    def put(self, contains: list[int]) -> None:
        self.refs.append(self.world.put(contains=self._some(contains)))

    @precondition(lambda self: self.refs)
    @rule(drops=st.lists(pick, max_size=8), copies=st.lists(pick, max_size=2))
    def drop(self, drops: list[int], copies: list[int]) -> None:
        for which in copies:
            record = self.refs[which % len(self.refs)]
            self.world.copy_ref(record)
            self.refs.append(record)
        for which in drops:
            if self.refs:
                self.world.drop(self.refs.pop(which % len(self.refs)))
        self.world.settle()

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

    @precondition(lambda self: self.world.workers)
    @rule(picks=st.lists(pick, min_size=1, max_size=12))
    def go_on(self, picks: list[int]) -> None:
        """Messages are delivered and tasks are started, in any order that streams allow."""
        for which in picks:
            steps: list[Callable[[], object]] = []
            for worker in self.world.workers:
                if worker.up:
                    steps.append(partial(self.world.deliver_up, worker))
                if worker.data and worker.reads_data():
                    steps.append(worker.hear_data)
                if worker.control:
                    steps.append(worker.hear_control)
                if worker.can_start():
                    steps.append(worker.start)
            if not steps:
                return
            steps[which % len(steps)]()
            self.world.settle()

    @precondition(lambda self: self._workers(Worker.can_end))
    @rule(
        picks=st.lists(st.tuples(pick, pick), min_size=1, max_size=6),
        how=st.sampled_from([SHORT_S, SHORT_S, LONG_S, "retry", "raise"]),
    )
    def end(self, picks: list[tuple[int, int]], how: float | str) -> None:
        """Tasks end; their workers take up the next ones."""
        for which, task in picks:
            able = self._workers(Worker.can_end)
            if not able:
                return
            worker = able[which % len(able)]
            if isinstance(how, float):
                # Only what is done: a result cannot contain a ref to itself, however far inside.
                borrowed = worker.record.borrowed.items()
                held = tuple(key for key, record in borrowed if record.outcome is not None)
                contains = held[task % len(held) :][:2] if held else ()
                worker.finish(task, seconds=how, contains=contains)
            else:
                worker.fail(task, retry=how == "retry")
            if worker.can_start():
                worker.start()

    @precondition(lambda self: self._workers(Worker.can_ask))
    @rule(which=pick, wanted=st.lists(pick, min_size=1, max_size=3), children=st.integers(0, 2))
    def block(self, which: int, wanted: list[int], children: int) -> None:
        """A task calls ``get`` for its children, or for what was submitted before itself."""
        able = self._workers(Worker.can_ask)
        worker = able[which % len(able)]
        seq = worker.running[0]
        node = worker.nodes[seq]
        for _ in range(children):
            self.world.submit_child(worker, seq, [])
        while children and worker.up:
            self.world.deliver_up(worker)
            self.world.settle()
        older = [n for n in self.nodes if self._may_wait_for(node, n.order) and n.outputs]
        known = list((node.children or {}).values()) or older
        if known and worker in self.world.workers and worker.can_ask():
            self.world.ask(worker, [known[index % len(known)] for index in wanted])

    @precondition(lambda self: self._workers(Worker.can_end))
    @rule(which=pick, task=pick, deps=st.lists(pick, max_size=2), function=functions)
    def submit_from_task(self, which: int, task: int, deps: list[int], function: str) -> None:
        able = self._workers(Worker.can_end)
        worker = able[which % len(able)]
        seq = worker.running[task % len(worker.running)]
        node = worker.nodes[seq]
        known = [
            record
            for record in self._some(deps)
            if record.producer is None or self._may_wait_for(node, record.producer.order)
        ]
        self.world.submit_child(worker, seq, known, function=function)

    @precondition(lambda self: self._workers(Worker.is_ready))
    @rule(which=pick, what=st.sampled_from(["wait", "borrow", "release"]), ref=pick)
    def talk(self, which: int, what: str, ref: int) -> None:
        """What threads of a worker do, whatever its main thread does meanwhile."""
        able = self._workers(Worker.is_ready)
        record = able[which % len(able)].record
        if what == "wait":
            if record in self.threads:
                self.threads.remove(record)
                self.world.unblock(record)
            else:
                self.threads.append(record)
                self.world.block(record)
        elif what == "borrow" and self.refs:
            self.world.borrow(record, self.refs[ref % len(self.refs)])
        elif what == "release" and record.borrowed:
            keys = list(record.borrowed)
            self.world.loom.on_release(record, [keys[ref % len(keys)]])
        self.world.settle()

    # -- what happens to workers --------------------------------------------------------------

    @precondition(lambda self: self.world.workers)
    @rule(which=pick, what=st.sampled_from(["dies", "retires", "loop", "watch", "watch"]))
    def change(self, which: int, what: str) -> None:
        workers = self.world.workers
        worker = workers[which % len(workers)]
        if what == "dies":
            self._forget_thread(worker)
            self.world.kill(worker)
        elif what == "retires" and worker.is_idle():
            self.world.loom.on_worker_retired(worker.record)
            workers.remove(worker)
        elif what == "loop" and len(workers) < 6:
            self.world.spawn(LOOP)
        else:
            self.world.loom.check_progress()
        self.world.settle()

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
        for record in self.threads:
            if record.number in world.loom.workers:
                world.unblock(record)
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

    def _workers(self, fits: Callable[[Worker], bool]) -> list[Worker]:
        return [worker for worker in self.world.workers if fits(worker)]

    def _forget_thread(self, worker: Worker) -> None:
        if worker.record in self.threads:
            self.threads.remove(worker.record)

    @staticmethod
    def _may_wait_for(node: Node, order: int) -> bool:
        """Nobody waits in a circle: for what came before, which cannot depend on the task.

        What came before a child may depend on its parent, which may wait for the child.
        """
        return node.depth == 0 and order < node.order


# Shrinking takes longer than a test may take: for a short story, remove ``phases`` and wait.
Session.TestCase.settings = settings(
    max_examples=100,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestSession = Session.TestCase
