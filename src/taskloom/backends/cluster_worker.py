"""A session as the worker processes of a cluster have it: made by the first call that comes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from taskloom import _current
from taskloom._wire.custom_serializers import serializers
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_driver import SessionFacts

_homes: dict[bytes, ClusterBackend] = {}
_lock: Final = threading.Lock()
_heard: Final[set[tuple[str, bytes]]] = set()


def home_of(facts: SessionFacts) -> ClusterBackend:
    """The session of a call, active in this process from now on.

    A process belongs to one session at a time: what code asks outside of any task, in a thread of
    its own say, is answered by the one that was active last.
    """
    home = _homes.get(facts.session_id)
    if home is None:
        with _lock:
            home = _homes.get(facts.session_id) or _join(facts)
    if _current.peek() is not home:
        _current.set_backend(home)
    return home


def _join(facts: SessionFacts) -> ClusterBackend:
    known = set(sys.path)
    sys.path += [entry for entry in facts.path if entry not in known and os.path.isdir(entry)]
    home = ClusterBackend(import_module(facts.module).join(facts), facts, is_worker=True)
    _homes[facts.session_id] = home
    _current.set_backend(home)
    for name in facts.preload:
        import_module(name)
    for name in facts.worker_setup:
        module, _, function = name.partition(":")
        getattr(import_module(module), function)()
    return home


def learn(registered: Sequence[tuple[str, bytes]]) -> None:
    """What ``register_serializer`` was told in the program."""
    for entry in registered:
        if entry not in _heard:
            _heard.add(entry)
            serializers.receive(entry[1])


def forget(session_id: bytes) -> None:
    """A session is over."""
    home = _homes.pop(session_id, None)
    if home is not None and _current.peek() is home:
        _current.set_backend(None)
