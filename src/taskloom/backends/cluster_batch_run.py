"""The worker's side of ``cluster_batches``: short calls, one after another, in one task."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from itertools import takewhile
from time import perf_counter
from typing import Any, Final

from taskloom._spec import TaskSpec
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_batches import note_name
from taskloom.backends.cluster_driver import SMALL_BYTES, Job, Outcome, Place, Receipt
from taskloom.backends.cluster_run import run_call
from taskloom.backends.cluster_values import Carried, size_of

STOP_S: Final = 0.05
"""What has not begun after so many seconds is handed back."""
NOTE_S: Final = 0.03
"""A call that takes longer is waited for neither by those before it nor by those after it."""


def run_many(
    home: ClusterBackend, number: int, specs: Sequence[TaskSpec], batch: bytes
) -> list[tuple[Any, ...]]:
    """Run the calls of a batch; never raises.

    Args:
        home: the session, in this worker.
        number: of the batch.
        specs: of its calls.
        batch: the calls, as ``cluster_batches`` packs them.

    Returns:
        A receipt, as a tuple, for each call that has run; there may be fewer than calls.
    """
    progress = _Progress(home, number)
    began = perf_counter()
    try:
        for index, job, fills in pickle.loads(batch):
            if not progress.begin() or perf_counter() - began > STOP_S:
                break
            receipt, outcomes = run_call(home, specs[index], Job(*job), fills)
            progress.receipts.append(tuple(_with_all(home, receipt, outcomes)))
    finally:
        progress.is_over.set()
    return progress.receipts


def _with_all(home: ClusterBackend, receipt: Receipt, outcomes: Sequence[Outcome]) -> Receipt:
    """A receipt that needs no other return value: what turned out large becomes an object."""
    if None not in receipt.outcomes and not any(isinstance(one, Carried) for one in outcomes):
        return receipt
    return receipt._replace(outcomes=tuple(_near(home, one) for one in outcomes))


def _near(home: ClusterBackend, outcome: Outcome) -> Any:
    if not isinstance(outcome, Carried) and size_of(outcome) <= SMALL_BYTES:
        return outcome
    return Place(value=home.driver.put(outcome))


def is_plain(receipt: tuple[Any, ...]) -> bool:
    """Whether a receipt can be pickled without the cluster's library."""
    return not any(isinstance(outcome, Place) for outcome in receipt[0])


class _Progress:
    """How far a batch is, and the thread that tells the program when a call of it takes long.

    Args:
        home: the session.
        number: of the batch.
    """

    def __init__(self, home: ClusterBackend, number: int) -> None:
        self.receipts: list[tuple[Any, ...]] = []
        self.is_over = threading.Event()
        self._home = home
        self._name = note_name(home.session_id.hex(), number)
        self._lock = threading.Lock()
        self._begun = 0
        self._is_closed = False
        threading.Thread(target=self._watch, name="taskloom-notes", daemon=True).start()

    def begin(self) -> bool:
        """The next call is to begin; False: it is handed back already."""
        with self._lock:
            self._begun += not self._is_closed
            return not self._is_closed

    def _watch(self) -> None:
        seen = -1
        while not self.is_over.wait(NOTE_S):
            with self._lock:
                if self._begun != seen:
                    seen = self._begun
                    continue
                self._is_closed = True  # the program sends again what has not begun
            done = list(takewhile(is_plain, self.receipts))
            self._home.driver.write(self._name, pickle.dumps((self._begun, done), 5))
            return
