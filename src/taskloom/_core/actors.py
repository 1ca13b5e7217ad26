"""What happens to actors: created, called, killed, restarted, left alone.

Part of the loom: plain synchronous reactions.  States and records are in ``actor_record``.  The
reactor calls in from its own reactions; handing out calls is part of its pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._core.actor_record import ActorRecord, ActorState, Blueprint
from taskloom._core.node import Error, Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.placement import is_heavy
from taskloom._core.retries import may_retry
from taskloom._core.states import TERMINAL, NodeState
from taskloom.exceptions import InternalError

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

_LINES_KEPT: Final = 64
"""Empty lines of callers that may stand: most come again at once."""


class Actors:
    """All actors of a session."""

    def __init__(self, loom: Reactor) -> None:
        self._loom = loom
        self.by_key: dict[int, ActorRecord] = {}  # until nobody has a handle and it is dead
        self.names: dict[tuple[str, str], int] = {}  # (namespace, name): key of who has it
        self.unplaced: deque[ActorRecord] = deque()  # could be constructed, wait for room
        self.awaiting: deque[ActorRecord] = deque()  # placed, wait for a process
        self.placed: set[ActorRecord] = set()  # those, and those that are being constructed
        self.spare: list[WorkerRecord] = []  # processes whose actors have died meanwhile

    # -- what callers do ----------------------------------------------------------------------

    def find(self, namespace: str, name: str) -> ActorRecord | None:
        """The living actor of that name."""
        return self.by_key.get(self.names.get((namespace, name), 0))

    def on_create(self, node: Node) -> None:
        """A new actor; ``node`` is the call of its constructor, its name is not taken."""
        loom, actor = self._loom, node.actor
        assert actor is not None
        self.by_key[actor.key] = actor
        if actor.facts.name:
            self.names[actor.facts.namespace, actor.facts.name] = actor.key
        actor.creation = node
        if actor.facts.detached:
            actor.holds += 1  # until it is killed
        error = loom.graph.add(node)
        if error is not None:
            self._die(actor, error.inherit(), "an argument of its constructor failed")
        elif not (
            loom.ledger.can_ever_fit(actor.facts.placement)
            and loom.ledger.can_ever_fit(actor.spec.request)
        ):
            self._die(actor, loom.outbox.actor_unschedulable(actor), "can never be placed")
        elif not node.unfinished:
            loom.graph.move(node, NodeState.READY, "no dependencies")
            self.unplaced.append(actor)

    def on_call(self, node: Node) -> None:
        """A new call of an actor."""
        loom, actor = self._loom, node.actor
        assert actor is not None
        error = loom.graph.add(node)
        if node.scope is not None and not node.scope.enter(node):
            self._fail(node, loom.outbox.cancelled(node), "its group was cancelled")
        elif error is not None:
            self._fail(node, error.inherit(), "dependency failed")
        elif actor.death is not None:
            actor.seen = True  # the call tells of it
            self._fail(node, actor.death, "its actor is dead")
        elif node.parent is not None and (node.parent.cancel_asked or node.parent.overdue):
            self._fail(node, loom.outbox.cancelled(node), "its parent was cancelled")
        elif not node.unfinished:
            loom.graph.move(node, NodeState.READY, "no dependencies")
            loom.graph.stirred.add(actor)
            self._queue(actor, node)
        elif actor.is_ordered:
            self._queue(actor, node)
        else:
            actor.waiting[node.key] = node

    def is_at_rest(self, actor: ActorRecord) -> bool:
        """It could begin a call at once, and takes them one by one."""
        worker = actor.worker
        return (
            actor.state is ActorState.ALIVE
            and actor.facts.is_serial
            and worker is not None
            and not worker.inflight
            and not any(line.calls for line in actor.lines.values())
        )

    def on_handed_over(self, node: Node, actor: ActorRecord, seq: int) -> None:
        """A new call that the process of an actor at rest has been sent already, as ``seq``."""
        worker, graph = actor.worker, self._loom.graph
        if worker is None or worker.inflight or worker.seq + 1 != seq:
            raise InternalError(f"{node!r} was handed over as {seq} to {worker!r}")
        node.actor = actor
        node.nested = (actor,)  # what is called is kept
        graph.add(node)
        graph.move(node, NodeState.READY, "no dependencies")
        actor.is_held = True  # its caller may not have sent it yet: nothing may go before it
        actor.line_of(node).busy += 1
        self._assign(worker, node, "handed over by its caller")

    def _queue(self, actor: ActorRecord, node: Node) -> None:
        calls = actor.line_of(node).calls
        calls.append(node)
        if len(calls) > actor.warn_above:
            self._loom.outbox.many_calls(actor, actor.warn_above)
            actor.warn_above *= 2

    def on_kill(self, actor: ActorRecord, *, no_restart: bool) -> None:
        """``kill()``: its process ends at once."""
        worker = actor.worker
        if actor.state is ActorState.DEAD:
            if worker is not None:  # it takes its time to leave
                self._loom.outbox.kill(worker, "kill() was called")
            return
        if no_restart:
            actor.seen = True
            self._die(actor, self._loom.outbox.actor_died(actor, "it was killed by kill()"), "kill")
        if worker is not None:
            self._loom.outbox.kill(worker, "kill() was called")

    def on_ready(self, node: Node) -> None:
        """A call, or a constructor, may run: its last argument is there, or its pause is over."""
        actor = node.actor
        assert actor is not None
        if node is actor.creation:
            self.unplaced.append(actor)
            return
        if not actor.is_ordered:
            del actor.waiting[node.key]
            line = actor.line_of(node)
            if node.attempt:  # it has been handed out before
                line.calls.appendleft(node)
            else:
                line.calls.append(node)
        self._loom.graph.stirred.add(actor)

    def pending_calls(self, actor: ActorRecord, process: int) -> int:
        """How many calls that a process has made are not done."""
        return sum(
            node.state not in TERMINAL and _ids.process_of(node.key) == process
            for node in actor.calls()
        )

    # -- what workers say ---------------------------------------------------------------------

    def on_worker_ready(self, worker: WorkerRecord) -> None:
        """A process for an actor, whichever waits longest, is there."""
        self.spare.append(worker)
        self._give_processes()

    def on_left(self, worker: WorkerRecord, node: Node) -> None:
        """The worker is through with a call; how it ended is said next."""
        actor = node.actor
        assert actor is not None
        if actor.worker is not worker:
            raise InternalError(f"{node!r} ended on {worker!r}, which is not its actor's")
        if node is not actor.creation and actor.state is not ActorState.DEAD:
            line = actor.line_of(node)
            line.busy -= 1
            line.is_strict = False
            actor.is_held = False
            actor.futile = 0
            self._loom.graph.stirred.add(actor)
        if actor.spec.request or actor.placement is not None:
            self.lend_or_reclaim(worker)

    def on_constructed(self, actor: ActorRecord) -> None:
        """Its constructor is about to return; not called for one that is dead by now."""
        assert actor.creation is not None
        if actor.facts.max_restarts and actor.blueprint is None:
            actor.blueprint = Blueprint(actor.creation)
        actor.creation = None
        self.placed.discard(actor)
        if actor.placement is not None:
            self._loom.ledger.release(actor.placement)
            actor.placement = None
        actor.move(ActorState.ALIVE)
        self._loom.graph.stirred.add(actor)

    def on_failed(self, node: Node, error: Error | None, *, retry: bool) -> None:
        """A call, or the constructor, has raised (``error`` None: it was not started)."""
        actor = node.actor
        assert actor is not None
        if node is actor.creation:
            assert error is not None
            worker = actor.worker
            self._die(actor, error, "its constructor raised")
            if worker is not None:
                self._loom.outbox.stop_actor(worker)
        elif error is None:
            node.attempt -= 1
            self._put_back([node], "it was not begun")
        elif retry and may_retry(node):
            self.keep_place(node)
            self._loom.deadlines.next_attempt(node, "retry after an exception")
        else:
            self._fail(node, error, "exception")

    def on_leaving(self, worker: WorkerRecord, why: str) -> None:
        """The actor ends itself; its process will be gone before long."""
        actor = worker.actor
        if actor is not None and actor.state is not ActorState.DEAD:
            self._die(actor, self._loom.outbox.actor_died(actor, why), "it left")
        self._loom.outbox.expect_end(worker)

    def on_worker_lost(self, worker: WorkerRecord, started: int, why: str) -> None:
        """Its process is gone.

        Args:
            worker: which one.
            started: the ``seq`` of the last call that it had begun.
            why: how it ended, for errors: "worker 7 was killed by SIGKILL".
        """
        if worker in self.spare:
            self.spare.remove(worker)
        inflight = sorted(worker.inflight.items())
        worker.inflight.clear()
        worker.lease = None
        actor, worker.actor = worker.actor, None
        if actor is None:
            self._give_processes()  # it may have been on its way to somebody
            return
        actor.worker = None
        actor.is_held = False
        self._release_resources(actor)
        for line in actor.lines.values():
            line.busy = 0
            line.is_strict = False
        if actor.state is ActorState.DEAD:
            self._forget_if_dead(actor)
        elif actor.restarts_left():
            self._put_back_or_fail(actor, inflight, started, why)
            self._restart(actor)
        else:
            if actor.facts.max_restarts:
                why += f", and it had been restarted {actor.restarts} times already"
            self._die(actor, self._loom.outbox.actor_died(actor, why), "its process died")
            for _, node in inflight:
                if node.state is NodeState.ASSIGNED:
                    assert actor.death is not None
                    self._fail(node, actor.death, "its actor died")

    def _put_back_or_fail(
        self, actor: ActorRecord, inflight: list[tuple[int, Node]], started: int, why: str
    ) -> None:
        """Calls that the dead process had: those not begun go back, others as far as retries go."""
        again: list[Node] = []
        error: Error | None = None
        for seq, node in inflight:
            if node.state is not NodeState.ASSIGNED or node is actor.creation:
                continue
            if actor.facts.is_serial and seq > started:
                node.attempt -= 1
                again.append(node)
            elif may_retry(node):
                again.append(node)
            else:
                error = error or self._loom.outbox.actor_unavailable(actor, why)
                self._fail(node, error, "its actor is restarted")
        self._put_back(again, "its actor is restarted")

    def _put_back(self, nodes: list[Node], why: str) -> None:
        for node in reversed(nodes):
            self.keep_place(node)
        for node in nodes:
            self._loom.make_ready(node, why)

    def keep_place(self, node: Node) -> None:
        """A call that was with the worker goes to the front of its line; soon it is READY."""
        actor = node.actor
        assert actor is not None
        node.overdue = node.cancel_told = False
        if actor.is_ordered:
            actor.line_of(node).calls.appendleft(node)
        else:
            actor.waiting[node.key] = node

    def _restart(self, actor: ActorRecord) -> None:
        """Run the constructor again, in another process."""
        graph = self._loom.graph
        actor.restarts += 1
        actor.futile += 1
        actor.move(ActorState.RESTARTING)
        node = actor.creation
        if node is None:
            plan = actor.blueprint
            assert plan is not None
            output = ObjectRecord(actor.key + actor.restarts)
            output.holds = 0
            output.seen = True  # its calls tell of a constructor that fails
            node = Node(
                actor.key - 1, actor.spec, plan.args, plan.holes, plan.deps, (output,)
            )  # fmt: skip
            node.nested, node.context = plan.nested, plan.context
            node.actor = actor
            node.attempt = actor.restarts
            actor.creation = node
            graph.add(node)
        # After some that were good for nothing with a pause: what always fails must not spin.
        self._loom.deadlines.next_attempt(node, "its actor is restarted", failures=actor.futile)

    # -- a call waits for others --------------------------------------------------------------

    def lend_or_reclaim(self, worker: WorkerRecord) -> None:
        """While all its calls wait for others, an actor needs no CPUs."""
        actor = worker.actor
        if actor is None:
            return
        waits = worker.pending_requests > 0 and (
            actor.facts.is_serial or worker.pending_requests >= len(worker.inflight)
        )
        for held in (actor.allocation, actor.placement):
            if held is None or not held.request:
                continue
            if waits:
                self._loom.ledger.lend_cpus(held)
            else:
                self._loom.ledger.reclaim_cpus(held)

    # -- the pass -----------------------------------------------------------------------------

    def run_pass(self) -> None:
        """End actors that nobody can call any more, place new ones, hand out calls."""
        graph = self._loom.graph
        while graph.forgotten or graph.stirred:
            if graph.forgotten:
                self._on_unreferenced(graph.forgotten.pop())
            else:
                self._hand_out(graph.stirred.pop())
        if self.unplaced:
            self._place()
        elif self.awaiting:  # the last order may have failed
            self._give_processes()

    def has_work(self) -> bool:
        """True when :meth:`run_pass` has something to look at."""
        graph = self._loom.graph
        return bool(self.unplaced or self.awaiting or graph.stirred or graph.forgotten)

    def heads_that_wait(self) -> Iterable[Node]:
        """Constructors that could run if there were room."""
        return [actor.creation for actor in self.unplaced if actor.creation is not None]

    def any_moves(self) -> bool:
        """True when some actor may still bring what others wait for."""
        return any(
            actor.creation is not None
            or (worker is not None and len(worker.inflight) > worker.pending_requests)
            for actor in self.by_key.values()
            for worker in (actor.worker,)
        )

    def _place(self) -> None:
        ledger = self._loom.ledger
        later: deque[ActorRecord] = deque()
        for actor in self.unplaced:
            if actor.creation is None or actor.creation.state is not NodeState.READY:
                continue  # it has died meanwhile
            if not (ledger.fits(actor.facts.placement) and ledger.fits(actor.spec.request)):
                later.append(actor)
                continue
            actor.allocation = ledger.acquire(actor.spec.request)
            actor.placement = ledger.acquire(actor.facts.placement)
            self.awaiting.append(actor)
            self.placed.add(actor)
        self.unplaced = later
        self._give_processes()

    def _give_processes(self) -> None:
        while self.awaiting and self.spare:
            actor, worker = self.awaiting.popleft(), self.spare.pop()
            actor.worker, worker.actor = worker, actor
            worker.lease = actor.allocation
            assert actor.creation is not None
            self._assign(worker, actor.creation, "its process is there")
        # While some are constructed, processes for the next ones start already.
        ahead = min(len(self.unplaced), len(self.placed)) - len(self.spare)
        wanted = len(self.awaiting) + max(0, ahead)
        if wanted:
            self._loom.outbox.start_workers(WorkerKind.ACTOR, wanted)

    def _hand_out(self, actor: ActorRecord) -> None:
        creation, worker = actor.creation, actor.worker
        if creation is not None and creation.state in TERMINAL:
            # Something else than its own process has ended it: an argument that failed.
            error = creation.outputs[0].outcome
            self._die(actor, error, "its constructor could not be called")
        if actor.state is not ActorState.ALIVE or worker is None or actor.is_held:
            return
        is_ordered = actor.is_ordered
        if actor.facts.is_serial:
            actor.set_limits()
        for line in actor.lines.values():
            while line.busy < line.limit and not line.is_strict:
                node = line.head()
                if node is None:
                    break
                # The first two conditions are those of nearly all calls, and cheap.
                if (node.deps or type(node.args) is not bytes) and line.busy and is_heavy(node):
                    break
                if is_ordered and node.spec.retry_exceptions and may_retry(node):
                    if line.busy:
                        break
                    line.is_strict = True
                line.calls.popleft()
                line.busy += 1
                self._assign(worker, node, "its turn")
        if len(actor.lines) > _LINES_KEPT:
            actor.lines = {
                place: line for place, line in actor.lines.items() if line.calls or line.busy
            }
        self.lend_or_reclaim(worker)

    def _assign(self, worker: WorkerRecord, node: Node, why: str) -> None:
        worker.seq += 1
        node.seq = worker.seq
        node.worker = worker
        node.attempt += 1
        worker.inflight[node.seq] = node
        self._loom.graph.move(node, NodeState.ASSIGNED, why)
        if node.spec.pace is not None:
            self._loom.deadlines.on_handed_out(node)
        self._loom.outbox.run(worker, node)

    # -- the end ------------------------------------------------------------------------------

    def _on_unreferenced(self, actor: ActorRecord) -> None:
        """The last handle is gone and every call is done."""
        worker = actor.worker
        if actor.state is not ActorState.DEAD:
            error = self._loom.outbox.actor_died(actor, "all handles of it were gone")
            self._die(actor, error, "no handle is left")
            if worker is not None:
                self._loom.outbox.stop_actor(worker)
        self._forget_if_dead(actor)

    def _die(self, actor: ActorRecord, error: Any, why: str) -> None:
        """It is dead for good: all its calls end, now and later, and its name is free."""
        actor.move(ActorState.DEAD)
        actor.death = error
        facts = actor.facts
        if facts.name:
            del self.names[facts.namespace, facts.name]
        creation, actor.creation = actor.creation, None
        if creation is not None:
            self._fail(creation, error, why)
        for node in actor.calls():
            if node.state not in TERMINAL:
                actor.seen = True
                self._fail(node, error, why)
        actor.lines.clear()
        actor.waiting.clear()
        if actor in self.awaiting:
            self.awaiting.remove(actor)
        if actor.worker is None:
            self._release_resources(actor)
        plan, actor.blueprint = actor.blueprint, None
        if plan is not None:
            for record in (*plan.deps, *plan.nested):
                self._loom.graph.release(record)
        if facts.detached:
            self._loom.graph.release(actor)

    def _forget_if_dead(self, actor: ActorRecord) -> None:
        if actor.holds == 0 and actor.worker is None:
            self.by_key.pop(actor.key, None)

    def _release_resources(self, actor: ActorRecord) -> None:
        """Its process is gone, or never came."""
        self.placed.discard(actor)
        for held in (actor.allocation, actor.placement):
            if held is not None:
                self._loom.ledger.release(held)
        actor.allocation = actor.placement = None

    def _fail(self, node: Node, error: Any, why: str) -> None:
        self._loom.fail_and_stop(node, error, why)
