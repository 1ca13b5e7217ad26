"""Values on disk: where they go when the store is full.

Values are written many to a file (Ray fuses them, too), into a directory that only this user can
read.  A file goes when the last value in it does.  The directory holds a locked file for as long
as the session lives: a directory whose lock is free belongs to a dead session, and the next one
removes it.  The lock is the proof, not a process id, which may be somebody else's by now.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from taskloom._store.arena import ALIGNMENT, padded
from taskloom._store.stored import Shape, outgoing, process_store
from taskloom.exceptions import ObjectLostError

FUSED_BYTES: Final = 100 * 1024 * 1024
"""Values are written together until a file has this size (Ray: ``min_spilling_size``)."""
_LOCK: Final = "lock"
_WRITE_BYTES: Final = 64 * 1024 * 1024


class SpillFile:
    """One file; gone when nobody refers to it any more."""

    __slots__ = ("_on_gone", "path")

    def __init__(self, path: str, on_gone: Callable[[str], None]) -> None:
        self.path = path
        self._on_gone = on_gone

    def __del__(self) -> None:
        self._on_gone(self.path)  # removed later: nothing slow happens in a collection


class Spilled:
    """A value on disk, in the driver; ``open`` and ``size_bytes`` as for any payload."""

    __slots__ = ("file", "pin", "pinned", "position", "shape")

    _pins = itertools.count(-1, -1)  # blocks have the other numbers

    def __init__(self, file: SpillFile, position: int, shape: Shape) -> None:
        self.file = file
        self.position = position
        self.shape = shape
        self.pin = next(self._pins)
        self.pinned = 0

    @property
    def size_bytes(self) -> int:
        return self.shape.size

    def open(self) -> tuple[memoryview, list[memoryview]]:
        """The pickle and the buffers, read into memory that lives as long as they do.

        Raises:
            ObjectLostError: the file is gone, or damaged.
        """
        return read(self.file.path, self.position, self.shape)

    def __reduce__(self) -> tuple[Callable[..., SpilledElsewhere], tuple[Any, ...]]:
        outgoing.append(self)
        return SpilledElsewhere, (self.pin, self.file.path, self.position, *self.shape)

    def __repr__(self) -> str:
        return f"<{self.shape.size} bytes in {self.file.path}>"


class SpilledElsewhere:
    """The same in a worker; the driver keeps the file until this has died."""

    __slots__ = ("_path", "_position", "_shape", "pin")

    def __init__(
        self, pin: int, path: str, position: int, data_bytes: int, buffer_bytes: tuple[int, ...]
    ) -> None:
        self.pin = pin
        self._path = path
        self._position = position
        self._shape = Shape(data_bytes, buffer_bytes)

    @property
    def size_bytes(self) -> int:
        return self._shape.size

    def open(self) -> tuple[memoryview, list[memoryview]]:
        return read(self._path, self._position, self._shape)

    def __del__(self) -> None:
        process_store.finished(self.pin)


def read(path: str, position: int, shape: Shape) -> tuple[memoryview, list[memoryview]]:
    """One value from a file.  It is read, not mapped: a disk error must not be a SIGBUS.

    Raises:
        ObjectLostError: the file is gone, or damaged.
    """
    memory = mmap.mmap(-1, max(shape.length, 1))
    target = memoryview(memory)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(position)
            filled = 0
            while filled < shape.length:
                count = file.readinto(target[filled : filled + _WRITE_BYTES])
                if not count:
                    raise OSError("the file is too short")
                filled += count
    except OSError as error:
        raise ObjectLostError(
            f"a value of {shape.size} bytes had been spilled to {path} and cannot be read: {error}"
        ) from error
    return shape.cut(target[: shape.length].toreadonly())


class SpillDirectory:
    """The files of one session; made when the first value is spilled.

    Args:
        base: the directory to make it in, made if need be; None for the system's place for
            temporary files.
        ring: called, on any thread and under no lock, when a file is no longer needed.
    """

    def __init__(self, base: str | None, ring: Callable[[], None] = lambda: None) -> None:
        # Workers read the files, too, and each has a working directory of its own.
        self.base = os.path.abspath(base or _temporary_directory())
        self._ring = ring
        self._path: str | None = None
        self._lock_fd = -1
        self._numbers = itertools.count(1)
        self._gone: deque[str] = deque()

    def write(self, stretches: Sequence[tuple[memoryview, Shape]]) -> list[Spilled]:
        """Write some values into one new file.

        Args:
            stretches: for each value its memory, from its start, and how it is cut.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        self.sweep_files()
        fd, path = self._new_file()
        positions = []
        try:
            position = 0
            for memory, shape in stretches:
                positions.append(position)
                _write_all(fd, memory[: shape.length], position)
                position += padded(shape.length, ALIGNMENT)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        file = SpillFile(path, self._on_gone)
        return [
            Spilled(file, position, shape)
            for position, (_, shape) in zip(positions, stretches, strict=True)
        ]

    def _new_file(self) -> tuple[int, str]:
        name = f"{next(self._numbers)}.values"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        path = os.path.join(self._directory(), name)
        try:
            return os.open(path, flags, 0o600), path
        except FileNotFoundError:  # somebody has tidied up: what comes from now on is safe
            self.forget()
            path = os.path.join(self._directory(), name)
            return os.open(path, flags, 0o600), path

    def _on_gone(self, path: str) -> None:
        self._gone.append(path)
        self._ring()

    @property
    def has_gone_files(self) -> bool:
        """Whether there is something to sweep."""
        return bool(self._gone)

    def sweep_files(self) -> None:
        """Remove the files that nobody needs any more."""
        gone = self._gone
        while gone:
            try:
                os.unlink(gone.popleft())
            except OSError:
                pass  # somebody else has removed it

    def close(self) -> None:
        """The session ends: all files go."""
        if self._path is not None:
            import shutil  # noqa: PLC0415  # as above

            shutil.rmtree(self._path, ignore_errors=True)
            self.forget()

    def forget(self) -> None:
        """Let go of the lock and leave the files alone."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
            self._path = None

    def _directory(self) -> str:
        if self._path is None:
            import tempfile  # noqa: PLC0415  # slow to load, and few sessions spill

            os.makedirs(self.base, exist_ok=True)
            path = tempfile.mkdtemp(prefix=_prefix(), dir=self.base)  # mode 0o700
            fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:  # another session takes it for a dead one's
                os.close(fd)
                raise
            self._lock_fd, self._path = fd, path
        return self._path


def remove_stale(base: str) -> None:
    """Remove what sessions of this user left in ``base`` that did not come to end properly."""
    for path in session_directories(base):
        _remove_if_stale(path)


def session_directories(base: str) -> list[str]:
    """The directories of this user's sessions in ``base``, of living ones and of dead ones."""
    prefix = _prefix()
    try:
        with os.scandir(base) as entries:
            return [entry.path for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return []


def _remove_if_stale(path: str) -> None:
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return
        fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # it is being made, or removed
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        import shutil  # noqa: PLC0415  # as above

        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # its session lives
    finally:
        os.close(fd)


def _temporary_directory() -> str:
    """``tempfile.gettempdir()`` without loading that module at each start."""
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    for path in (*named, "/tmp", "/var/tmp", "/usr/tmp"):
        if path and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            return path
    return os.getcwd()


def _prefix() -> str:
    return f"taskloom-spill-{os.getuid()}-"


def _write_all(fd: int, memory: memoryview, position: int) -> None:
    while memory:
        written = os.pwrite(fd, memory[:_WRITE_BYTES], position)
        memory = memory[written:]
        position += written
