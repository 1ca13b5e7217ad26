"""The whole vocabulary between the driver and a worker, on one page.

Every message is a tuple whose first item says what it is.  Keys are the integers of ``_ids``.
A *payload* is a packed value (``serialization``), an *outcome* a payload or a ``Failure``.

Between one driver and one worker there are two streams.  The *data* stream carries work down
and everything up.  The *control* stream carries down what a busy worker must hear at once, and
the answers to those of its threads that do not read the data stream themselves.

``seq`` numbers what was handed to one worker, so it also names the attempt: an answer with a
``seq`` that is not outstanding is a late one and is dropped.
"""

from __future__ import annotations

from typing import Final

# -- down, data stream ------------------------------------------------------------------------
# (FUNCTION, function key, blob)                          before the first SPEC that names it
FUNCTION: Final = 1
# (SPEC, number, function key, function name, task name, num_returns, retry, threads, request,
#  once, timed, actor, stream)
#   retry: bool, or the pickled tuple of exception classes; threads: for OMP_NUM_THREADS;
#   once: no retries, so a result must not be lost with the worker
#   timed: has a time limit, so the driver wants to know when it begins
#   actor: the ActorSpec of a constructor, or None
#   stream: None, or how many items may wait to be taken (0: any number)
SPEC: Final = 2
# (RUN, seq, task key, attempt, spec number, args payload, holes, fills, context, accelerators)
#   holes: None, or (where, index into fills) pairs, where = position or keyword
#   fills: payloads, or the key of what the task directly before this one returns
RUN: Final = 3
# (RUN_MANY, seq of the first, task keys, spec number, args payloads, accelerators)
#   first attempts of calls without holes and context: each as if it stood in a RUN of its own
RUN_MANY: Final = 9
# (FORGET_FUNCTION, key) / (FORGET_SPEC, number): it will be defined again when it is needed
FORGET_FUNCTION: Final = 4
FORGET_SPEC: Final = 5
# (GRANT, offset, length, fresh)     space in the store, before anybody asks for it
GRANT: Final = 6
# (SERIALIZER, blob)       what ``register_serializer`` was told: see ``custom_serializers``
SERIALIZER: Final = 7
# (STOP,)                  to an actor: end in good order, when nothing runs any more
STOP: Final = 8

# -- down, data or control stream -------------------------------------------------------------
# (REPLY, request, returned up to, answer)   answers GET, WAIT, QUERY; None: the task was cancelled,
#   a Failure: the wait itself has failed
REPLY: Final = 10
# (NOTICE, request, key, outcome)            answers WATCH, once for each key
NOTICE: Final = 11

# -- down, control stream ---------------------------------------------------------------------
# (TAKE_BACK, seq, told)  give back what is not started, up to seq; answered by RETURNED
TAKE_BACK: Final = 20
# (INTERRUPT, seq, force, told) the task was cancelled, or is out of time; force: end the worker
#   if it runs there.  told: what stands in the shared page since then
INTERRUPT: Final = 21
# (RECALL,)               give back what space in the store is not being written to: UNUSED
RECALL: Final = 22

# -- up, data stream --------------------------------------------------------------------------
# (READY, pid)
READY: Final = 30
# (DONE, seq, payload or list of payloads, keys contained or None (or list of them), seconds)
DONE: Final = 31
# (DONE_MANY, seqs, payloads, seconds)     small values without refs: a DONE for each
DONE_MANY: Final = 29
# (FAILED, seq, failure, retry: bool, seconds)     failure None: it was not started
FAILED: Final = 32
# (RETURNED, low, high)     what has low < seq <= high was not started and never will be here
RETURNED: Final = 33
# (SUBMIT, task key, spec number, args payload, holes, dep keys, nested keys, context, parent)
SUBMIT: Final = 34
# (SUBMIT_MANY, task keys, spec number, args payloads, parent): without holes, refs and context,
#   each as if it stood in a SUBMIT of its own
SUBMIT_MANY: Final = 28
# (PUT, key, payload, keys contained)
PUT: Final = 35
# (GET, request, keys, timeout, running)   -> list of outcomes (None: not done in time)
#   running: the seq of the task whose main thread asks and reads the data stream; 0 another
#   thread; -1 the thread of an event loop, which stands still meanwhile
GET: Final = 36
# (WAIT, request, keys, num_returns, timeout, running)   -> list of keys that are done
WAIT: Final = 37
# (WATCH, request, keys, seq of the task; -1: it goes on meanwhile)  -> NOTICE for each
# (UNWATCH, request)
WATCH: Final = 38
UNWATCH: Final = 39
# (BORROW, keys) / (RELEASE, keys): refs to them live in this worker / no longer do
BORROW: Final = 40
RELEASE: Final = 41
# (CANCEL, key, force, recursive)
CANCEL: Final = 42
# (ABANDON, key)     an await of it was cancelled
ABANDON: Final = 45
# (BEGAN, seq, when)     a coroutine with a time limit has begun, by time.monotonic()
BEGAN: Final = 48
# (PIN, key)
PIN: Final = 43
# (QUERY, request, name, key or 0, running)    -> facts; "withdraw": True or False; "why": text;
#   "stream": outcomes of the items that come next, as far as they are there and small;
#   of actors: see ``_engine/actor_desk``
QUERY: Final = 44
# (ROOM, request, length, running)     space in the store, please -> (offset, length, fresh)
ROOM: Final = 46
# (UNPIN, pins)     nobody here looks at these stored values any more
UNPIN: Final = 47
# (UNUSED, ranges)     space in the store that was recalled: (offset, length, fresh) each
UNUSED: Final = 49
# (ITEM, seq, index, payload, keys contained or None)    a generator has yielded
ITEM: Final = 50
# (ITEM_ROOM, seq, count, key)   having yielded so many the generator waits for the object ``key``
ITEM_ROOM: Final = 51
# (NEXT_ITEM, key of the output)    the consumer of a stream borrows the item that comes next
# (ITEM_TAKEN, key of the output)   he has taken it, where somebody counts
# (DROP_STREAM, key of the output)  he wants no more
NEXT_ITEM: Final = 52
ITEM_TAKEN: Final = 53
DROP_STREAM: Final = 54
# (GROUP_OPEN, key, key of the outer group or 0, seq of the task): its end and its alarm are the
#   objects 1 and 2 of that key      (GROUP_JOIN, key, task key): of a SUBMIT that comes next
# (GROUP_CLOSE, key) / (GROUP_CANCEL, key) / (GROUP_RELEASE, key, object key)
GROUP_OPEN: Final = 60
GROUP_JOIN: Final = 61
GROUP_CLOSE: Final = 62
GROUP_CANCEL: Final = 63
GROUP_RELEASE: Final = 64
# (CREATE, ...)             a SUBMIT whose object is an actor
CREATE: Final = 70
# (CALL, ..., actor key)    a SUBMIT with the actor to call behind
CALL: Final = 71
# (KILL, actor key, no_restart)
KILL: Final = 72
# (LEAVING, text)           the actor ends itself: nothing but the end comes after this
LEAVING: Final = 73
# FUNCTION and SPEC also go up, for what workers submit; SPEC up is
# (SPEC, number, function key, function name, module, coroutine, task name, num_returns,
#  request, max_retries, retry, priority, pace or None, ActorSpec of a constructor or None,
#  concurrency group, stream)
