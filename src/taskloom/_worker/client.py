"""The API inside a task: a Backend that sends its questions to the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._spec import TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.calls import encode_call
from taskloom._wire.context_vars import ContextPacker
from taskloom._wire.known import Known
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import (
    ForeignRefError,
    dumps,
    explain,
    loads,
    pack,
    unpack,
)
from taskloom._worker.link import Link
from taskloom.backends.base import ExecutionContext
from taskloom.exceptions import GetTimeoutError
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom._worker.executor import Running


class _Shield:
    """Keeps an interrupt waiting until what the main thread sends or reads is whole."""

    __slots__ = ("_link", "_outermost")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outermost = not link.shielded and threading.get_ident() == link.main_thread

    def __enter__(self) -> None:
        if self._outermost:
            self._link.shielded = True

    def __exit__(self, *_: object) -> None:
        if self._outermost:
            self._link.shielded = False
            if self._link.deferred:
                self._link.deferred = False
                raise KeyboardInterrupt


class WorkerBackend:
    """What ``taskloom.get`` and friends talk to in a worker."""

    is_worker: Final = True

    def __init__(
        self, link: Link, number: int, facts: dict[str, Any], running: Callable[[], Running | None]
    ) -> None:
        self._link = link
        self._mint = _ids.Mint(number)
        self._running = running
        self._contexts = ContextPacker(dumps, loads)
        self._known = Known()
        self._submit_lock = threading.Lock()
        self.session_id: bytes = facts["session_id"]
        self.node_id: str = facts["node_id"]
        self.job_id: str = facts["job_id"]
        self.namespace: str = facts["namespace"]
        self.worker_id = (self.session_id + number.to_bytes(16, "big")).hex()

    def _shield(self) -> _Shield:
        return _Shield(self._link)

    # -- submit and put -----------------------------------------------------------------------

    def submit(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> ObjectRef[object] | list[ObjectRef[object]] | None:
        payload, holes, deps, nested = encode_call(args, kwargs, spec.name)
        for ref in deps:
            self._check(ref)
        context = self._contexts.pack()
        task = self._mint.next_task()
        link = self._link
        running = self._running()
        with self._shield():
            refs: list[ObjectRef[object]] = [
                ObjectRef(key, self, link.borrow(key, announce=False))
                for key in range(task + 1, task + 1 + spec.num_returns)
            ]
            with self._submit_lock:  # a SPEC goes before the first SUBMIT that names it
                for message in self._known.introduce_upwards(spec):
                    link.post(message)
                link.post_soon(
                    (
                        m.SUBMIT, task, spec.number, payload, holes, tuple(r._key for r in deps),
                        nested, context, running.seq if running else 0,
                    )
                )  # fmt: skip
        if spec.num_returns == 1:
            return refs[0]
        return refs or None

    def put(self, value: object) -> ObjectRef[object]:
        try:
            payload, contained = pack(value)
        except ForeignRefError:
            raise
        except Exception as error:
            raise explain(error, value, "the value given to put()", "value") from error
        key = self._mint.next_task() + 1
        with self._shield():
            ref: ObjectRef[object] = ObjectRef(key, self, self._link.borrow(key, announce=False))
            self._link.post_soon((m.PUT, key, payload, contained))
        return ref

    # -- get and wait -------------------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        missing = list(
            dict.fromkeys(self._check(ref)._key for ref in refs if ref._record.outcome is None)
        )
        if missing:
            with self._shield():
                outcomes = self._link.ask(m.GET, missing, timeout_s)
            by_key = dict(zip(missing, outcomes, strict=True))
            for ref in refs:
                outcome = by_key.get(ref._key)
                if outcome is not None:
                    ref._record.outcome = outcome
            for ref in refs:
                if isinstance(ref._record.outcome, Failure):
                    raise ref._record.outcome.revive()
            if any(outcome is None for outcome in outcomes):
                raise GetTimeoutError(f"not all of {len(refs)} objects were done in {timeout_s} s")
        return [self.result(ref) for ref in refs]

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        keys = [self._check(ref)._key for ref in refs]
        with self._shield():
            done = set(self._link.ask(m.WAIT, keys, num_returns, timeout_s))
        ready: list[ObjectRef[object]] = []
        rest: list[ObjectRef[object]] = []
        for ref in refs:
            (ready if ref._key in done and len(ready) < num_returns else rest).append(ref)
        return ready, rest

    def is_done(self, ref: ObjectRef[object]) -> bool:
        if self._check(ref)._record.outcome is not None:
            return True
        # Whoever asks once goes on to wait.  Whoever asks again polls: he will hear the answer.
        record = ref._record
        record.polls += 1
        if record.polls == 2:
            self._link.watch_one(record)
        return False

    def result(self, ref: ObjectRef[object]) -> object:
        outcome = ref._record.outcome
        if isinstance(outcome, Failure):
            raise outcome.revive()
        with self._shield():
            return unpack(outcome)

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        records = {self._check(ref)._key: ref._record for ref in refs}

        def notice(key: int, outcome: object) -> None:
            records[key].outcome = outcome
            if loop is None:
                callback(key)
                return
            try:
                loop.call_soon_threadsafe(callback, key)
            except RuntimeError:
                pass  # the loop that waited is closed: nobody is left to tell

        running = self._running()
        number = self._link.watch(tuple(records), notice, running.seq if running else 0)
        return lambda: self._link.unwatch(number)

    # -- the rest -----------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        self._link.post_soon((m.CANCEL, self._check(ref)._key, force, recursive))

    def abandon(self, ref: ObjectRef[object]) -> None:
        self._link.post_soon((m.ABANDON, ref._key))

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        with self._shield():
            answer = self._link.ask(m.QUERY, "withdraw", self._check(ref)._key)
        return bool(answer)

    def adopt(self, key: int) -> ObjectRef[object]:
        return ObjectRef(key, self, self._link.borrow(key, announce=True))

    def drop(self, ref: ObjectRef[object]) -> None:
        self._link.dropped.append(ref._key)

    def pin(self, ref: ObjectRef[object]) -> None:
        self._link.post_soon((m.PIN, ref._key))

    def cluster_resources(self) -> dict[str, float]:
        return self._query("cluster_resources")

    def available_resources(self) -> dict[str, float]:
        return self._query("available_resources")

    def _query(self, name: str) -> dict[str, float]:
        with self._shield():
            answer: dict[str, float] = self._link.ask(m.QUERY, name, 0)
        return answer

    def context(self) -> ExecutionContext:
        running = self._running()
        if running is None:
            return ExecutionContext()
        return ExecutionContext(
            task_key=running.key,
            task_name=running.spec.name,
            function_name=running.spec.function_name,
            resources=running.spec.request,
            accelerator_ids=tuple(running.accelerators.items()),
            attempt=running.attempt,
        )

    def is_canceled(self) -> bool:
        running = self._running()
        return running is not None and running.cancelled

    def shutdown(self) -> None:
        raise RuntimeError("taskloom.shutdown() ends the session: call it in the driver")

    def _check(self, ref: ObjectRef[Any]) -> ObjectRef[Any]:
        if ref._home is not self:
            raise ValueError(f"{ref!r} does not belong to this session")
        return ref
