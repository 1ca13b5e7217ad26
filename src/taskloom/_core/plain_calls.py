"""What happens to calls that are not nodes: they come, are handed out, and are done.

Fast path for what a program submits by the thousand, see :class:`PlainCall`: its steps are
taken for many calls at once.  Plain twin of each step: the one for a node, which is named there.
Everything else that may befall a call finds its node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from taskloom._core.graph import node_from
from taskloom._core.node import Node, PlainCall, WorkerRecord
from taskloom._spec import TaskSpec

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

_SPEC: Final = attrgetter("spec")


class PlainCalls:
    def __init__(self, loom: Reactor) -> None:
        self._loom = loom

    def on_submit(self, calls: Sequence[PlainCall]) -> None:
        """New calls, in their order.  Twin: :meth:`Reactor.on_submit`."""
        loom = self._loom
        for spec, group in groupby(calls, _SPEC):
            some = list(group)
            if loom.graph.observer is None and loom.ledger.can_ever_fit(spec.request):
                loom.graph.add_calls(some)
                loom.ready.push_calls(some)
            else:
                for call in some:
                    loom.on_submit(node_from(call))

    def hand_out(
        self, worker: WorkerRecord, line: deque[Node | PlainCall], spec: TaskSpec, most: int
    ) -> int:
        """Give a worker calls from the front of a line.  Twin: ``Scheduler._assign``.

        Args:
            worker: that is to run them.
            line: where they stand.
            spec: of the first of them, and of those that go along.
            most: so many may go.

        Returns: how many went; 0: the worker has enough, or the first is a node by now.
        """
        times, function = self._loom.times, spec.function.key
        most = min(most, times.room(worker, times.share(function)))
        if most <= 0:
            return 0
        first = seq = worker.seq + 1
        calls, worker.graph = worker.calls, self._loom.graph
        handed: list[PlainCall] = []
        payloads: list[bytes | None] = []
        for _ in range(min(most, len(line))):
            call = line[0]
            if isinstance(call, Node) or call.spec is not spec:
                break
            if call.dependents is not None and call.has_follower:
                break
            # As in :meth:`on_done`, no call of anything from here on.
            if call.producer is not call:
                break
            del line[0]
            args = call.args
            call.where = worker
            calls[seq] = call
            seq += 1
            handed.append(call)  # from here on it may become a node, which has its arguments
            payloads.append(args)
        worker.seq = seq - 1
        if handed:
            worker.got(function, len(handed))
            self._loom.outbox.run_calls(worker, first, handed, payloads)
        return len(handed)

    def on_done(
        self,
        worker: WorkerRecord,
        seqs: Sequence[int],
        outcomes: Sequence[bytes],
        seconds: Sequence[float],
    ) -> None:
        """Calls have returned.  Twin: :meth:`Reactor.on_done`, which gets those that are nodes.

        Args:
            worker: that has them.
            seqs, outcomes: the number and the value of each.
            seconds: how long each took.
        """
        loom = self._loom
        calls = worker.calls
        done: list[PlainCall] = []
        nodes: list[tuple[int, bytes, float]] = []
        spec: TaskSpec | None = None
        spans: list[float] = []  # of the calls of ``spec``
        for seq, outcome, span in zip(seqs, outcomes, seconds, strict=True):
            if seq not in calls:
                nodes.append((seq, outcome, span))
                continue
            # No call of anything, and so no user code, until it is done: see ``Graph.unfold_on``.
            call = calls[seq]
            del calls[seq]
            call.producer = call.where = call.args = None
            call.order = 0  # one number less to keep
            call.outcome = outcome
            done.append(call)
            if call.spec is not spec:
                self._note(worker, spec, spans)
                spec, spans = call.spec, []
            spans.append(span)
        self._note(worker, spec, spans)
        if done:
            # Release before resolving: who is woken may submit at once and should find room.
            if not worker.load:
                loom.free(worker)
            ready = loom.graph.finish_calls(done)
            if ready:
                loom.make_all_ready(ready)
        for seq, outcome, span in nodes:
            loom.on_done(worker, seq, (outcome,), (None,), span)

    def on_answer(self, worker: WorkerRecord, seq: int, outcome: bytes, seconds: float) -> None:
        """The same for one call that has returned on its own.

        Fast path: its columns are of one (a ``get`` takes 0.95 of the time, with the like in
        ``Engine.take_bare``).  Plain twin: :meth:`on_done`.
        """
        loom = self._loom
        call = worker.calls[seq]
        del worker.calls[seq]
        call.producer = call.where = call.args = None
        call.order = 0
        call.outcome = outcome
        function = call.spec.function.key
        worker.lost(function)
        loom.times.note(function, seconds)
        if not worker.calls and not worker.nodes:
            loom.free(worker)
        ready = loom.graph.finish_calls((call,))
        if ready:
            loom.make_all_ready(ready)

    def _note(self, worker: WorkerRecord, spec: TaskSpec | None, spans: Sequence[float]) -> None:
        if spec is not None:
            function = spec.function.key
            worker.lost(function, len(spans))
            self._loom.times.note_all(function, spans)
