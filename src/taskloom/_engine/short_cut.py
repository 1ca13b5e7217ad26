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

from collections.abc import Callable
from typing import Any, Final

from taskloom._core.node import Node
from taskloom._core.placement import calls_at_hand
from taskloom._core.reactor import Reactor
from taskloom._engine.portal import Portal
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._spec import TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.frames import encode

MAX_FRAME_BYTES: Final = 4096
"""So little goes into a socket whole or not at all."""


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
        call_actor: the same for the call of an actor, with the actor's key.
    """

    def __init__(
        self,
        loom: Reactor,
        pool: Pool,
        submit: Callable[[Node], None],
        call_actor: Callable[[tuple[Node, int]], None],
    ) -> None:
        self._loom = loom
        self._pool = pool
        self._submit = submit
        self._call_actor = call_actor
        self.used: WorkerProcess | None = None  # by the last call that has ended
        self.take_in: Callable[[], None] = lambda: None  # does what stands in the inbox
        self.shown: Offer | None = None  # to callers
        self.handed_over: Node | None = None  # is being entered in the books: its worker has it
        self._open: Offer | None = None  # as far as the engine knows
        self.is_fetched = True  # somebody has asked for a result since a call was handed over
        self.taken = 0  # how often it was used

    # -- any thread ---------------------------------------------------------------------------

    def hand_over(self, node: Node, portal: Portal, actor_key: int = 0) -> bool:
        """Send a new call to the worker that is offered.

        Args:
            node: the call.
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
            or offer.spec is not node.spec
            or offer.actor_key != actor_key
            or (frame := _frame(offer, node)) is None
        ):
            return False
        portal.enter(self.enter, (node, offer))
        try:
            if offer.take(node) is node:  # else the engine finds the call in its inbox
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
        calls, and they had better go together than each wake the engine.
        """
        if not self.is_fetched:
            return
        loom, used = self._loom, self.used
        if used is not None and (actor := used.record.actor) is not None:
            if loom.actors.is_at_rest(actor):
                self._offer(used, actor.key, calls_at_hand(actor.mean_s))
        elif (worker := loom.scheduler.idle_worker()) is not None:
            process = self._pool.by_number[worker.number]
            if (spec := process.known.latest) is not None:
                self._offer(process, 0, loom.times.window(spec.function.key))

    def _offer(self, process: WorkerProcess, actor_key: int, window: int) -> None:
        spec = process.known.latest
        if (
            spec is not None
            and window > 1  # a call that is long gains nothing
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

    def enter(self, entry: tuple[Node, Offer]) -> None:
        """A call that its caller may have handed over, or is about to."""
        node, offer = entry
        if offer.take(_RECALLED) is node:
            self._open = None
            self._enter_handed_over(node, offer)
        elif offer.actor_key:
            self._call_actor((node, offer.actor_key))
        else:
            self._submit(node)

    def _enter_handed_over(self, node: Node, offer: Offer) -> None:
        loom, worker = self._loom, offer.process.record
        self.taken += 1
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


def _frame(offer: Offer, node: Node) -> bytes | None:
    """What is sent for a call; None when that is too much, or not all that a worker needs."""
    if node.deps or node.nested or node.scope is not None or type(node.args) is not bytes:
        return None
    message = (
        m.RUN, offer.seq, node.key, 1, offer.spec.number, node.args, node.holes, None,
        node.context, None,
    )  # fmt: skip
    frame: Any = encode([message])[0]
    return frame if len(frame) <= MAX_FRAME_BYTES else None
