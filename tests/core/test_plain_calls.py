"""Calls that are not nodes: what they save, and that nobody can tell them from nodes."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from loom_driver import SHORT_S, Core, Trouble
from tests.scale import scaled

from taskloom._core import graph as graph_module
from taskloom._core.node import Node, ObjectRecord, PlainCall, WorkerRecord
from taskloom._core.placement import RunTimes
from taskloom._core.states import NodeState
from taskloom.exceptions import InternalError

S = NodeState


def batch(count: int, *, retries: int = 0) -> tuple[Core, WorkerRecord, list[PlainCall]]:
    """One worker that has a node and, behind it, ``count`` calls."""
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn(seconds=SHORT_S)
    first, *calls = core.call_many(count + 1, retries=retries)
    core.loom.schedule()
    assert [first.key - 1] == [node.key for node in worker.nodes.values()]
    assert list(worker.calls.values()) == calls
    return core, worker, calls


def finish(core: Core, worker: WorkerRecord, *calls: PlainCall) -> None:
    """The worker brings their values, together."""
    seqs = {id(call): seq for seq, call in worker.calls.items()}
    core.loom.calls.on_done(
        worker,
        [seqs[id(call)] for call in calls],
        [value_of(call) for call in calls],
        [SHORT_S] * len(calls),
    )


def value_of(record: ObjectRecord) -> bytes:
    return f"value of {record.key:#x}".encode()


def node_of(core: Core, call: PlainCall) -> Node:
    node = core.loom.graph.node_of(call)
    assert node is not None
    return node


def test_calls_of_a_known_short_function_never_become_nodes() -> None:
    core, worker, calls = batch(10)
    finish(core, worker, *calls[:7])
    finish(core, worker, *calls[7:])
    assert [call.outcome for call in calls] == [value_of(call) for call in calls]
    assert all(call.producer is None for call in calls)
    assert core.loom.graph.count_pending() == 1


def test_a_worker_whose_last_call_is_done_is_free() -> None:
    core, worker, calls = batch(3)
    (first,) = worker.nodes.values()
    core.loom.on_done(worker, first.seq, (b"first",), (None,), SHORT_S)
    finish(core, worker, *calls[:2])
    assert worker.lease is not None
    finish(core, worker, *calls[2:])
    assert worker.lease is None
    core.check()
    assert core.is_at_rest()


def test_who_looks_at_a_call_in_its_line_finds_a_node_that_is_ready() -> None:
    core = Core(cpus=1, starts_workers=False)
    a, b = core.call_many(2)
    node = node_of(core, b)
    assert (node.state, node.attempt, node.key) == (S.READY, 0, b.key - 1)
    assert node_of(core, b) is node
    core.worker()
    core.loom.schedule()
    core.finish(node_of(core, a))
    core.finish(node)
    assert b.outcome is not None


def test_who_looks_at_a_call_that_a_worker_has_finds_its_node_and_those_before_it() -> None:
    core, worker, calls = batch(4)
    node = node_of(core, calls[1])
    assert (node.state, node.attempt, node.worker) == (S.ASSIGNED, 1, worker)
    assert worker.nodes[node.seq] is node
    assert list(worker.inflight) == sorted(worker.inflight)
    assert not worker.calls


def test_a_call_in_its_line_can_be_cancelled() -> None:
    core = Core(cpus=1, starts_workers=False)
    a, b, c = core.call_many(3)
    core.cancel(b)
    core.worker()
    assert core.outcome(b).cancelled
    for call in (a, c):
        core.finish(node_of(core, call))


def test_a_call_that_a_worker_has_can_be_cancelled() -> None:
    core, worker, calls = batch(3)
    core.cancel(calls[1])
    assert core.outcome(calls[1]).cancelled
    assert [verb[0] for verb in core.outbox.verbs if verb[0] == "interrupt"] == ["interrupt"]
    seq = next(seq for seq, node in worker.inflight.items() if node.state is S.CANCELLED)
    core.loom.on_failed(worker, seq, None, retry=False, seconds=0.0)
    core.check()


def test_what_a_worker_gives_back_is_still_no_node_and_comes_first() -> None:
    core, worker, calls = batch(4)
    core.loom.on_returned(worker, worker.oldest_seq + 1, worker.seq)
    assert list(worker.calls.values()) == calls[:1]
    assert all(call.is_plain for call in calls)
    (late,) = core.call_many(1)
    (bucket,) = core.loom.ready.in_order()
    assert list(bucket.nodes) == [*calls[1:], late]


def test_a_call_whose_worker_dies_of_it_has_lost_an_attempt_and_the_others_none() -> None:
    core, worker, calls = batch(4, retries=1)
    seqs = list(worker.calls)
    core.lose(worker, started=seqs[1])
    nodes = [node_of(core, call) for call in calls]
    assert [node.attempt for node in nodes] == [0, 1, 0, 0]
    assert all(node.state is S.READY for node in nodes)


def test_a_call_that_raises_may_be_tried_again() -> None:
    core, worker, calls = batch(3, retries=1)
    seq = list(worker.calls)[1]
    error = Trouble("raised", calls[1].key - 1)
    core.loom.on_failed(worker, seq, error, retry=True, seconds=SHORT_S)
    assert list(worker.calls.values()) == calls[2:]
    assert (node_of(core, calls[1]).state, node_of(core, calls[1]).attempt) == (S.READY, 1)


def test_a_dependent_of_a_call_becomes_ready_with_its_value() -> None:
    core, _, calls = batch(3)
    node = core.submit([calls[2]])
    core.loom.schedule()
    core.finish(*[node_of(core, call) for call in calls])
    assert node.state in {S.READY, S.ASSIGNED}


def test_a_call_that_can_never_run_fails_at_once() -> None:
    core = Core(cpus=1)
    call = core.call(cpus=2)
    assert core.outcome(call).kind == "unschedulable"


def test_a_call_that_nobody_wants_leaves_nothing() -> None:
    core, worker, calls = batch(2)
    core.drop(*calls)
    core.finish(*worker.inflight.values())
    assert not [call for call in calls if call.key in core.loom.graph.objects]


def test_who_looks_while_nodes_are_made_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As user code does that a garbage collection runs when memory for a node is taken.
    core, worker, calls = batch(6)
    make = graph_module.node_from

    def make_and_look(call: PlainCall) -> Node:
        monkeypatch.setattr(graph_module, "node_from", make)
        assert node_of(core, calls[3]).state is S.ASSIGNED
        return make(call)

    monkeypatch.setattr(graph_module, "node_from", make_and_look)
    nodes = list(worker.inflight.values())
    assert [node.key for node in nodes[1:]] == [call.key - 1 for call in calls]
    assert [node.seq for node in nodes] == list(worker.inflight) == sorted(worker.inflight)
    assert [node_of(core, call) for call in calls] == nodes[1:]
    core.check()


def test_a_call_that_becomes_a_node_while_it_is_handed_out_takes_its_arguments_along() -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn(seconds=SHORT_S)

    class Nosy(dict[int, PlainCall]):
        """As if user code looked at a call in a garbage collection at that very moment."""

        def __setitem__(self, seq: int, call: PlainCall) -> None:
            super().__setitem__(seq, call)
            if call is looked_at:
                assert node_of(core, call).args == b"args"

    worker.calls = Nosy()
    first, *calls = core.call_many(4)
    looked_at = calls[1]
    core.loom.schedule()
    assert worker.seqs() == [1, 2, 3, 4]
    assert node_of(core, looked_at).state is S.ASSIGNED
    core.check()
    core.drop(first, *calls)
    core.finish(*worker.inflight.values())
    assert core.is_at_rest()


def test_nothing_is_handed_out_when_the_first_of_a_line_has_just_become_a_node() -> None:
    core, worker, _ = batch(1)
    later = core.call_many(2)
    line: deque[Node | PlainCall] = deque(later)
    node_of(core, later[0])
    sent = len(core.outbox.verbs)
    assert core.loom.calls.hand_out(worker, line, later[0].spec, 2) == 0
    assert list(line) == later
    assert len(core.outbox.verbs) == sent


def test_calls_of_two_functions_and_a_node_may_be_done_together() -> None:
    core, worker, calls = batch(3)
    others = core.call_many(2, function="g")
    core.learn("g", seconds=SHORT_S)
    core.loom.schedule()
    (node,) = worker.nodes.values()
    seqs = [node.seq, *worker.calls]
    assert len(seqs) == 6
    core.loom.calls.on_done(worker, seqs, [b"value"] * 6, [SHORT_S] * 6)
    assert all(record.outcome == b"value" for record in (*node.outputs, *calls, *others))
    assert worker.lease is None
    core.drop(*calls, *others, node)
    assert core.is_at_rest()


def test_a_call_that_becomes_a_node_after_its_worker_has_said_what_it_came_to_is_done_as_one() -> (
    None
):
    core, worker, calls = batch(4)
    seqs = list(worker.calls)
    core.loom.graph.node_of(calls[1])
    core.loom.calls.on_done(worker, seqs, [b"value"] * 4, [SHORT_S] * 4)
    assert [call.outcome for call in calls] == [b"value"] * 4
    core.finish(*worker.inflight.values())
    assert core.is_at_rest()


def test_how_often_a_call_was_passed_over_is_counted_on_when_it_becomes_a_node() -> None:
    core = Core(cpus=1, starts_workers=False)
    (call,) = core.call_many(1)
    call.passed_over = 3
    node = node_of(core, call)
    (bucket,) = core.loom.ready.in_order()
    first = bucket.first()
    assert first is node
    first.passed_over += 4
    assert bucket.head() is node
    assert node.passed_over == 7


def test_a_call_that_was_handed_over_is_alone_with_its_worker_until_it_is_answered() -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn(seconds=SHORT_S)
    call = core.hand_call_over(worker)
    assert worker.lease is not None
    others = core.call_many(3)
    core.loom.schedule()
    assert list(worker.calls.values()) == [call]
    core.loom.calls.on_answer(worker, worker.seq, value_of(call), SHORT_S)
    assert call.outcome == value_of(call)
    assert call.producer is None
    core.loom.schedule()
    assert worker.load == 3
    core.drop(call, *others)
    core.finish(*worker.inflight.values())
    assert core.is_at_rest()


def test_a_call_that_was_handed_over_is_a_node_to_who_looks() -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    call = core.hand_call_over(worker)
    node = node_of(core, call)
    assert (node.state, node.seq, node.worker, node.attempt) == (S.ASSIGNED, 1, worker, 1)
    core.lose(worker, started=1)
    assert node.state is S.READY


def test_no_call_is_handed_over_to_who_is_not_idle() -> None:
    core = Core(cpus=2, starts_workers=False)
    worker = core.worker()
    core.hand_call_over(worker)
    with pytest.raises(InternalError, match="handed over"):
        core.hand_call_over(worker)


@pytest.mark.parametrize(
    "seconds", [[1e-5] * 30, [0.02] * 3, [1e-5, 0.02, 1e-5], [0.01]], ids=lambda s: str(len(s))
)
@pytest.mark.parametrize("before", [[], [0.05], [1e-5] * 3])
def test_run_times_that_come_together_count_as_one_after_the_other(
    before: list[float], seconds: list[float]
) -> None:
    one, all_at_once = RunTimes(), RunTimes()
    key: Any = "f"
    for value in [*before, *seconds]:
        one.note(key, value)
    for value in before:
        all_at_once.note(key, value)
    all_at_once.note_all(key, seconds)
    assert one.share(key) == all_at_once.share(key)
    assert one._mean_s == all_at_once._mean_s


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_a_random_life_of_calls_ends_as_if_all_were_nodes(seed: int) -> None:
    Life(seed).run()


class Life:
    """Calls of all kinds, on workers that do what workers do, in an order left to chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.core = Core(cpus=2, starts_workers=False, checks=False)
        self.loom = self.core.loom
        self.queues: dict[WorkerRecord, deque[int]] = {}
        self.records: list[ObjectRecord] = []
        self.cancelled: set[ObjectRecord] = set()
        self.seen = 0  # verbs that have been carried out
        for _ in range(2):
            self.queues[self.core.worker()] = deque()
        self.core.learn(seconds=SHORT_S)

    def run(self) -> None:
        steps = (
            [self.submit] * 4 + [self.work] * 8 + [self.give_back, self.die, self.cancel, self.look]
        )
        for _ in range(200):
            self.chance.choice(steps)()
            self.loom.schedule()
            self.hear()
        for _ in range(10_000):
            if all(record.outcome is not None for record in self.records):
                break
            self.core.wait(1000.0)
            self.work()
            self.loom.schedule()
            self.hear()
        for record in self.records:
            if record in self.cancelled and record.failed:
                assert record.outcome.cancelled
            elif not record.failed:
                assert record.outcome == value_of(record)
            else:  # what it depends on was cancelled
                assert record.outcome.kind == "cancelled"
                assert record.outcome.inherited
        while any(self.queues.values()):
            self.work()
        assert self.loom.graph.count_pending() == 0
        self.core.check_all()
        assert self.core.is_at_rest()

    def submit(self) -> None:
        function = self.chance.choice("fg")
        if self.records and self.chance.random() < 0.3:
            deps = self.chance.sample(self.records, min(2, len(self.records)))
            alive = [dep for dep in deps if dep.key in self.loom.graph.objects]
            (record,) = self.core.submit(alive, function=function, retries=-1).outputs
            self.records.append(record)
            return
        worker = self.loom.scheduler.idle_worker()
        if worker is not None and self.chance.random() < 0.5:
            self.records.append(self.core.hand_call_over(worker, function=function))
            self.queues[worker].append(worker.seq)
            return
        count = self.chance.choice((1, 1, 2, 10, 40))
        calls = self.core.call_many(count, function=function, retries=-1)
        self.records += calls

    def hear(self) -> None:
        """Workers get what the loom has sent."""
        verbs = self.core.outbox.verbs
        for verb in verbs[self.seen :]:
            if verb[0] == "run":
                self.queues[verb[1]].append(verb[2].seq)
            elif verb[0] == "run_calls":
                self.queues[verb[1]].extend(range(verb[2], verb[2] + len(verb[3])))
        self.seen = len(verbs)

    def work(self) -> None:
        """A worker runs some of what it has, and says so at once."""
        worker = self.chance.choice(list(self.queues))
        queue = self.queues[worker]
        done: list[tuple[int, PlainCall]] = []
        for _ in range(min(len(queue), self.chance.choice((1, 3, 20)))):
            seq = queue.popleft()
            call = worker.calls.get(seq)
            if call is not None and self.chance.random() >= 0.03:
                done.append((seq, call))
                continue
            self.bring(worker, done)
            done = []
            node = worker.node_at(seq)
            if node is not None and node.unfinished:  # what it follows did not end well here
                self.loom.on_failed(worker, seq, None, retry=False, seconds=SHORT_S)
            elif node is not None and self.chance.random() < 0.1:
                error = Trouble("raised", seq)
                self.loom.on_failed(worker, seq, error, retry=True, seconds=SHORT_S)
            elif node is not None:
                value = value_of(node.outputs[0])
                self.loom.on_done(worker, seq, (value,), (None,), SHORT_S)
        self.bring(worker, done)

    def bring(self, worker: WorkerRecord, those: list[tuple[int, PlainCall]]) -> None:
        if not those:
            return
        if self.chance.random() < 0.1:  # somebody looks, between the message and this
            self.loom.graph.node_of(self.chance.choice(those)[1])
        if len(those) == 1 and those[0][0] in worker.calls and self.chance.random() < 0.5:
            self.loom.calls.on_answer(worker, those[0][0], value_of(those[0][1]), SHORT_S)
            return
        values = [value_of(call) for _, call in those]
        self.loom.calls.on_done(worker, [seq for seq, _ in those], values, [SHORT_S] * len(those))

    def give_back(self) -> None:
        worker = self.chance.choice(list(self.queues))
        queue = self.queues[worker]
        if len(queue) > 1:
            low, high = queue[0], queue[-1]
            self.loom.on_returned(worker, low, high)
            self.queues[worker] = deque([low])

    def die(self) -> None:
        worker = self.chance.choice(list(self.queues))
        queue = self.queues.pop(worker)
        started = queue[0] if queue else worker.seq
        self.loom.on_worker_lost(worker, started, lambda node: Trouble("crash", node.key))
        self.queues[self.core.worker()] = deque()

    def cancel(self) -> None:
        if self.records:
            record = self.chance.choice(self.records)
            if record.outcome is None:
                self.cancelled.add(record)
                self.loom.on_cancel(record.key, force=False, recursive=True)

    def look(self) -> None:
        """Somebody looks at one call, or at all, or checks the books."""
        what = self.chance.randrange(3)
        if what == 0 and self.records:
            self.loom.graph.node_of(self.chance.choice(self.records))
        elif what == 1:
            assert len(self.loom.graph.nodes) == self.loom.graph.count_pending()
        else:
            self.core.check_all()
