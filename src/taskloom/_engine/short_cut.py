"""The short cut: a caller hands a lone call to an idle worker himself.

A call that meets an engine at rest goes from the caller's thread to the engine's and from there to
a worker, and its result back the same way: four times somebody has to be woken, and waking is
nearly all that such a call costs.  So an engine at rest makes an *offer*: this worker is idle, and
may be sent one call of the function it ran last, under this number.  A caller with such a call
enters it in the inbox, takes the offer and writes to the worker's socket; the worker begins while
the engine still wakes up (measured: 66 us a call where 89 were).

An actor that runs one call after another is offered likewise, when it was used last.  Nobody is
overtaken: no offer is taken while something stands in the inbox that was posted before.

Nothing is decided by the caller.  Before the engine does anything that could touch the worker or
its CPUs, it takes the offer back.  When that fails, somebody has taken it, and his call is in the
inbox already: it is entered in the books first of all, exactly as the engine itself would have
placed it.  So the loom never sees a difference, and whatever befalls the call - its worker dies,
it is cancelled - goes its usual way.  Plain twin: ``LocalBackend.submit`` without an offer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from taskloom._core.graph import node_from
from taskloom._core.node import Node, PlainCall, WorkerRecord
from taskloom._core.placement import share_of
from taskloom._core.reactor import Reactor
from taskloom._engine.portal import Portal
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._spec import TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.frames import encode

MAX_FRAME_BYTES: Final = 4096
"""So little goes into a socket whole or not at all."""


MAY_BE_OFFERED: Final = 0.5
"""Of the work that a worker may have at hand; a call that is longer gains nothing."""

_RECALLED: Final = object()


class Offer:
    """One call of ``spec`` may be sent to ``process``, an actor's if it has a key."""

    __slots__ = ("_taker", "actor_key", "process", "seq", "spec")

    def __init__(self, process: WorkerProcess, spec: TaskSpec, actor_key: int) -> None:
        self.process = process
        self.spec = spec
        self.actor_key = actor_key
        self.seq = process.record.seq + 1
        self._taker: dict[str, object] = {}

    def take(self, taker: object) -> object:
        """From any thread: who has the offer; ``taker``, if nobody had it before."""
        return self._taker.setdefault("is", taker)  # one step, which no other thread divides


class ShortCut:
    """The offers of one engine: there is one at a time, or none.

    Args:
        loom: whose workers are offered.
        pool: has their processes.
        submit: takes in a task that was not handed over.
        take_calls: the same for calls that are no nodes.
        call_actor: the same for the call of an actor, with the actor's key.
        touch: hears of a worker that was handed a call.
    """

    def __init__(
        self,
        loom: Reactor,
        pool: Pool,
        submit: Callable[[Node], None],
        take_calls: Callable[[Sequence[PlainCall]], None],
        call_actor: Callable[[tuple[Node, int]], None],
        touch: Callable[[WorkerProcess], None],
    ) -> None:
        self._loom = loom
        self._pool = pool
        self._submit = submit
        self._take_calls = take_calls
        self._call_actor = call_actor
        self._touch = touch
        self.used: WorkerProcess | None = None  # by the last call that has ended
        self.take_in: Callable[[], None] = lambda: None  # does what stands in the inbox
        self.shown: Offer | None = None  # to callers
        self.handed_over: Node | None = None  # is being entered in the books: its worker has it
        self._open: Offer | None = None  # as far as the engine knows
        self._latest: WorkerRecord | None = None  # to whom a call was handed over
        self.is_fetched = True  # somebody has asked for a result since a call was handed over
        self.taken = 0  # how often it was used

    # -- any thread ---------------------------------------------------------------------------

    def hand_over(self, call: Node | PlainCall, portal: Portal, actor_key: int = 0) -> bool:
        """Send a new call to the worker that is offered.

        Args:
            call: the call.
            portal: to the engine.
            actor_key: of the actor whose call it is.

        Returns: False when nothing was done: the call has to be submitted.

        Raises:
            RuntimeError: the session is closed.
        """
        if portal.is_rung:  # first of all: what is shown afterwards was shown after that was done
            return False
        offer = self.shown
        if (
            offer is None
            or offer.spec is not call.spec
            or offer.actor_key != actor_key
            or (frame := _frame(offer, call)) is None
        ):
            return False
        portal.enter(self.enter, (call, offer))
        try:
            if offer.take(call) is call:  # else the engine finds the call in its inbox
                self.shown = None
                self.is_fetched = False
                offer.process.data.send_whole(frame)
        except OSError:
            portal.enter(self.doubt, offer)
        except BaseException:  # Ctrl-C
            portal.post(self.doubt, offer)
            raise
        portal.ring()
        return True

    # -- the engine's thread ------------------------------------------------------------------

    def offer(self) -> None:
        """Make an offer if there is a worker with nothing to do, and nothing to do for it.

        Not to a program that has not asked for a result since it took the last one: it makes many
        calls, and they had better go together than each wake the engine.  Nor before that one is
        answered: mostly its caller waits for it, and the offer would be taken back unseen.
        """
        if not self.is_fetched or (self._latest is not None and self._latest.load):
            return
        loom, used = self._loom, self.used
        if used is not None and (actor := used.record.actor) is not None:
            if loom.actors.is_at_rest(actor):
                self._offer(used, actor.key, share_of(actor.mean_s))
        elif (worker := loom.scheduler.idle_worker()) is not None:
            process = self._pool.by_number[worker.number]
            if (spec := process.known.latest) is not None:
                self._offer(process, 0, loom.times.share(spec.function.key))

    def _offer(self, process: WorkerProcess, actor_key: int, share: float) -> None:
        spec = process.known.latest
        if (
            spec is not None
            and share <= MAY_BE_OFFERED
            and spec.pace is None
            and spec.stream is None
            and spec.num_returns == 1
            and not (actor_key and spec.retry_exceptions)  # it may have to go before others
            and (actor_key or (spec.asks_only_for_cpus and self._loom.ledger.fits(spec.request)))
            and process.data.is_clear
        ):
            self._open = self.shown = Offer(process, spec, actor_key)

    def hide(self) -> None:
        """No caller is to find the offer from now on; who has found it may still take it."""
        self.shown = None

    def recall(self) -> None:
        """Take the offer back; the call of who has taken it is entered in the books now.

        To be called before anything is done with what a worker says, or with an idle worker.
        """
        offer = self._open
        if offer is None:
            return
        self.shown = None
        if offer.take(_RECALLED) is not _RECALLED:
            self.take_in()  # it is there: see ``hand_over``
        self._open = None

    def forget(self, process: WorkerProcess) -> None:
        """It is gone, and with it all that it was to be sent: large values among it."""
        if self.used is process:
            self.used = None
        if self._latest is process.record:
            self._latest = None

    def enter(self, entry: tuple[Node | PlainCall, Offer]) -> None:
        """A call that its caller may have handed over, or is about to."""
        call, offer = entry
        if offer.take(_RECALLED) is call:
            self._open = None
            self.taken += 1
            self._latest = offer.process.record
            if isinstance(call, PlainCall) and self._loom.graph.observer is None:
                self._loom.scheduler.on_call_handed_over(call, offer.process.record, offer.seq)
                self._touch(offer.process)
            else:
                self._enter_node(node_from(call) if isinstance(call, PlainCall) else call, offer)
        elif isinstance(call, PlainCall):
            self._take_calls((call,))
        elif offer.actor_key:
            self._call_actor((call, offer.actor_key))
        else:
            self._submit(call)

    def _enter_node(self, node: Node, offer: Offer) -> None:
        loom, worker = self._loom, offer.process.record
        self.handed_over = node
        if not offer.actor_key:
            loom.scheduler.on_handed_over(node, worker, offer.seq)
        elif worker.actor is not None and worker.actor.death is None:
            loom.actors.on_handed_over(node, worker.actor, offer.seq)
        else:  # it was killed by a call that stood in the inbox before
            self.handed_over = None
            self._call_actor((node, offer.actor_key))
        self.handed_over = None

    def doubt(self, offer: Offer) -> None:
        """A caller was interrupted, or met a socket that is full or closed: did it go out?

        It is sent again: a worker passes over what it has begun before.
        """
        worker = offer.process.record
        node = worker.inflight.get(offer.seq)
        if node is not None:
            self._loom.outbox.run(worker, node)


def _frame(offer: Offer, call: Node | PlainCall) -> bytes | None:
    """What is sent for a call; None when that is too much, or not all that a worker needs."""
    key, holes, context = call.key - 1, None, None
    if not isinstance(call, PlainCall):
        if call.deps or call.nested or call.scope is not None or type(call.args) is not bytes:
            return None
        key, holes, context = call.key, call.holes, call.context
    message = (
        m.RUN, offer.seq, key, 1, offer.spec.number, call.args, holes, None, context, None,
    )  # fmt: skip
    frame: Any = encode([message])[0]
    return frame if len(frame) <= MAX_FRAME_BYTES else None
