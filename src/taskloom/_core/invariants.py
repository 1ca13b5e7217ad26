"""Do all tables of the loom agree?  Asked by tests after every step."""

from __future__ import annotations

from collections import Counter

from taskloom._core.node import WorkerKind
from taskloom._core.reactor import Reactor
from taskloom._core.states import TERMINAL, NodeState
from taskloom.exceptions import InternalError


def check(loom: Reactor) -> None:
    """Raise InternalError, naming the first table that disagrees with another."""
    _check_nodes(loom)
    _check_workers(loom)
    _check_books(loom)
    _check_objects(loom)


def _check_nodes(loom: Reactor) -> None:
    queued = Counter(node.key for node in loom.ready)
    for node in loom.graph.nodes.values():
        missing = sum(dep.outcome is None for dep in node.deps)
        _must(node.unfinished == missing, f"{node!r}: unfinished={node.unfinished}, not {missing}")
        _must(node.state not in TERMINAL, f"{node!r} has ended but is kept")
        follows = node.state is NodeState.ASSIGNED and missing == 1
        _must(
            (node.state is NodeState.WAITING) == (missing > 0) or follows,
            f"{node!r}: {missing} dependencies are missing",
        )
        _must(
            queued[node.key] == (node.state is NodeState.READY),
            f"{node!r} stands {queued[node.key]} times in the ready queue",
        )
        if node.state is NodeState.ASSIGNED:
            worker = node.worker
            _must(
                worker is not None and worker.inflight.get(node.seq) is node,
                f"{node!r} is not with the worker it was handed to",
            )


def _check_workers(loom: Reactor) -> None:
    for worker in loom.workers.values():
        if worker.kind is WorkerKind.PROCESS:
            _must(
                (worker.lease is not None) == bool(worker.inflight),
                f"{worker!r}: lease {worker.lease}",
            )
            if worker.lease is not None:
                _must(
                    worker.lease.cpus_lent == worker.blocked,
                    f"{worker!r}: blocked={worker.blocked}, cpus lent={worker.lease.cpus_lent}",
                )


def _check_books(loom: Reactor) -> None:
    used: Counter[str] = Counter()
    for worker in loom.workers.values():
        held = [worker.lease] if worker.lease is not None else []
        held += [node.allocation for node in worker.inflight.values() if node.allocation]
        for allocation in held:
            for name, units in allocation.request:
                if not (name == "CPU" and allocation.cpus_lent):
                    used[name] += units
    for name, total in loom.ledger.total.items():
        free = loom.ledger.free[name]
        _must(total - used[name] == free, f"{name}: {total} - {used[name]} used != {free} free")


def _check_objects(loom: Reactor) -> None:
    holds: Counter[int] = Counter()
    for node in loom.graph.nodes.values():
        holds.update(record.key for record in node.deps)
        holds.update(record.key for record in node.nested)
    for worker in loom.workers.values():
        holds.update(worker.borrowed.keys())
    for record in loom.graph.objects.values():
        holds.update(member.key for member in record.contains)
    for key, record in loom.graph.objects.items():
        _must(record.holds >= holds[key], f"object {key:#x}: {record.holds} holds < {holds[key]}")
        _must(
            record.holds > 0 or record.outcome is None,
            f"object {key:#x} is done and held by nobody",
        )
        _must(
            (record.outcome is None) == (record.producer is not None),
            f"object {key:#x}: outcome and producer disagree",
        )


def _must(condition: bool, text: str) -> None:
    if not condition:
        raise InternalError(text)
