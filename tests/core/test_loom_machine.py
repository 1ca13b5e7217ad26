"""Random sessions: whatever happens in whatever order, all tables agree and everything ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loom_driver import LONG_S, LOOP, SHORT_S
from loom_worker import Worker
from loom_world import World

from taskloom._core.deadlock import find_circle
from taskloom._core.node import Node, ObjectRecord, WorkerRecord
from taskloom._core.scopes import Scope
from taskloom._core.states import TERMINAL
from taskloom._spec import Pace
from taskloom._wire import messages as m

pick = st.integers(0, 1 << 16)
functions = st.sampled_from(["f", "g", "h"])
paces = st.sampled_from(
    [
        None,
        None,
        None,
        Pace(retry_delay_s=1.0),
        Pace(timeout_s=1.0),
        Pace(timeout_s=1.0, retry_delay_s=0.5, retries_timeouts=True),
        Pace(timeout_s=1.0, retries_timeouts=True),
    ]
)


class Session(RuleBasedStateMachine):
    """Callers, workers and the streams between them, one step at a time."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.refs: list[ObjectRecord] = []  # one entry for each ref that the driver has
        self.nodes: list[Node] = []
        self.waits: list[tuple[ObjectRecord, list[ObjectRecord]]] = []
        self.threads: list[WorkerRecord] = []  # workers of which a thread waits
        self.scopes: list[Scope] = []

    @initialize(
        cpus=st.sampled_from([1, 2, 3, 0]),
        extra=st.integers(0, 3),
        short=st.sets(functions),
        grace_s=st.sampled_from([None, 0.0, 2.0]),
    )
    def begin(self, cpus: int, extra: int, short: set[str], grace_s: float | None) -> None:
        self.world = World(
            cpus=cpus,
            max_processes=max(1, cpus) + extra,
            resources={"tpu": 1},
            gpus=2,
            grace_s=grace_s,
        )
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
        gpu=st.sampled_from([0, 0, 0, 0.5, 1, 2]),
        function=functions,
        coroutine=st.sampled_from([False, False, False, True]),
        priority=st.sampled_from([0, 0, 0, 1]),
        retries=st.sampled_from([0, 1, 3, -1]),
        num_returns=st.sampled_from([1, 1, 1, 0, 2]),
        pace=paces,
        times=st.sampled_from([1, 4, 8]),
        group=st.one_of(st.none(), pick, pick),
    )
    def submit(
        self,
        deps: list[int],
        nested: list[int],
        tpu: float,
        gpu: float,
        times: int,
        group: int | None,
        **kw: Any,
    ) -> None:
        scope = self._scope(group)
        for _ in range(times):
            needs = {"tpu": tpu, "GPU": gpu}
            node = self.world.submit(
                self._some(deps), nested=self._some(nested), needs=needs, scope=scope, **kw
            )
            self.nodes.append(node)
            self.refs += node.outputs
        self.world.settle()

    @precondition(lambda self: len(self.world.loom.graph.nodes) < 20 and len(self.refs) < 40)
    @rule(
        length=st.integers(2, 6),
        function=functions,
        retries=st.sampled_from([0, 1, -1]),
        pace=paces,
    )
    def submit_chain(self, length: int, function: str, retries: int, pace: Pace | None) -> None:
        """Each is the only one that waits for the one before: they may travel together."""
        node = None
        for _ in range(length):
            deps = [node] if node is not None else []
            node = self.world.submit(deps, function=function, retries=retries, pace=pace)
            self.nodes.append(node)
            self.refs += node.outputs
        self.world.settle()

    @precondition(lambda self: len(self.refs) < 40)
    @rule(contains=st.lists(pick, max_size=3))
    def put(self, contains: list[int]) -> None:
        self.refs.append(self.world.put(contains=self._some(contains)))

    @precondition(lambda self: self.refs)
    @rule(
        drops=st.lists(pick, min_size=1, max_size=8),
        copies=st.lists(pick, max_size=2),
        abandons=st.booleans(),
    )
    def drop(self, drops: list[int], copies: list[int], abandons: bool) -> None:
        for which in copies:
            record = self.refs[which % len(self.refs)]
            self.world.copy_ref(record)
            self.refs.append(record)
        if abandons and self.refs:
            self.world.abandon(self.refs[drops[0] % len(self.refs)])
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

    @rule(outer=st.one_of(st.none(), pick))
    def open_group(self, outer: int | None) -> None:
        if len(self.world.loom.scopes.open) < 4:
            self.scopes.append(self.world.open_scope(self._scope(outer)))

    @precondition(lambda self: any(s.active for s in self.world.loom.scopes.open.values()))
    @rule(which=pick, task=pick, what=st.sampled_from(["close", "cancel", "release"]))
    def end_group(self, which: int, task: int, what: str) -> None:
        scopes = [scope for scope in self.world.loom.scopes.open.values() if scope.active]
        scope = scopes[which % len(scopes)]
        if what == "close" and not scope.inner:  # as blocks do: the inner one ends first
            self.world.close_scope(scope)
        elif what == "cancel":
            self.world.cancel_scope(scope)
            if not scope.inner:
                self.world.close_scope(scope)
        elif what == "release" and scope.members:
            members = [scope.nodes[key] for key in scope.members]
            self.world.release_from(scope, members[task % len(members)])
        self.world.settle()

    @precondition(lambda self: self.world.workers)
    @rule(which=pick)
    def open_group_in_a_task(self, which: int) -> None:
        able = self._workers(Worker.can_end)
        if able and len(self.world.loom.scopes.open) < 4:
            worker = able[which % len(able)]
            owner = worker.record.inflight.get(worker.running[0])
            if owner is not None and owner.state not in TERMINAL:
                self.scopes.append(self.world.open_scope(owner=owner))

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
                if worker.held:
                    steps.append(worker.flush)
            if not steps:
                return
            steps[which % len(steps)]()
            self.world.settle()

    @precondition(lambda self: self._workers(Worker.can_end))
    @rule(
        picks=st.lists(st.tuples(pick, pick), min_size=1, max_size=6),
        how=st.sampled_from([SHORT_S, SHORT_S, LONG_S, "retry", "raise"]),
        hold=st.booleans(),
    )
    def end(self, picks: list[tuple[int, int]], how: float | str, hold: bool) -> None:
        """Tasks end; their workers take up the next ones."""
        for which, task in picks:
            able = self._workers(Worker.can_end)
            if not able:
                return
            worker = able[which % len(able)]
            seq = worker.running[task % len(worker.running)]
            if isinstance(how, float):
                # Only what is done: a result cannot contain a ref to itself, however far inside.
                borrowed = worker.record.borrowed.items()
                held = tuple(key for key, record in borrowed if record.outcome is not None)
                contains = held[task % len(held) :][:2] if held else ()
                worker.finish(seq, seconds=how, contains=contains, hold=hold)
            else:
                worker.fail(seq, retry=how == "retry")
            if worker.can_start():
                worker.start()

    @precondition(lambda self: self._workers(Worker.can_ask))
    @rule(
        which=pick,
        wanted=st.lists(pick, min_size=1, max_size=3),
        children=st.integers(0, 2),
        op=st.sampled_from([m.GET, m.GET, m.WAIT]),
        timeout=st.sampled_from([None, None, 0.0, 1.0]),
    )
    def block(
        self, which: int, wanted: list[int], children: int, op: int, timeout: float | None
    ) -> None:
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
        known = list(node.children) or older
        if known and worker in self.world.workers and worker.can_ask():
            keys = [known[index % len(known)].outputs[0].key for index in wanted]
            if op == m.GET:
                worker.ask(m.GET, keys, timeout)
            else:
                worker.ask(m.WAIT, list(dict.fromkeys(keys)), 1, timeout)

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

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 4.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.world.wait(seconds)
        self.world.settle()

    @precondition(lambda self: self._workers(Worker.can_end))
    @rule(which=pick)
    def go_deaf(self, which: int) -> None:
        """What a worker runs now will not listen when it is told to stop."""
        able = self._workers(Worker.can_end)
        worker = able[which % len(able)]
        worker.deaf.update(worker.running)

    # -- what must always hold ----------------------------------------------------------------

    @invariant()
    def what_has_ended_stays_as_it_is(self) -> None:
        self.world.check()
        self.world.judge.check_busy()
        for node in self.nodes:
            for record in node.outputs:
                assert (record.outcome is not None) == (node.state in TERMINAL)
        for record, told in self.waits:
            assert told == ([record] if record.outcome is not None else [])

    @invariant()
    def a_group_is_over_when_no_worker_has_any_of_it(self) -> None:
        for worker in self.world.loom.workers.values():
            for node in worker.inflight.values():
                assert node.scope is None or node.scope.end.outcome is None
        for scope in self.scopes:
            assert (scope.end.outcome is not None) == (scope.key not in self.world.loom.scopes.open)

    @invariant()
    def nobody_waits_in_a_circle(self) -> None:
        """Here nobody does, so none may be found."""
        waits = self.world.requests.waits()
        assert find_circle(self.world.loom, waits) == []

    def teardown(self) -> None:
        """If the world is kind from now on, everything ends and nothing is left."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for record in self.threads:
            if record.number in world.loom.workers:
                world.unblock(record)
        for scope in self.scopes:
            world.close_scope(scope)
        world.run_kindly()
        assert not world.loom.scopes.open, "a group has no end"
        assert not world.loom.scopes._owned
        for scope in self.scopes:
            world.drop(scope.end, scope.alarm)
        world.judge.check_end(self.nodes)
        world.drop(*self.refs)
        for worker in world.workers:
            world.loom.on_release(worker.record, list(worker.record.borrowed))
        world.judge.check_empty()

    # -- choosing -----------------------------------------------------------------------------

    def _some(self, picks: list[int]) -> list[ObjectRecord]:
        return [self.refs[index % len(self.refs)] for index in picks if self.refs]

    def _scope(self, which: int | None) -> Scope | None:
        if which is None:
            return None
        opened = [s for s in self.world.loom.scopes.open.values() if not s.closed]
        if not opened:
            opened = [self.world.open_scope()]
            self.scopes += opened
        return opened[which % len(opened)]

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
