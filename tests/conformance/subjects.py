"""Tasks, an error and an actor that several modules of the suite use."""

from __future__ import annotations

import os
from typing import Final

import taskloom as tl

LONG_S: Final = 100
"""Nothing takes that long; a cluster on a busy machine may take a good part of it."""

AT_ONCE: Final = "a task is over when .remote() returns"
ONE_PROCESS: Final = "what ends a task's process ends the program: it is the same one"
"""Why ``local_mode`` is different in many rows."""


class Broken(Exception):
    """An error with state of its own, which must survive the way."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@tl.remote
def add(a, b):
    return a + b


@tl.remote
def fail(code):
    raise Broken(code, "it broke")


@tl.remote
class Counter:
    """Counts, and does all that is bad for an actor."""

    def __init__(self, n=0):
        self.n = n

    def add(self, k=1):
        self.n += k
        return self.n

    def fail(self):
        raise Broken(1, "it broke")

    def pid(self):
        return os.getpid()

    def die(self):
        os._exit(1)

    def leave(self):
        tl.actor.exit_actor()

    def me(self):
        context = tl.get_runtime_context()
        return context.get_actor_id(), context.current_actor, context.get_actor_name()

    def was_restarted(self):
        return tl.get_runtime_context().was_current_actor_reconstructed

    def items(self, n):
        yield from range(n)
