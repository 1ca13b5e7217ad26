"""How calls and answers travel through Ray.

Ray's price for a call counts arguments and return values, whatever is in them.  So most calls go
with one argument, or none, and come back with one object: the value together with the receipt.
A call whose value may be large comes back with two, so that its end can be learned without its
value; see ``ray_driver``.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final, NamedTuple

from taskloom._ids import INDEX_BITS
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends.cluster_driver import SMALL_BYTES, Job, Outcome, Receipt
from taskloom.backends.cluster_values import NOTHING, size_of

PackedJob = bytes | Job
"""A call as it travels: see :func:`pack_job`."""
PackedCall = bytes | tuple[bytes, bool, Job]
"""The same together with the spec: see :func:`pack_call`."""
_FIELDS: Final = len(Job._fields)
_NO_ARGUMENTS: Final = pack_plain(())


def pack_job(job: Job) -> PackedJob:
    """A call as it travels.

    Fast path: one without handles, which only Ray can pickle, is pickled here, in a tenth of the
    time that Ray's pickler in Python takes for it.  Plain twin: the job itself.
    """
    if job.places or type(job.payload) is not bytes:
        return job
    return pickle.dumps(tuple(job), 5)


def pack_for_one(job: Job) -> bytes | None:
    """The same for a call that answers with one object; None: it cannot go so."""
    if job.places or job.attempts or type(job.payload) is not bytes:
        return None
    return pickle.dumps((*job, True), 5)


def unpack_job(packed: PackedJob) -> tuple[Job, bool]:
    """The call of :func:`pack_job` or :func:`pack_for_one`, and which of them it was."""
    if not isinstance(packed, bytes):
        return packed, False
    fields = pickle.loads(packed)
    return Job(*fields[:_FIELDS]), len(fields) > _FIELDS


def pack_call(packed_spec: bytes, job: Job, *, wants_one: bool) -> PackedCall:
    """A call of an actor, with its spec, in one argument; ``wants_one``: answer so, too."""
    if job.places or type(job.payload) is not bytes:
        return packed_spec, wants_one, job
    return pickle.dumps((packed_spec, wants_one, *job), 5)


def unpack_call(packed: PackedCall) -> tuple[bytes, bool, Job]:
    """What :func:`pack_call` was given."""
    if not isinstance(packed, bytes):
        return packed
    packed_spec, wants_one, *fields = pickle.loads(packed)
    return packed_spec, wants_one, Job(*fields)


def is_bare(job: Job) -> bool:
    """Whether a call can go without any argument of Ray's: a worker finds out all of it."""
    return (
        job.payload == _NO_ARGUMENTS
        and job.holes is None
        and job.context is None
        and not job.registered
        and not job.attempts
    )


def bare_job(task_id: bytes) -> Job:
    """A call that has come without arguments."""
    return Job(named_by(task_id), _NO_ARGUMENTS, None, NOTHING, None)


def named_by(task_id: bytes) -> int:
    """The key of a call that goes without arguments: made of Ray's own id of the task.

    Ray makes the first eight bytes of an id by hashing, different ones for each task of a program.
    The bit above says that no ``Mint`` has made the key.
    """
    return (1 << 95 | int.from_bytes(task_id[:8], "big")) << INDEX_BITS


# -- answers --------------------------------------------------------------------------------------

_HEAD: Final = struct.Struct("<?d?")
"""Before a small value: true, how long it took, whether it used nothing of the session.

The first byte tells it from a pickle, which begins with 0x80."""


class Answer(NamedTuple):
    """What a call answers with one object, when it is no small value."""

    outcome: Outcome
    seconds: float
    alone: bool


def pack_answer(receipt: Receipt, outcome: Outcome) -> bytes | Answer:
    """The receipt and the only outcome of a call in one object of Ray's."""
    if type(outcome) is bytes:
        return _HEAD.pack(True, receipt.seconds, receipt.alone) + outcome
    return Answer(outcome, receipt.seconds, receipt.alone)


def answer(told: tuple[Receipt, list[Outcome]], *, in_one: bool = False) -> Any:
    """What a task of Ray's returns: one object, or a receipt and the outcomes."""
    receipt, outcomes = told
    if in_one:
        return pack_answer(receipt, outcomes[0])
    told_first: bytes | Receipt = receipt
    if all(type(outcome) is bytes or outcome is None for outcome in receipt.outcomes):
        told_first = pickle.dumps(tuple(receipt), 5)  # as for ``pack_job``
    return (told_first, *outcomes) if outcomes else told_first


def receipt_in(value: bytes | Answer) -> Receipt | None:
    """The receipt in what :func:`pack_answer` gave; None: it is something else."""
    if type(value) is bytes:
        if value[0] != 1:
            return None
        _, seconds, alone = _HEAD.unpack_from(value)
        is_small = len(value) <= SMALL_BYTES + _HEAD.size
        return Receipt((value[_HEAD.size :] if is_small else None,), seconds, alone)
    if type(value) is not Answer:
        return None
    outcome = value.outcome
    is_small = isinstance(outcome, Failure) or size_of(outcome) <= SMALL_BYTES
    return Receipt((outcome if is_small else None,), value.seconds, value.alone)


def outcome_in(value: Any) -> Any:
    """The outcome in what :func:`pack_answer` gave; what is an outcome by itself stays one."""
    if type(value) is bytes:
        return value[_HEAD.size :] if value[0] == 1 else value
    return value.outcome if type(value) is Answer else value
