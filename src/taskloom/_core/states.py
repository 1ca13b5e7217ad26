"""The states of a node, the moves between them, and who may make them.

::

                    submit                    all dependencies done
        (nothing) ---------> WAITING -----------------------------------> READY <------.
                                |                                          ^  |        | pause
                 dependency     |                      taken back, retried |  | to a   | over
                 failed, cancel |                                          |  v worker |
                                |                                       ASSIGNED --> BACKOFF
                                v                                          |  |    retried later
                     FAILED, CANCELLED <---------- cancel, error ----------'  | result
                                                                              v
                                                                           FINISHED

A short task's only dependent may travel with it (``scheduler._hand_followers``): it goes from
WAITING to ASSIGNED at once and stands directly behind what it waits for, on the same worker, which
puts the value in.  It never starts before; when the first one fails or does not run there, the
worker says so and the follower is WAITING again.

A node that is handed to a worker is ASSIGNED.  Whether it *runs* already is not a state of its
own: workers start what they are given in order and write the number of the last one they
started into a page that the driver reads, so it is derived where it matters (``_pool``), and no
message per task is spent on it.

Only ``Graph.move`` changes a state, and it asks the table.  The races and how each one ends:

* *A result and a cancel cross.*  Whoever moves the node first wins; a finished node does not
  move again, so the other one finds nothing to do.
* *A result and a take-back cross.*  The worker decides, under its own lock: either it has
  started the task and the result comes, or it has not and never will.
* *A result and the death of its worker cross.*  What the worker had sent is read before its
  death is told, so a result that was sent counts.
* *A result and a timeout cross.*  Also whoever moves the node first; but an attempt that is to be
  repeated stays ASSIGNED, marked ``overdue``, until its worker is through with it, and then has
  failed whatever it brings (``deadlines``).
* *A message of an older attempt.*  Each hand-out has a number of its own (``seq``); an answer
  whose number is not outstanding is dropped and counted.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class NodeState(IntEnum):  # IntEnum: hashing stays in C, and states are looked up per move
    WAITING = 0
    READY = 1
    ASSIGNED = 2
    FINISHED = 3
    FAILED = 4
    CANCELLED = 5
    BACKOFF = 6


_S = NodeState
LEGAL: Final[dict[NodeState, frozenset[NodeState]]] = {
    # ASSIGNED: what it waits for is before it on the same worker; FAILED: a dependency did
    # BACKOFF: the constructor of an actor that has died again and again
    _S.WAITING: frozenset({_S.READY, _S.ASSIGNED, _S.BACKOFF, _S.FAILED, _S.CANCELLED}),
    _S.READY: frozenset({_S.ASSIGNED, _S.FAILED, _S.CANCELLED}),  # FAILED: can never run
    # WAITING: taken back together with what it waits for
    _S.ASSIGNED: frozenset(
        {_S.READY, _S.WAITING, _S.BACKOFF, _S.FINISHED, _S.FAILED, _S.CANCELLED}
    ),
    # WAITING, FAILED: the value it had followed on its worker died with that
    _S.BACKOFF: frozenset({_S.READY, _S.WAITING, _S.FAILED, _S.CANCELLED}),
    _S.FINISHED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

# For the lines that run for each call: in 3.11 looking a member up in its enum costs 0.07 us.
WAITING: Final = _S.WAITING
READY: Final = _S.READY
ASSIGNED: Final = _S.ASSIGNED
FINISHED: Final = _S.FINISHED

TERMINAL: Final = frozenset({_S.FINISHED, _S.FAILED, _S.CANCELLED})
