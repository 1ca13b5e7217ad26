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

        Returns: how many went; 0: the worker has enough.
        """
        window = min(worker.window, self._loom.times.window(spec.function.key))
        most = min(most, window - worker.load)
        if most <= 0:
            return 0
        worker.window = window
        seq = worker.seq
        handed: list[PlainCall] = []
        while most > 0 and line:
            call = line[0]
            if type(call) is not PlainCall or call.spec is not spec:
                break
            if call.producer is not call or call.dependents is not None:
                break
            line.popleft()
            seq += 1
            call.worker = worker
            worker.calls[seq] = call
            handed.append(call)
            most -= 1
        first, worker.seq = worker.seq + 1, seq
        self._loom.outbox.run_calls(worker, first, handed)
        return len(handed)

    def on_done(
        self,
        worker: WorkerRecord,
        spec: TaskSpec,
        done: Sequence[tuple[int, bytes]],
        seconds: Sequence[float],
    ) -> None:
        """Calls of one function have returned.  Twin: :meth:`Reactor.on_done`.

        Args:
            worker: that has them.
            spec: of them all.
            done: the ``seq`` and the value of each.
            seconds: how long each took.
        """
        loom = self._loom
        loom.times.note_all(spec.function.key, seconds)
        # Release before resolving: who is woken may submit at once and should find room.
        if worker.load == len(done):
            loom.free(worker)
        ready, unfolded = loom.graph.finish_calls(worker, done)
        if ready:
            loom.make_all_ready(ready)
        for seq, outcome in unfolded:
            loom.on_done(worker, seq, (outcome,), (None,), seconds[-1])
