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
#  once)
#   retry: bool, or the pickled tuple of exception classes; threads: for OMP_NUM_THREADS;
#   once: no retries, so a result must not be lost with the worker
SPEC: Final = 2
# (RUN, seq, task key, attempt, spec number, args payload, holes, fills, context, accelerators)
#   holes: None, or (where, index into fills) pairs, where = position or keyword
#   fills: payloads, or the key of what the task directly before this one returns
RUN: Final = 3
# (FORGET_FUNCTION, key) / (FORGET_SPEC, number): it will be defined again when it is needed
FORGET_FUNCTION: Final = 4
FORGET_SPEC: Final = 5

# -- down, data or control stream -------------------------------------------------------------
# (REPLY, request, returned up to, answer)   answers GET, WAIT, QUERY
REPLY: Final = 10
# (NOTICE, request, key, outcome)            answers WATCH, once for each key
NOTICE: Final = 11

# -- down, control stream ---------------------------------------------------------------------
# (TAKE_BACK, seq)        give back what is not started, up to seq; answered by RETURNED
TAKE_BACK: Final = 20
# (INTERRUPT, seq)        the task was cancelled
INTERRUPT: Final = 21

# -- up, data stream --------------------------------------------------------------------------
# (READY, pid)
READY: Final = 30
# (DONE, seq, payload or list of payloads, keys contained or None (or list of them), seconds)
DONE: Final = 31
# (FAILED, seq, failure, retry: bool, seconds)     failure None: it was not started
FAILED: Final = 32
# (RETURNED, low, high)     what has low < seq <= high was not started and never will be here
RETURNED: Final = 33
# (SUBMIT, task key, spec number, args payload, holes, dep keys, nested keys, context, parent)
SUBMIT: Final = 34
# (PUT, key, payload, keys contained)
PUT: Final = 35
# (GET, request, keys, timeout, running)   -> list of outcomes (None: not done in time)
#   running: the seq of the task whose main thread asks and reads the data stream; 0 another
#   thread; -1 the thread of an event loop, which stands still meanwhile
GET: Final = 36
# (WAIT, request, keys, num_returns, timeout, running)   -> list of keys that are done
WAIT: Final = 37
# (WATCH, request, keys, seq of the task)  -> NOTICE for each      (UNWATCH, request)
WATCH: Final = 38
UNWATCH: Final = 39
# (BORROW, keys) / (RELEASE, keys): refs to them live in this worker / no longer do
BORROW: Final = 40
RELEASE: Final = 41
# (CANCEL, key, force, recursive)
CANCEL: Final = 42
# (ABANDON, key)     an await of it was cancelled
ABANDON: Final = 45
# (PIN, key)
PIN: Final = 43
# (QUERY, request, name, key or 0, running)    -> facts; "withdraw": True or False
QUERY: Final = 44
# FUNCTION and SPEC also go up, for what workers submit; SPEC up is
# (SPEC, number, function key, function name, module, coroutine, task name, num_returns,
#  request, max_retries, retry, priority)
