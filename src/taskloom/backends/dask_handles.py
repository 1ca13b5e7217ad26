"""What Dask keeps for us, and our names of it.

A call is one task of Dask's, and Dask knows one value of it: an :class:`Answer`, which holds the
receipt and the outputs.  Whoever has made the call learns from the *type* of that value, which
Dask tells with the end of a task, whether it is small and worth fetching: a :class:`LargeAnswer`
stays where it is.

A handle travels by the key alone, and becomes one of Dask's futures where it arrives
(:func:`bind`), so that whoever has it keeps the value alive: also a worker that has only got a
value in which there are handles.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

import distributed
from distributed.protocol import dask_deserialize, dask_serialize

from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import ActorHome, Here, Outcome, Place, Receipt
from taskloom.backends.cluster_values import Carried, size_of
from taskloom.backends.dask_head import WISH

_OVERHEAD_BYTES = 64


class Answer:
    """The value of one of our tasks at Dask.

    Args:
        receipt: how the call has ended.
        outcomes: what it gave, where the receipt does not hold all of it.
    """

    __slots__ = ("outcomes", "receipt")

    def __init__(self, receipt: Receipt, outcomes: Sequence[Outcome] = ()) -> None:
        self.receipt = receipt
        self.outcomes = outcomes

    def output(self, index: int) -> Any:
        """One of the outputs."""
        return self.outcomes[index] if self.outcomes else self.receipt.outcomes[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.receipt, self.outcomes)

    def __sizeof__(self) -> int:  # Dask asks: it places and spills by size
        all_of_it = self.outcomes or self.receipt.outcomes
        return _OVERHEAD_BYTES + sum(size_of(one) for one in all_of_it)


class LargeAnswer(Answer):
    """One with an output that is not worth fetching before somebody asks for it."""

    __slots__ = ()


@dask_serialize.register(Answer)  # type: ignore[untyped-decorator]  # distributed is untyped
def _apart(value: Answer) -> tuple[dict[str, Any], list[Any]]:
    # Dask's own way copies: what goes by way of the scheduler it pickles by protocol 4.
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return {}, [packed, *(buffer.raw() for buffer in buffers)]


@dask_deserialize.register(Answer)  # type: ignore[untyped-decorator]
def _together(_header: dict[str, Any], frames: Sequence[Any]) -> Answer:
    found: Answer = pickle.loads(frames[0], buffers=frames[1:])
    bind(found)
    return found


clients: Final[list[Any]] = []
"""Dask's client of the session that this process has joined last; empty before the first."""


def make_future(key: str) -> Any:
    """One of Dask's futures, of this process, for a key that somebody else holds, too."""
    client = clients[-1] if clients else _client_of_worker()
    future = distributed.Future(key, client)
    # In the stream of all that this client says: before it releases what the handle came with.
    client._send_to_scheduler({"op": WISH, "key": key})
    return future


def _client_of_worker() -> Any:
    """Of a worker that has run nothing of ours yet, and gets a value; on its loop, mostly."""
    (worker,) = distributed.Worker._instances
    return worker._get_client()


def put_away(outcome: Outcome) -> Answer:
    """Something that was put, as a value of Dask's."""
    return Answer(Receipt((None,)), (outcome,))


def answer(told: tuple[Receipt, list[Outcome]]) -> Answer:
    """A receipt and the outcomes as the value of a task of Dask's."""
    receipt, outcomes = told
    if None in receipt.outcomes:
        return LargeAnswer(receipt, [snapshot(outcome) for outcome in outcomes])
    if any(isinstance(outcome, Carried) for outcome in receipt.outcomes):
        small = tuple(None if one is None else snapshot(one) for one in receipt.outcomes)
        receipt = receipt._replace(outcomes=small)
    return Answer(receipt)


def snapshot(outcome: Outcome) -> Outcome:
    """An outcome that shares no memory with the user's objects, who may go on to change them."""
    if not isinstance(outcome, Carried):
        return outcome
    pieces = [bytes(piece) for piece in outcome.pieces]
    # raw(): whatever the order of the bytes is, it stays.
    buffers = [bytes(memoryview(buffer)) if not hasattr(buffer, "raw") else bytes(buffer.raw())
               for buffer in outcome.buffers]  # fmt: skip
    return Carried(pieces, buffers, outcome.places)


class Promise:
    """A call at Dask: a future of its :class:`Answer`.

    Attributes:
        key: Dask's name of it.
        outputs: how many it gives.
        task: the key of our task; 0: it is none.
        future: Dask's; None: not bound in this process yet.
        keeps: the futures that its arguments need, until it is over.
        told: how it has ended, when that is known here and nothing large is left at Dask.
        has_left: others may know it by its key alone.
        on_lost: called when Dask has failed with it: nothing of it has run.
    """

    __slots__ = ("future", "has_left", "keeps", "key", "on_lost", "outputs", "task", "told")

    def __init__(
        self,
        key: str,
        outputs: int,
        task: int = 0,
        future: Any = None,
        keeps: Any = None,
        told: Receipt | Failure | None = None,
    ) -> None:
        self.key = key
        self.outputs = outputs
        self.task = task
        self.future = future
        self.keeps = keeps
        self.told = told
        self.has_left = False
        self.on_lost: Callable[[], None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        self.has_left = True  # before ``told`` is read: see ``settle``
        return type(self), (self.key, self.outputs, self.task, None, None, self.told)

    @property
    def is_done(self) -> bool:
        """Whether it is known here that it is over."""
        return self.told is not None or self.future.done()

    def settle(self, told: Any) -> None:
        """It is over."""
        self.keeps = None
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None and isinstance(told, Failure):
            on_lost()
        is_large = isinstance(told, Receipt) and None in told.outcomes
        if is_large or not isinstance(told, Receipt | Failure):
            return
        self.told = told
        # Dask runs a call again whose value is gone with its worker, as long as there is a
        # future of it: not for what is here already.  Said at once, not when the last one who has
        # the future lets it go: what is submitted next may be what ends the worker.
        future = self.future
        if not self.has_left and future is not None:
            self.future = None
            future.release()


class Output:
    """One output of a call.

    Attributes:
        promise: of the call.
        index: which output.
        picked: the future of this output alone, once somebody has needed it.
    """

    __slots__ = ("index", "picked", "promise")

    def __init__(self, promise: Promise, index: int) -> None:
        self.promise = promise
        self.index = index
        self.picked: Any = None

    @property
    def outcome(self) -> Outcome | None:
        """It itself, where it is known."""
        told = self.promise.told
        return told.outcomes[self.index] if isinstance(told, Receipt) else told

    def __reduce__(self) -> tuple[Any, ...]:
        return Output, (self.promise, self.index)


class Stored(Promise):
    """A value that was put."""

    __slots__ = ()


class Kept:
    """A small value that travels in its handle: an item of a stream."""

    __slots__ = ("outcome",)

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.outcome,)


def bind(found: Any) -> None:
    """Make futures of all handles in something that has just been unpickled.

    Args:
        found: a handle, a place, an outcome, a receipt, or a sequence of them.
    """
    if isinstance(found, Promise):
        if found.told is not None:
            bind(found.told)
        elif found.future is None:
            found.future = make_future(found.key)
    elif isinstance(found, Output):
        bind(found.promise)
    elif isinstance(found, Carried):
        for place in found.places.values():
            bind(place)
    elif isinstance(found, ActorHome):
        bind(found.handle)
    elif isinstance(found, Place):
        bind((found.receipt, found.value, found.outcome))
    elif isinstance(found, Kept | Here):
        bind(found.outcome)
    elif isinstance(found, Receipt):
        bind(found.outcomes)
    elif isinstance(found, Answer):
        bind((found.receipt, found.outcomes))
    elif isinstance(found, tuple | list):
        for one in found:
            bind(one)


def futures_in(places: Any) -> list[Any]:
    """The futures that the handles in places hold."""
    found: list[Any] = []
    for place in places:
        for handle in (place.receipt, place.value):
            if isinstance(handle, ActorHome):
                handle = handle.handle
            if isinstance(handle, Output):
                found.append(handle.picked)
                handle = handle.promise
            if isinstance(handle, Promise) and handle.future is not None:
                found.append(handle.future)
        if isinstance(place.outcome, Carried):
            found += futures_in(place.outcome.places.values())
    return found
