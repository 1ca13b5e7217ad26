"""Who keeps what: the answer to ``taskloom.memory()``, computed when somebody asks."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from typing import Any, Final

from taskloom import _ids
from taskloom._core.node import ObjectRecord
from taskloom._core.reactor import Reactor
from taskloom._engine.storage import Storage
from taskloom._memory import MemoryReport, ObjectInfo
from taskloom._store.spill import Spilled
from taskloom._store.stored import Block

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_SPARE: Final = 10_000


class CreationSites:
    """Where refs were made; kept only when the session was asked to."""

    def __init__(self) -> None:
        self._sites: dict[int, str] = {}
        self._limit = _SPARE

    def note(self, key: int, objects: dict[int, ObjectRecord]) -> None:
        """The caller of our API makes the object ``key`` now."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        self._sites[key] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if len(self._sites) > self._limit:
            self._sites = {k: site for k, site in list(self._sites.items()) if k in objects}
            self._limit = 2 * len(self._sites) + _SPARE

    def get(self, key: int) -> str | None:
        return self._sites.get(key)


def memory_report(
    loom: Reactor, storage: Storage, session_id: bytes, pids: dict[int, int], sites: CreationSites
) -> MemoryReport:
    """All objects of a session.

    Args:
        loom: whose objects.
        storage: where the large ones are.
        session_id: for the ids as users see them.
        pids: process id of each worker, by number.
        sites: where refs were made.
    """
    storage.tidy()
    holders: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for worker in loom.workers.values():
        for key in worker.borrowed:
            holders[key][f"worker {pids.get(worker.number, worker.number)}"] += 1
    for node in loom.graph.nodes.values():
        for record in (*node.deps, *node.nested):
            holders[record.key][f"task {node.spec.name}"] += 1
    for record in loom.graph.objects.values():
        for member in record.contains:
            holders[member.key]["an object that contains it"] += 1
    objects = [
        _info(record, holders[record.key], session_id, sites)
        for record in loom.graph.objects.values()
    ]
    objects.sort(key=lambda info: info.size_bytes, reverse=True)
    store = storage.store
    return MemoryReport(
        objects=tuple(objects),
        capacity_bytes=store.capacity,
        used_bytes=store.used,
        granted_bytes=store.granted,
        free_bytes=store.warm,
        spilled_bytes=sum(info.size_bytes for info in objects if info.where == "spilled"),
    )


def _info(
    record: ObjectRecord, held: Counter[str], session_id: bytes, sites: CreationSites
) -> ObjectInfo:
    texts = [what if n == 1 else f"{what} ({n} times)" for what, n in held.items()]
    rest = record.holds - held.total()
    if rest > 0:
        texts.insert(0, "a ref in the driver" if rest == 1 else f"{rest} refs in the driver")
    outcome = record.outcome
    if isinstance(outcome, Block):
        if outcome.is_viewed:
            texts.append("views in the driver")
        if outcome.pinned:
            texts.append("views in workers")
    site = sites.get(record.key)
    if site is None:
        site = f"task {record.producer.spec.name}" if record.producer is not None else ""
    return ObjectInfo(
        object_id=_ids.object_bytes(session_id, record.key).hex(),
        size_bytes=0 if record.failed else _size(outcome),
        where="error" if record.failed else _where(outcome),
        holders=tuple(texts),
        created_at=site,
    )


def _size(outcome: Any) -> int:
    if outcome is None:
        return 0
    return len(outcome) if isinstance(outcome, bytes) else int(outcome.size_bytes)


def _where(outcome: Any) -> str:
    if outcome is None:
        return "pending"
    if isinstance(outcome, Block):
        return "store"
    return "spilled" if isinstance(outcome, Spilled) else "inline"
