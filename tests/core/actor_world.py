"""Drives actors in the loom by hand: ``Core`` with verbs for actors and their processes."""

from __future__ import annotations

from collections.abc import Iterable

from loom_driver import LONG_S, Core, Trouble, record_of, request_of

from taskloom._core.actor_record import ActorRecord
from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._spec import ActorSpec, Pace, TaskSpec

ACTOR = WorkerKind.ACTOR
ONE_CPU = (("CPU", 10_000),)


class ActorCore(Core):
    """A loom with actors; processes for them start when ``process`` says so."""

    def __init__(self, cpus: float = 4) -> None:
        super().__init__(cpus=cpus, starts_workers=False)

    def create(
        self,
        *,
        deps: Iterable[Node | ObjectRecord] = (),
        restarts: int = 0,
        threads: int = 1,
        ordered: bool = True,
        cpus: float | None = None,
        name: str = "",
        detached: bool = False,
        groups: dict[str, int] | None = None,
    ) -> ActorRecord:
        facts = ActorSpec(
            class_name="A",
            name=name,
            namespace="n",
            detached=detached,
            get_if_exists=False,
            placement=ONE_CPU if cpus is None else (),
            max_restarts=restarts,
            is_async=False,
            is_ordered=ordered and threads == 1 and not groups,
            groups=(("", threads), *(groups or {}).items()),
            manifest=b"",
        )
        spec = TaskSpec(
            function=self._function("A", False),
            name="A.__init__",
            num_returns=1,
            request=() if cpus is None else request_of(cpus),
            max_retries=0,
            retry_exceptions=False,
            priority=0,
            actor=facts,
        )
        key = self._mint.next_task()
        actor = ActorRecord(key + 1, spec)
        node = Node(key, spec, b"args", None, tuple(record_of(d) for d in deps), (actor,))
        node.actor = actor
        self.refs[actor] += 1
        self.loom.actors.on_create(node)
        self.check()
        return actor

    def call(
        self,
        actor: ActorRecord,
        *,
        deps: Iterable[Node | ObjectRecord] = (),
        retries: int = 0,
        retry_exceptions: bool = False,
        group: str = "",
        caller: int = 0,
        timeout_s: float | None = None,
        handed_over: bool = False,
    ) -> Node:
        """A call of an actor; ``handed_over``: its process, which is at rest, has it already."""
        spec = TaskSpec(
            function=self._function("A.method", False),
            name="A.method",
            num_returns=1,
            request=(),
            max_retries=retries,
            retry_exceptions=retry_exceptions,
            priority=0,
            pace=Pace.of({"timeout": timeout_s}, retry_exceptions),
            group=group,
        )
        key = self._mint.next_task() + (caller << 56)
        records = tuple(dict.fromkeys(record_of(dep) for dep in deps))
        node = Node(key, spec, b"args", None, records, (ObjectRecord(key + 1),))
        node.actor = actor
        if actor.death is None:
            node.nested = (actor,)
        self.refs[node.outputs[0]] += 1
        if handed_over:
            assert actor.worker is not None
            self.loom.actors.on_handed_over(node, actor, actor.worker.seq + 1)
        else:
            self.loom.actors.on_call(node)
        self.check()
        return node

    def process(self) -> WorkerRecord:
        """A process for an actor is there."""
        worker = self.worker(ACTOR)
        self.schedule()
        return worker

    def alive(self, **options: object) -> ActorRecord:
        """An actor whose constructor has returned."""
        actor = self.create(**options)  # type: ignore[arg-type]
        self.schedule()
        self.process()
        self.construct(actor)
        return actor

    def construct(self, actor: ActorRecord) -> None:
        """Its constructor returns."""
        assert actor.creation is not None
        self.finish(actor.creation)
        self.schedule()

    def kill(self, actor: ActorRecord, *, no_restart: bool = True) -> None:
        self.loom.actors.on_kill(actor, no_restart=no_restart)
        self.check()

    def lose_process(self, worker: WorkerRecord, *, started: Node | int = 0) -> None:
        """The process of an actor is gone."""
        seq = started.seq if isinstance(started, Node) else started
        self.loom.on_actor_worker_lost(worker, seq, "it crashed")
        self.check()
        self.schedule()

    def running(self, actor: ActorRecord) -> list[Node]:
        return list(actor.worker.inflight.values()) if actor.worker is not None else []

    def raises(self, node: Node, *, retry: bool = False) -> None:
        assert node.worker is not None
        error = Trouble("raised", node.key)
        self.loom.on_failed(node.worker, node.seq, error, retry=retry, seconds=LONG_S)
        self.check()
        self.schedule()
