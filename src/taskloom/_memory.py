"""What ``taskloom.memory()`` answers: every object of the session, and who keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TITLES = ("object", "bytes", "where", "held by", "created at")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object.

    Attributes:
        object_id: 56 hex digits, as ``ref.hex()``.
        size_bytes: of its pickled value; 0 while there is none.
        where: "pending", "error", "inline" (small, beside its record), "store" (shared memory)
            or "spilled" (on disk).
        holders: who keeps it, such as "2 refs in the driver", "worker 4711", "task f",
            "an object that contains it", "views in the driver".
        created_at: file and line of the ``put`` or ``remote``, when the session records them
            (``TASKLOOM_RECORD_REF_CREATION_SITES=1``), else the name of the task that makes it.
    """

    object_id: str
    size_bytes: int
    where: str
    holders: tuple[str, ...]
    created_at: str


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The objects of a session and the state of its store; ``str()`` of it is a table.

    Attributes:
        objects: the largest first.
        capacity_bytes: of shared memory (``object_store_memory``).
        used_bytes: of that, by values.
        granted_bytes: of that, given to workers and not written yet.
        free_bytes: of that, free but not yet given back to the system.
        spilled_bytes: values on disk now.
    """

    objects: tuple[ObjectInfo, ...]
    capacity_bytes: int
    used_bytes: int
    granted_bytes: int
    free_bytes: int
    spilled_bytes: int

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows

    def __str__(self) -> str:
        rows = [
            (
                info.object_id,
                f"{info.size_bytes:,}",
                info.where,
                ", ".join(info.holders) or "nobody",
                info.created_at,
            )
            for info in self.objects
        ]
        widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
        lines = [
            f"{len(rows)} objects; {self.spilled_bytes:,} bytes on disk",
            (
                f"store: {self.used_bytes:,} of {self.capacity_bytes:,} bytes used, "
                f"{self.granted_bytes:,} granted to workers, {self.free_bytes:,} kept warm"
            ),
        ]
        for row in (_TITLES, *rows):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)
