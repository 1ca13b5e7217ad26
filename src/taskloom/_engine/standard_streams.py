"""A program without standard streams (a daemon) has room at descriptors 0 to 2.  Nothing of ours
must come to stand there: whoever writes to its "stdout" would write into our streams."""

from __future__ import annotations

import os


def occupy_free() -> None:
    """Put ``/dev/null`` where a standard stream is closed; it stays there.

    It is what daemons do for themselves.  A descriptor that is open is left alone.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest that is free is this one: those below it are taken.
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
