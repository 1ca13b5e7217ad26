"""Many short calls in one task of the cluster.

A task of Ray's or Dask's costs a millisecond or so, whatever it does.  Calls that are known to be
far shorter than that, from those before them, wait here when the cluster has work, and go
together: one task carries many of them, and each ref is settled on its own.

Which calls: those of functions whose last runs took less than ``SHORT_S``, used nothing of the
session and gave small values; that ask for one CPU and nothing else, may be tried again after a
crash, and have no ``timeout=``, no stream, no group and no large argument.  Their order is kept:
what is submitted after them goes after them, also what goes alone.

A dependency on a call that waits or goes here is filled in here, when it is done.

- A batch carries at most what takes ``BATCH_S`` at the speed known.  One that takes longer than
  ``cluster_batch_run.STOP_S`` all the same hands back what it has not begun, and those go again.
- When a call takes long all the same, nobody in its batch waits for it: the worker leaves a note
  (``Driver.write``) of what is done and what has not begun, and whoever has sent the batch looks
  for it when the batch is overdue.
- When its worker dies, each call of the batch goes on alone, with one attempt less.
- A call that is cancelled while it waits never runs; while it is under way, its outcome is that it
  was cancelled, whatever it does.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskloom._options import UNITS_PER_RESOURCE
from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import SMALL_BYTES, Job, Place, Receipt
from taskloom.backends.cluster_objects import Record, State
from taskloom.backends.cluster_values import Carried, size_of

if TYPE_CHECKING:
    from taskloom.backends.cluster import ClusterBackend
    from taskloom.backends.cluster_calls import Call

SHORT_S: Final = 0.002
"""A call that takes longer is not worth the company of others."""
BATCH_S: Final = 0.02
MOST: Final = 500
"""Calls in a batch."""
KNOWN: Final = 3
"""So many runs in a row must have been short."""
OVERDUE_S: Final = 0.1
"""When to look for a note for the first time; later ones take twice as long each, up to:"""
LAST_LOOK_S: Final = 2.0
_SAMPLE: Final = 8
_ONE_CPU: Final = (("CPU", UNITS_PER_RESOURCE),)
_LOOK_FOR_CPUS_S: Final = 5.0
_OVERTAKE_S: Final = 1.0
"""How long a call that goes alone waits until those before it are sent, when others add to them."""


class _Pace:
    """How long the calls of a function take."""

    __slots__ = ("seconds", "streak")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.streak = 0  # of short ones

    def note(self, receipt: Receipt) -> None:
        if not receipt.alone or receipt.seconds > SHORT_S:
            self.streak = 0
            return
        self.streak += 1
        self.seconds = max(receipt.seconds, 0.8 * self.seconds + 0.2 * receipt.seconds)


class _Batch:
    """Calls under way together."""

    __slots__ = ("calls", "handle", "is_cut", "look_at", "looks", "number")

    def __init__(self, number: int, calls: Sequence[Call]) -> None:
        self.number = number
        self.calls = calls
        self.handle: Any = None
        self.is_cut = False  # what it had not begun goes with others
        self.looks = 0
        self.look_at = monotonic() + OVERDUE_S


class Batches:
    """The calls of one process that go together.

    Args:
        home: whose they are.
    """

    def __init__(self, home: ClusterBackend) -> None:
        self._home = home
        self._calls = home.calls
        self._driver = home.driver
        self._paces: dict[bytes, _Pace] = {}
        self._changed = threading.Condition()
        self._queue: deque[Call] = deque()
        self._under_way: dict[int, _Batch] = {}
        self._back: deque[tuple[_Batch, Any]] = deque()
        self._held: set[Call] = set()
        self._numbers = iter(range(1, 1 << 62))
        self._samples = itertools.count()
        self._flush = False
        self._closed = False
        self._slots = 1
        self._slots_at = 0.0
        self._thread: threading.Thread | None = None
        home.calls.batches = self
        home.calls.on_single = self.on_single
        home.calls.wants_to_know = self._is_unsure

    # -- taking -------------------------------------------------------------------------------

    def wants(self, spec: TaskSpec, job: Job, inputs: Sequence[Record]) -> bool:
        """Whether a call may go with others; if not it goes alone, after those that wait."""
        if not self._is_eligible(spec, job, inputs):
            if self._queue:
                self._let_all_go()
            return False
        if self._queue or len(self._calls.running) >= self._slots:
            return True
        # There is room: alone it is there sooner, unless it has to wait for others here.
        return any(record.state == State.PENDING for record in inputs)

    def take(self, call: Call, job: Job, inputs: Sequence[Record]) -> None:
        """Take such a call."""
        pending = [record for record in inputs if record.state == State.PENDING]
        call.job = job
        with self._changed:
            self._calls.running[call.task] = call
            if pending:
                call.missing = len(pending)
                self._held.add(call)
            else:
                self._queue.append(call)
                self._changed.notify()
            self._start()
        if pending:
            # Their callbacks come at once for those that are done meanwhile.
            self._home.objects.subscribe(pending, partial(self._on_input, call), None)

    def _is_eligible(self, spec: TaskSpec, job: Job, inputs: Sequence[Record]) -> bool:
        pace = self._paces.get(spec.function.key)
        if pace is None or pace.streak < KNOWN:
            return False
        return (
            spec.request == _ONE_CPU
            and spec.num_returns == 1
            and spec.pace is None
            and spec.max_retries != 0
            and not job.places
            and type(job.payload) is bytes
            and len(job.payload) <= SMALL_BYTES
            and all(self._is_near(record) for record in inputs)
        )

    def _is_near(self, record: Record) -> bool:
        """Whether a dependency is small and here, or comes from a call that goes here."""
        if record.state == State.PENDING:
            call = self._calls.of(record.key)
            return call is not None and call.launched is None
        outcome = record.outcome
        return outcome is not None and _is_small(outcome)

    def _on_input(self, call: Call, _key: int) -> None:
        """A dependency of a call that is held is done."""
        with self._changed:
            call.missing -= 1
            if call.missing or call not in self._held:
                return
            self._held.discard(call)
            self._queue.append(call)
            self._changed.notify()

    def _is_unsure(self, call: Call) -> bool:
        """Whether more should be known of how long such calls take: of a new function of each call,
        later, until it is known as short, of some: to be told costs more than to collect."""
        spec = call.spec
        if call.actor or spec.stream is not None:
            return False
        pace = self._paces.get(spec.function.key)
        return pace is None or (pace.streak < KNOWN and next(self._samples) % _SAMPLE == 0)

    def on_single(self, call: Call, receipt: Receipt) -> None:
        """A call that went alone has ended well."""
        if call.actor or call.spec.stream is not None:
            return
        key = call.spec.function.key
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces.setdefault(key, _Pace())
        pace.note(receipt)

    def expedite(self, record: Record) -> bool:
        """Send the call that makes an object alone, if it still waits; whether that was so."""
        call = self._calls.of(record.key)
        if call is None or call.launched is not None:
            return False
        with self._changed:
            try:
                self._queue.remove(call)
            except ValueError:
                if call not in self._held:
                    return False  # it is under way
                self._held.discard(call)
        self._send_alone(call)
        return True

    def _let_all_go(self) -> None:
        """What waits is sent now: something that goes alone must not overtake it."""
        with self._changed:
            self._flush = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or not self._queue, _OVERTAKE_S)

    # -- sending ------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(
                target=self._serve, name="taskloom-batches", daemon=True
            )
            self._thread.start()

    def _serve(self) -> None:
        """Send what waits when there is room, and take back what comes; in a thread of its own:
        the cluster's library calls back on threads that must not wait for it."""
        while True:
            with self._changed:
                while not self._closed and not self._back and not self._may_send():
                    if not self._changed.wait(self._next_look()):
                        break
                if self._closed:
                    return
                calls = self._next_batch() if self._may_send() else []
                if not self._queue:
                    self._flush = False
                    self._changed.notify_all()
            while self._back:
                self._settle(*self._back.popleft())
            if calls:
                self._send(calls)
            self._look_for_notes()

    def _may_send(self) -> bool:
        return bool(self._queue) and (self._flush or len(self._under_way) < 2 * self._cpus())

    def _cpus(self) -> int:
        """How many CPUs the cluster has, as of a moment ago."""
        now = monotonic()
        if not self._slots_at or now - self._slots_at > _LOOK_FOR_CPUS_S:
            self._slots = max(int(self._driver.total_resources().get("CPU", 1)), 1)
            self._slots_at = now
        return self._slots

    def _next_batch(self) -> list[Call]:
        """What goes next: a fair share of what waits, as long as it is short."""
        share = -(-len(self._queue) // self._cpus())
        calls: list[Call] = []
        seconds = 0.0
        while self._queue and len(calls) < min(share, MOST) and seconds < BATCH_S:
            call = self._queue.popleft()
            if call.task not in self._calls.running:
                continue  # it was cancelled
            pace = self._paces.get(call.spec.function.key)
            seconds += pace.seconds if pace is not None else SHORT_S
            calls.append(call)
        return calls

    def _send(self, calls: list[Call]) -> None:
        specs: dict[int, tuple[int, TaskSpec]] = {}
        entries: list[Any] = []
        sent: list[Call] = []
        for call in calls:
            failed = next((f for record in call.inputs if (f := record.failure)), None)
            if failed is not None:
                self._calls.on_receipt(call, failed.inherit())
                continue
            fills: list[Any] = []
            for record in call.inputs:
                if record.outcome is None or not _is_small(record.outcome):
                    break
                fills.append(record.outcome)
            if len(fills) < len(call.inputs):  # it turned out large: not for a batch
                self._send_alone(call)
                continue
            index, _ = specs.setdefault(call.spec.number, (len(specs), call.spec))
            entries.append((index, tuple(call.job or ()), fills))
            sent.append(call)
        if not sent:
            return
        batch = _Batch(next(self._numbers), sent)
        with self._changed:
            self._under_way[batch.number] = batch
        packed = pickle.dumps(entries, 5)
        try:
            handle = self._driver.run_many(
                batch.number, [spec for _, spec in specs.values()], packed
            )
        except BaseException:
            with self._changed:
                self._under_way.pop(batch.number, None)
            for call in sent:
                self._send_alone(call)
            return
        batch.handle = handle
        self._driver.on_done(handle, partial(self._on_back, batch))

    def _send_alone(self, call: Call, lost: int = 0) -> None:
        job = call.job
        if job is None or call.task not in self._calls.running:
            return
        try:
            fills = [self._calls.fill(record) for record in call.inputs]
            job = job._replace(attempts=job.attempts + lost)
            self._calls.launch(call, self._driver.submit(call.spec, job, fills))
        except Exception as error:
            self._calls.on_receipt(call, self._calls.broken(error, call.spec))

    # -- coming back --------------------------------------------------------------------------

    def _on_back(self, batch: _Batch, told: Any) -> None:
        """On a thread of the cluster's library."""
        with self._changed:
            self._back.append((batch, told))
            self._changed.notify()

    def _settle(self, batch: _Batch, told: Any) -> None:
        with self._changed:
            self._under_way.pop(batch.number, None)
        if batch.looks:
            self._driver.erase(note_name(self._home.session_id.hex(), batch.number))
        if isinstance(told, Failure):
            lost = 0 if told.cancelled else 1
            for call in batch.calls:
                self._send_alone(call, lost)
            return
        receipts = self._settle_some(batch, told)
        self._send_again(batch, len(receipts))

    def _send_again(self, batch: _Batch, begun: int) -> None:
        """What a batch has not begun goes first in the next one; but not before what another batch
        has handed back that was submitted earlier."""
        rest = [call for call in batch.calls[begun:] if call.task in self._calls.running]
        batch.calls = batch.calls[:begun]
        with self._changed:
            while rest and self._queue and self._queue[0].task < rest[-1].task:
                rest.append(self._queue.popleft())
                rest.sort(key=attrgetter("task"))
            self._queue.extendleft(reversed(rest))

    def _settle_some(self, batch: _Batch, told: Sequence[tuple[Any, ...]]) -> list[Receipt]:
        receipts = [Receipt(*one) for one in told]
        for call, receipt in zip(batch.calls, receipts, strict=False):
            outcome: Any = receipt.outcomes[0]
            if isinstance(outcome, Place):  # it turned out large, and is at the cluster
                record = self._home.objects.by_key.get(call.outputs[0])
                if record is not None:
                    record.place = outcome
                receipt = receipt._replace(outcomes=(None,))
            self._calls.on_receipt(call, receipt)
        return receipts

    # -- what is overdue ----------------------------------------------------------------------

    def _next_look(self) -> float | None:
        """In how many seconds to look for notes."""
        if not self._under_way:
            return None
        return max(min(batch.look_at for batch in self._under_way.values()) - monotonic(), 0.001)

    def _look_for_notes(self) -> None:
        now = monotonic()
        for batch in list(self._under_way.values()):
            if batch.look_at > now:
                continue
            batch.looks += 1
            batch.look_at = now + min(OVERDUE_S * 2**batch.looks, LAST_LOOK_S)
            note = self._driver.read(note_name(self._home.session_id.hex(), batch.number))
            if note is not None and not batch.is_cut:
                begun, receipts = pickle.loads(note)
                self._settle_some(batch, receipts)
                self._send_again(batch, begun)
                batch.is_cut = True

    def close(self) -> None:
        """The session ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()


def _is_small(outcome: Any) -> bool:
    """What can be given to a call of a batch: it travels in a plain pickle."""
    return not isinstance(outcome, Carried) and size_of(outcome) <= SMALL_BYTES


def note_name(session: str, number: int) -> str:
    """Under which name the worker that runs a batch leaves what is done."""
    return f"{session}/batch/{number}"
