"""Runs plans: a session with a virtual clock, fake workers and all the bad luck that there is.

Everything takes its time from one clock and its dice from one seed, so a run can be repeated.
After each event all tables are compared (``invariants``), and the judge compares them with the
world.  When the plan is through nothing bad happens any more: everything must come to an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from loom_bodies import STEPS, Body, item_of
from loom_driver import LOOP, Trouble
from loom_plan import Call, Plan
from loom_worker import Stream, Worker
from loom_world import Clock, World

from taskloom._core.deadlock import find_circle
from taskloom._core.node import Node, ObjectRecord
from taskloom._core.scopes import Scope
from taskloom._core.states import NodeState
from taskloom._wire import messages as m
from taskloom.generator import END, STOP

PROGRESS_CHECK_S = 0.005
MAX_FAILED_STARTS = 5
MOST_STEPS = 20_000
_TWICE_AT_ONCE = frozenset({m.READY, m.BORROW, m.RELEASE})
_TWICE = frozenset({m.DONE, m.FAILED, m.RETURNED})


class Hand:
    """What the simulation knows of a worker beyond the protocol."""

    def __init__(self) -> None:
        self.arrived: Counter[int] = Counter()  # by stream: delivered, not looked at yet
        self.last: dict[int, float] = {}  # by stream: when the last message arrives
        self.refs: Counter[int] = Counter()  # objects to which refs live here
        self.stopped = False
        self.put_off: list[Callable[[], None]] = []  # until it is continued, or its loop turns
        self.due = False  # the driver is about to read


class Simulation(World):
    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.rng = Random(plan.seed ^ 0x5EED)
        self.plan = plan
        self.trace: list[str] | None = [] if trace else None
        self.hands: dict[int, Hand] = {}
        self.bodies: dict[tuple[int, int], Body] = {}
        self.calls: dict[int, Call] = {}
        self.own: list[ObjectRecord] = []  # one entry for each ref that the driver has
        self.nodes: list[Node] = []
        self.groups: list[Scope] = []
        self.consumed: dict[Node, list[Any]] = {}  # what the driver has had of each stream
        self.items: list[ObjectRecord] = []  # those refs
        self.watches: list[tuple[ObjectRecord, list[ObjectRecord]]] = []
        self.threads: dict[tuple[int, int], tuple[int, ...]] = {}
        self.broken = False
        self._failed_starts = 0
        self._bad_starts = self.rng.choice((0.3, 0.3, 0.9))
        self._timer = False
        self.steps = self.crashes = 0
        super().__init__(
            cpus=plan.cpus,
            max_processes=plan.cpus + plan.extra,
            resources={"tpu": 1},
            gpus=plan.gpus,
            clock=Clock(self.rng.random),
            checks=False,
            grace_s=plan.grace_s,
        )
        self.loom.deadlines._dice = self.rng.random
        for function in plan.known:
            self.learn(function)
        if trace:
            self.loom.graph.observer = lambda node, old, new, why: self.say(
                f"{node.spec.name} {node.key >> 20:x}: {old.name} -> {new.name}, {why}"
            )

    def run(self) -> None:
        """All of the plan, and what follows from it.

        Raises:
            AssertionError, InternalError: something is wrong.
        """
        for action in self.plan.actions:
            self.clock.call_later(action[0], self._act, *action[1:])
        self._go_to_the_end()
        while groups := [scope for scope in self.open_groups() if not scope.inner]:
            self.close_scope(groups[-1])
            self.settle()
            self._go_to_the_end()
        self._check_streams()
        self.drop(*self.items)
        assert not self.loom.scopes.open, "a group has no end"
        self.drop(*(record for scope in self.groups for record in (scope.end, scope.alarm)))
        self.judge.check_end(self.nodes)
        for record, told in self.watches:
            assert told == [record]
        assert not self.requests.open, "a question is open"
        self.drop(*self.own)
        for worker in self.workers:
            self.loom.on_release(worker.record, list(worker.record.borrowed))
        self.check_all()
        self.judge.check_empty()

    def _go_to_the_end(self) -> None:
        while True:
            while self.clock.step():
                self.steps += 1
                assert self.steps < MOST_STEPS, "it goes on for ever"
            # In the end the driver takes all that there is: nobody stands still for ever.
            if not sum(self._take(node, 1 << 20) for node in self.consumed):
                return
            self.settle()

    def _take(self, node: Node, most: int) -> int:
        """The driver takes items that are there; how many."""
        stream, had = node.stream, self.consumed[node]
        assert stream is not None
        count = 0
        while count < most and stream.items and stream.items[0].outcome not in (None, END):
            record = stream.items.popleft()
            record.seen = True
            self.items.append(record)
            self.refs[record] += 1
            had.append(record.outcome)
            self.loom.streams.on_taken(stream)
            count += 1
        return count

    def _check_streams(self) -> None:
        """Each item was observed once and in order; an error comes last; and then the end."""
        for node, had in self.consumed.items():
            stream, call = node.stream, self.calls[node.key]
            assert stream is not None
            error = had.pop() if had and isinstance(had[-1], Trouble) else None
            assert had == [item_of(node.key, index) for index in range(len(had))]
            if stream.dropped:
                continue
            assert [record.outcome for record in stream.items] == [END]
            if error is None:
                assert node.state is NodeState.FINISHED
                assert len(had) == sum(step[0] == "yield" for step in call.body)
            else:
                assert error is stream.completed.outcome
            self.loom.streams.on_drop(stream)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.clock.now * 1000:10.3f} ms  {text}")

    # -- the driver ---------------------------------------------------------------------------

    def _act(self, what: str, *content: Any) -> None:
        self.say(f"the driver: {what} {content}")
        if what == "submit":
            call: Call = content[0]
            records = [self.own[pick % len(self.own)] for pick in call.deps if self.own]
            nested = [self.own[pick % len(self.own)] for pick in call.nested if self.own]
            groups = self.open_groups()
            scope = groups[call.group % len(groups)] if groups and call.group >= 0 else None
            node = self.call(call, records, nested, scope=scope)
            self.own += node.outputs
            if node.stream is not None:
                self.consumed[node] = []
        elif what in ("take", "drop stream"):
            self._act_on_stream(what, *content)
        elif what == "put":
            inner = [self.own[pick % len(self.own)] for pick in content[0] if self.own]
            self.own.append(self.put(contains=inner))
        elif what in ("group", "close", "cancel group", "release"):
            self._act_on_group(what, content[0])
        elif what == "spawn":
            if len(self.workers) < 6:
                self.spawn(LOOP)
        elif what in ("kill", "stop", "retire"):
            if self.workers:
                self._hurt(what, self.workers[content[0] % len(self.workers)], content[1])
        elif self.own:
            self._act_on(what, self.own[content[0] % len(self.own)], content)
        self.settle()

    def _act_on(self, what: str, record: ObjectRecord, content: tuple[Any, ...]) -> None:
        if what == "cancel":
            self.cancel(record, force=content[1], recursive=content[2])
        elif what == "watch":
            self.watches.append((record, self.watch(record)))
        elif what == "copy":
            self.copy_ref(record)
            self.own.append(record)
        else:
            if what == "abandon":
                self.abandon(record)
            self.own.remove(record)
            self.drop(record)

    def _act_on_stream(self, what: str, pick: int, most: int = 0) -> None:
        if not self.consumed:
            return
        node = list(self.consumed)[pick % len(self.consumed)]
        assert node.stream is not None
        if what == "take":
            self._take(node, most)
        else:
            self.judge.on_dropped(node.key)
            self.loom.streams.on_drop(node.stream)

    def open_groups(self) -> list[Scope]:
        return [scope for scope in self.loom.scopes.open.values() if not scope.closed]

    def _act_on_group(self, what: str, pick: int) -> None:
        groups = self.open_groups()
        if what == "group":
            inside = groups[pick % len(groups)] if groups and pick % 3 else None
            self.groups.append(self.open_scope(inside))
            return
        if not groups:
            return
        scope = groups[pick % len(groups)]
        if what == "release" and scope.members:
            members = [scope.nodes[key] for key in scope.members]
            self.release_from(scope, members[pick % len(members)])
        elif what == "cancel group":
            self.cancel_scope(scope)
        elif what == "close" and not scope.inner:  # as blocks do: the inner one ends first
            self.close_scope(scope)

    def _hurt(self, what: str, worker: Worker, seconds: float) -> None:
        if what == "kill":
            self.die(worker)
        elif what == "retire":
            if worker.is_idle() and worker.alive:
                self.loom.on_worker_retired(worker.record)
                self._forget(worker)
        elif not self.hands[worker.record.number].stopped:
            self.hands[worker.record.number].stopped = True
            self.clock.call_later(seconds, self._continue, worker)

    def _continue(self, worker: Worker) -> None:
        hand = self.hands[worker.record.number]
        hand.stopped = False
        self._resume(worker)

    def _resume(self, worker: Worker) -> None:
        """What was put off is done now; some of it may be put off again."""
        hand = self.hands[worker.record.number]
        put_off, hand.put_off = hand.put_off, []
        for call in put_off:
            call()
        self._pump(worker)

    def call(self, call: Call, deps: list[ObjectRecord], nested: Any, **how: Any) -> Node:
        key = how.pop("key", 0) or self._mint.next_task()
        self.calls[key] = call
        node = self.submit(
            deps, nested=nested, cpus=call.cpus, needs={"tpu": call.tpu, "GPU": call.gpu},
            function=call.function, coroutine=call.coroutine, priority=call.priority,
            retries=call.retries, num_returns=call.returns, pace=call.pace, key=key,
            stream=call.stream if call.stream >= 0 else None, **how,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def next_key(self) -> int:
        return self._mint.next_task()

    def enter(self, node: Node) -> None:
        if self.broken:
            self.loom.graph.add(node)
            self.loom.graph.fail(node, Trouble("broken", 0), "workers cannot be started")
        else:
            super().enter(node)

    def settle(self) -> None:
        super().settle()
        if self.plan is not None:
            self.check_all()
            assert not find_circle(self.loom, self.requests.waits()), "nobody waits in a circle"
            if not self.broken:
                self.judge.check_busy()
            if not self._timer and any(len(w.record.inflight) > 1 for w in self.workers):
                self._timer = True
                self.clock.call_later(PROGRESS_CHECK_S, self._check_progress)

    def _check_progress(self) -> None:
        self._timer = self.loom.check_progress()
        if self._timer:
            self.clock.call_later(PROGRESS_CHECK_S, self._check_progress)

    # -- streams ------------------------------------------------------------------------------

    def _delay(self) -> float:
        roll = self.rng.random()
        return 0.0 if roll < 0.5 else 0.000_03 if roll < 0.8 else self.rng.expovariate(1000)

    def on_spawned(self, worker: Worker) -> None:
        self.hands[worker.record.number] = Hand()
        rng, faults = self.rng, self.plan.faults
        delay = rng.expovariate(2) if "slow start" in faults and rng.random() < 0.4 else 0.004
        if "bad start" in faults and rng.random() < self._bad_starts:
            self.clock.call_later(delay, self.die, worker)
        else:
            self.clock.call_later(delay, self._started, worker)

    def _started(self, worker: Worker) -> None:
        if worker.alive:
            worker.up.append((m.READY, 0))

    def on_sent(self, worker: Worker, stream: Stream) -> None:
        hand = self.hands[worker.record.number]
        name = id(stream)
        at = max(self.clock.now + self._delay(), hand.last.get(name, 0.0))
        hand.last[name] = at
        # In order, whatever the dice say of what happens at one time: see ``_arrive``.
        self.clock.call_later(at - self.clock.now, self._arrive, worker, stream)

    def _arrive(self, worker: Worker, stream: Stream) -> None:
        hand = self.hands.get(worker.record.number)
        if hand is None or worker.record.number not in self.by_number:
            return
        hand.arrived[id(stream)] += 1
        if stream is not worker.up:
            self._pump(worker)
        elif not hand.due:
            hand.due = True
            self.clock.call_later(0.0 if self.rng.random() < 0.7 else 0.000_5, self._read, worker)

    def _read(self, worker: Worker) -> None:
        """The driver reads what has arrived, in one batch."""
        hand = self.hands.get(worker.record.number)
        if hand is None or worker.record.number not in self.by_number:
            return
        hand.due = False
        for _ in range(min(hand.arrived[id(worker.up)], len(worker.up))):
            self.deliver_up(worker)
        hand.arrived[id(worker.up)] = 0
        self.settle()

    def deliver_up(self, worker: Worker) -> None:
        message = worker.up[0]
        self.say(f"the driver hears {worker.record.number}: {_text(message)}")
        super().deliver_up(worker)
        if message[0] == m.READY:
            self._failed_starts = 0
        if "duplicate" in self.plan.faults and self.rng.random() < 0.2:
            if message[0] in _TWICE_AT_ONCE:
                self._handlers[message[0]](worker, message)
            elif message[0] in _TWICE:
                self.clock.call_later(self._delay(), self._hear_again, worker, message)

    def _hear_again(self, worker: Worker, message: tuple[Any, ...]) -> None:
        if worker.record.number in self.by_number:
            self._handlers[message[0]](worker, message)
            self.settle()

    # -- workers ------------------------------------------------------------------------------

    def _pump(self, worker: Worker) -> None:
        """The worker does what it can do now."""
        hand = self.hands[worker.record.number]
        data, control = id(worker.data), id(worker.control)
        while worker.alive and not hand.stopped:
            if hand.arrived[control]:
                hand.arrived[control] -= 1
                if worker.control:  # else it was heard before its time: see ``heed``
                    worker.hear_control()
            elif hand.arrived[data] and worker.reads_data():
                hand.arrived[data] -= 1
                worker.hear_data()
            elif worker.can_start():
                if self.rng.random() < 0.5:
                    worker.flush()
                worker.start()
            else:
                if not worker.running:
                    worker.flush()
                return

    def later(self, body: Body, seconds: float) -> None:
        self.clock.call_later(seconds, self._go_on, body)

    def _go_on(self, body: Body) -> None:
        """The body of a call does the next things, up to one that takes time."""
        worker = body.worker
        if body.over or not worker.alive:
            return
        hand = self.hands[worker.record.number]
        if hand.stopped or worker.stalls:
            hand.put_off.append(lambda: self._go_on(body))
            return
        steps = body.call.body
        while not body.over and worker.alive:
            if body.next == len(steps):
                self._return(body)
                break
            step = steps[body.next]
            body.next += 1
            if not STEPS[step[0]](self, body, step):
                return  # it goes on when something has happened
        self._pump(worker)

    def on_begun(self, worker: Worker, seq: int) -> None:
        super().on_begun(worker, seq)
        node = worker.nodes[seq]
        self.say(f"{worker.record.number} begins {node.key >> 20:x} as {seq}")
        body = Body(worker, seq, self.calls[node.key], self.clock.now)
        self.bodies[worker.record.number, seq] = body
        hand = self.hands[worker.record.number]
        for key in body.refs:
            if not hand.refs[key]:
                worker.post((m.BORROW, (key,)))
            hand.refs[key] += 1
        self.later(body, 0.0)

    def _return(self, body: Body) -> None:
        worker = body.worker
        contains = tuple(body.refs[:2]) if self.rng.random() < 0.2 else ()
        hold = "hold" in self.plan.faults and not worker.is_loop and self.rng.random() < 0.7
        self._end(body)
        worker.finish(body.seq, seconds=self.clock.now - body.began, contains=contains, hold=hold)
        if body.keeps_s >= 0:
            self.clock.call_later(body.keeps_s, self._release_late, body)
        else:
            self._release(body)

    def fail_body(self, body: Body, *, retry: bool = False, cancelled: bool = False) -> None:
        self._end(body)
        body.worker.fail(body.seq, retry=retry, cancelled=cancelled)
        self._release(body)

    def _end(self, body: Body) -> None:
        body.over = True
        del self.bodies[body.worker.record.number, body.seq]
        if body.awaits:
            body.worker.post((m.UNWATCH, body.asks))

    def _release_late(self, body: Body) -> None:
        if body.worker.alive:
            self._release(body)
            body.worker.flush()

    def _release(self, body: Body) -> None:
        refs = self.hands[body.worker.record.number].refs
        if body.room:
            self._leave_room(body)
        for key in body.refs:
            refs[key] -= 1
            if not refs[key]:
                body.worker.post((m.RELEASE, (key,)))

    def on_interrupted(self, worker: Worker, seq: int) -> None:
        body = self.bodies[worker.record.number, seq]
        if not body.ignores:
            self.fail_body(body, cancelled=True)
        elif body.asks and not body.awaits:
            # It was told in an answer that is none: whoever cleans up asks again.
            body.asks = worker.ask(m.GET, body.asked, None)

    def _leave_room(self, body: Body) -> None:
        body.worker.post((m.RELEASE, (body.room,)))
        del self.hands[body.worker.record.number].refs[body.room]
        body.room = 0

    def _on_room(self, body: Body, outcome: Any) -> None:
        """What a body heard that had yielded enough."""
        body.asks, body.asked = 0, ()
        self._leave_room(body)
        if isinstance(outcome, Trouble) or outcome == STOP:
            self.fail_body(body, cancelled=True)
            return
        if outcome == END:
            body.limit = 0
        else:
            body.taken = int(outcome)
        self.later(body, 0.0)

    def on_reply(self, worker: Worker, number: int, answer: Any) -> None:
        keys = self.threads.pop((worker.record.number, number), None)
        for body in list(self.bodies.values()):
            if body.worker is worker and body.asks == number and not body.awaits:
                if body.room:
                    self._on_room(body, answer[0])
                    continue
                body.asks = 0
                keys = body.asked
                self.later(body, 0.0)
                if body.strict and any(isinstance(one, Trouble) for one in answer):
                    self.fail_body(body)
        for key, outcome in zip(keys or (), answer, strict=False):
            if isinstance(outcome, bytes):
                assert outcome == self.judge.expected[key], "a wrong answer"
        self._resume(worker)

    def on_notice(self, worker: Worker, number: int, key: int, outcome: Any) -> None:
        for body in list(self.bodies.values()):
            if body.worker is worker and body.asks == number and body.awaits:
                if body.room:
                    body.awaits = set()
                    self._on_room(body, outcome)
                    continue
                assert isinstance(outcome, Trouble) or outcome == self.judge.expected[key]
                body.awaits.discard(key)
                if body.strict and isinstance(outcome, Trouble):
                    self.fail_body(body)
                elif not body.awaits:
                    body.asks = 0
                    self.later(body, 0.0)

    def die(self, worker: Worker) -> None:
        """A process ends; the driver notices before long."""
        if worker.alive:
            self.say(f"{worker.record.number} dies")
            worker.alive = False
            self.clock.call_later(self._delay(), self._notice_death, worker)

    def on_kill_order(self, worker: Worker) -> None:
        self.die(worker)

    def _notice_death(self, worker: Worker) -> None:
        self.say(f"the driver notices that {worker.record.number} has died")
        never_ready = not worker.record.ready
        self.kill(worker)
        self._forget(worker)
        if never_ready and not worker.record.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                self.broken = True
                self.loom.fail_everything(Trouble("broken", 0), "workers cannot be started")
        self.settle()

    def _forget(self, worker: Worker) -> None:
        worker.alive = False
        number = worker.record.number
        if worker in self.workers:
            self.workers.remove(worker)
            del self.by_number[number]
        for place in [place for place in self.bodies if place[0] == number]:
            self.bodies.pop(place).over = True


def _text(message: tuple[Any, ...]) -> str:
    names = {value: name for name, value in vars(m).items() if name.isupper()}
    return f"{names.get(message[0])} {message[1:]}"
