"""The API inside a task: a Backend that sends its questions to the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom import _current, _ids
from taskloom._spec import ActorSpec, TaskSpec
from taskloom._store.arena import Arena
from taskloom._store.stored import Parts
from taskloom._wire import messages as m
from taskloom._wire.calls import encode_call, pack_plain_arguments
from taskloom._wire.context_vars import ContextPacker
from taskloom._wire.known import Known
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import blame, dumps, loads, pack, refuse, unpack
from taskloom._worker.drafts import Drafts
from taskloom._worker.link import Borrowed, Link
from taskloom._worker.stream_source import WorkerSource
from taskloom.backends.base import FORCE_ON_ACTOR, ExecutionContext, FoundActor, Made
from taskloom.exceptions import ActorHandleNotFoundError, GetTimeoutError
from taskloom.generator import ObjectRefGenerator
from taskloom.ref import ObjectRef, new_ref

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom._memory import MemoryReport
    from taskloom._worker.functions import Running


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
            _unshield(self._link)


def _unshield(link: Link) -> None:
    link.shielded = False
    if link.deferred:
        link.deferred = False
        if link.on_cancelled():  # once: an answer may have said so meanwhile
            raise KeyboardInterrupt


class WorkerBackend:
    """What ``taskloom.get`` and friends talk to in a worker."""

    is_worker: Final = True
    may_outlive: Final = False

    def __init__(
        self,
        link: Link,
        number: int,
        facts: dict[str, Any],
        running: Callable[[], Running | None],
        arena: Arena,
    ) -> None:
        self._link = link
        self.drafts = Drafts(arena, link.ask, self._shield)
        link.on_grant = self.drafts.on_grant
        link.on_recall = self._give_up
        self._mint = _ids.Mint(number)
        self._running = running
        self._contexts = ContextPacker(dumps, loads)
        self._known = Known()
        # The link's own: a collection may run a finalizer that submits in the middle of either, a
        # submit or a flush, on either thread, and two locks would be taken in either order.
        self._submit_lock = link.lock
        self._open_groups: set[WorkerGroup] = set()
        self.session_id: bytes = facts["session_id"]
        self.node_id: str = facts["node_id"]
        self.job_id: str = facts["job_id"]
        self.namespace: str = facts["namespace"]
        self._actor_facts: dict[str, Any] = {}  # for ExecutionContext, in the process of an actor
        self.worker_id = (self.session_id + number.to_bytes(16, "big")).hex()

    def become_actor(self, key: int, spec: ActorSpec, restarted: bool) -> None:
        """This process is that of an actor from now on."""
        self._actor_facts = {
            "actor_key": key, "actor_spec": spec, "actor_restarted": restarted
        }  # fmt: skip

    def _shield(self) -> _Shield:
        return _Shield(self._link)

    # -- submit and put -----------------------------------------------------------------------

    def submit(self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]) -> Made:
        if (
            spec.is_plain
            and not kwargs
            and not self._open_groups
            and not copy_context()
            and (payload := pack_plain_arguments(args)) is not None
        ):
            return self._submit_plain(spec, payload)
        return self._submit(m.SUBMIT, spec, args, kwargs, ())

    def _submit_plain(self, spec: TaskSpec, payload: bytes) -> ObjectRef[object]:
        # Fast path: most calls are such (4.4 -> 2.8 us).  Plain twin: :meth:`_submit`.
        link = self._link
        running = self._running()
        is_outermost = not link.shielded and threading.get_ident() == link.main_thread
        if is_outermost:
            link.shielded = True
        try:
            task = self._mint.next_task()
            ref: ObjectRef[object] = new_ref(task + 1, self, link.borrow_new(task + 1))
            with self._submit_lock:
                if spec is not self._known.latest:
                    for message in self._known.introduce_upwards(spec):
                        link.post(message)
                link.post_call(
                    (
                        m.SUBMIT, task, spec.number, payload, None, (), (), None,
                        running.seq if running else 0,
                    )
                )  # fmt: skip
        finally:
            if is_outermost:
                _unshield(link)
        return ref

    def _submit(
        self,
        op: int,
        spec: TaskSpec,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        more: tuple[int, ...],
    ) -> Made:
        payload, holes, deps, nested = encode_call(args, kwargs, spec.name, self._put_argument)
        keys = tuple([self._check(ref)._key for ref in deps]) if deps else ()
        context = self._contexts.pack()
        task = self._mint.next_task()
        link = self._link
        running = self._running()
        group = _current.open_group(self) if self._open_groups else None
        with self._shield():
            refs: list[ObjectRef[object]] = [
                ObjectRef(key, self, link.borrow_new(key))
                for key in range(task + 1, task + 1 + spec.num_returns)
            ]
            with self._submit_lock:  # a SPEC goes before the first SUBMIT that names it
                if spec is not self._known.latest:
                    for message in self._known.introduce_upwards(spec):
                        link.post(message)
                if group is not None:
                    link.post((m.GROUP_JOIN, cast("WorkerGroup", group).key, task))
                link.post_call(
                    (
                        op, task, spec.number, payload, holes, keys, nested, context,
                        running.seq if running else 0, *more,
                    )
                )  # fmt: skip
        if spec.stream is not None:
            return ObjectRefGenerator(WorkerSource(self, refs[0], spec.stream > 0))
        if spec.num_returns == 1:
            return refs[0]
        return refs or None

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        facts = spec.actor
        assert facts is not None
        payload, holes, deps, nested = encode_call(args, kwargs, spec.name, self._put_argument)
        keys = tuple(self._check(ref)._key for ref in deps)
        task, context = self._mint.next_task(), self._contexts.pack()
        message = (m.CREATE, task, spec.number, payload, holes, keys, nested, context, 0)
        with self._shield():
            with self._submit_lock:
                for introduction in self._known.introduce_upwards(spec):
                    self._link.post(introduction)
                if not facts.name:
                    ref = self._new_ref(task + 1)
                    self._link.post_soon(message)
                    return FoundActor(task + 1, facts.manifest, ref)
            found = self._link.ask(m.QUERY, "create", message)
            if found:
                return FoundActor(*found)
            return FoundActor(task + 1, facts.manifest, self._new_ref(task + 1))

    def call_actor(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        return self._submit(m.CALL, spec, args, kwargs, (key,))

    def kill_actor(self, key: int, *, no_restart: bool) -> None:
        if not self.ask_about_actors("is_known", key):
            raise ActorHandleNotFoundError("the actor of this handle is not known any more")
        self._link.post_soon((m.KILL, key, no_restart))

    def ask_about_actors(self, name: str, content: object) -> Any:
        with self._shield():
            return self._link.ask(m.QUERY, name, content)

    def _new_ref(self, key: int) -> ObjectRef[object]:
        return ObjectRef(key, self, self._link.borrow(key, announce=False))

    def _new_object(self) -> ObjectRef[object]:
        """A ref to an object of a name of its own, which the driver is to be told of."""
        return self._new_ref(self._mint.next_task() + 1)

    def _give_up(self) -> None:
        """In the control thread: the driver needs our space."""
        self._link.post((m.UNUSED, self.drafts.give_up()))
        self._link.flush()

    def put(self, value: object) -> ObjectRef[object]:
        try:
            payload, contained = pack(value, self.drafts.keep)
        except BaseException as error:
            refuse(error, value, "the value given to put()", "value")
        return self._put(payload, contained)

    def _put_argument(
        self, _arg: object, _where: int | str, parts: Parts, contained: tuple[int, ...]
    ) -> ObjectRef[object]:
        return self._put(self.drafts.keep(parts), contained)

    def _put(self, payload: Any, contained: tuple[int, ...]) -> ObjectRef[object]:
        key = self._mint.next_task() + 1
        with self._shield():
            ref: ObjectRef[object] = ObjectRef(key, self, self._link.borrow(key, announce=False))
            self._link.post_soon((m.PUT, key, payload, contained))
        return ref

    # -- get and wait -------------------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        for ref in refs:
            if ref._home is not self:
                self._check(ref)
        records: list[Borrowed] = [ref._record for ref in refs]
        keys = [record.key for record in records if record.outcome is None]
        if keys:
            missing = list(dict.fromkeys(keys))
            with self._shield():
                outcomes = self._link.ask(m.GET, missing, timeout_s)
            if isinstance(outcomes, Failure):
                raise outcomes.revive()
            by_key = dict(zip(missing, outcomes, strict=True))
            for record in records:
                if record.outcome is None:
                    record.outcome = by_key[record.key]
        got = [record.outcome for record in records]
        for outcome in got:
            if type(outcome) is not bytes and isinstance(outcome, Failure):
                raise outcome.revive()
        if None in got:
            raise GetTimeoutError(f"not all of {len(refs)} objects were done in {timeout_s} s")
        values: list[object] = []
        while len(values) < len(got):
            with self._shield():
                try:
                    for outcome in got[len(values) :]:
                        values.append(unpack(outcome))
                        if self._link.deferred:  # the task was cancelled: it hears so between two
                            break
                except BaseException as error:
                    at = len(values)
                    blame(error, got[at], f"the value of {refs[at]!r}")
        return values

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        keys = [self._check(ref)._key for ref in refs]
        with self._shield():
            answer = self._link.ask(m.WAIT, keys, num_returns, timeout_s)
        if isinstance(answer, Failure):
            raise answer.revive()
        done = set(answer)
        ready: list[ObjectRef[object]] = []
        rest: list[ObjectRef[object]] = []
        for ref in refs:
            (ready if ref._key in done and len(ready) < num_returns else rest).append(ref)
        return ready, rest

    def open_group(self) -> WorkerGroup:
        return WorkerGroup(self, cast("WorkerGroup | None", _current.open_group(self)))

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
            try:
                return unpack(outcome)
            except BaseException as error:
                blame(error, outcome, f"the value of {ref!r}")

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        return self.listen(refs, callback, loop, task_waits=True)

    def listen(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None,
        *,
        task_waits: bool,
    ) -> Callable[[], None]:
        """``subscribe``; ``task_waits``: the running task rests meanwhile, and lends its CPUs."""
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
        seq = -1 if not task_waits else running.seq if running else 0
        number = self._link.watch(tuple(records), notice, seq)
        return lambda: self._link.unwatch(number)

    # -- the rest -----------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        key = self._check(ref)._key
        if force and self.ask_about_actors("is_call", key):
            raise ValueError(FORCE_ON_ACTOR)
        self._link.post_soon((m.CANCEL, key, force, recursive))

    def abandon(self, ref: ObjectRef[object]) -> None:
        self._link.post_soon((m.ABANDON, ref._key))

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        with self._shield():
            answer = self._link.ask(m.QUERY, "withdraw", self._check(ref)._key)
        return bool(answer)

    def adopt(self, key: int) -> ObjectRef[object]:
        with self._shield():  # user code unpickles refs, too
            return ObjectRef(key, self, self._link.borrow(key, announce=True))

    def drop(self, ref: ObjectRef[object]) -> None:
        self._link.drop(ref._key)

    def pin(self, ref: ObjectRef[object]) -> None:
        self._link.post_soon((m.PIN, ref._key))

    def spread(self, name: str, blob: bytes, *, keep: bool) -> None:
        """Nothing: what a task registers stays in its worker."""

    def why(self, ref: ObjectRef[object]) -> str:
        with self._shield():
            answer: str = self._link.ask(m.QUERY, "why", self._check(ref)._key)
        return answer

    def cluster_resources(self) -> dict[str, float]:
        answer: dict[str, float] = self._query("cluster_resources")
        return answer

    def nodes(self) -> None:
        """There is but this machine."""

    def available_resources(self) -> dict[str, float]:
        answer: dict[str, float] = self._query("available_resources")
        return answer

    def memory(self) -> MemoryReport:
        report: MemoryReport = self._query("memory")
        return report

    def _query(self, name: str) -> Any:
        with self._shield():
            return self._link.ask(m.QUERY, name, 0)

    def context(self) -> ExecutionContext:
        running = self._running()
        if running is None:
            return ExecutionContext(**self._actor_facts)
        return ExecutionContext(
            task_key=running.key,
            task_name=running.spec.name,
            function_name=running.spec.function_name,
            resources=running.spec.request,
            accelerator_ids=tuple(running.accelerators.items()),
            attempt=running.attempt,
            **self._actor_facts,
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


class WorkerGroup:
    """A group that a task has opened; see :class:`taskloom.backends.base.Group`."""

    def __init__(self, home: WorkerBackend, outer: WorkerGroup | None) -> None:
        self.home: WorkerBackend = home
        self.outer = outer
        self.closed = False
        self.key = key = home._mint.next_task()
        self._stop: Callable[[], None] | None = None
        running, link = home._running(), home._link
        with home._shield():
            self.end: ObjectRef[Any] = ObjectRef(
                key + 1, home, link.borrow(key + 1, announce=False)
            )
            self._alarm: ObjectRef[Any] = ObjectRef(
                key + 2, home, link.borrow(key + 2, announce=False)
            )
            outer_key = outer.key if outer is not None else 0
            link.post_soon((m.GROUP_OPEN, key, outer_key, running.seq if running else 0))
        home._open_groups.add(self)

    def on_alarm(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        self._stop = self.home.listen((self._alarm,), callback, loop, task_waits=False)

    def close(self) -> None:
        self.closed = True
        self.home._open_groups.discard(self)
        if self._stop is not None:
            self._stop()
        self.home._link.post_soon((m.GROUP_CLOSE, self.key))

    def cancel(self) -> None:
        self.home._link.post_soon((m.GROUP_CANCEL, self.key))

    def release(self, ref: ObjectRef[Any]) -> None:
        self.home._link.post_soon((m.GROUP_RELEASE, self.key, self.home._check(ref)._key))
