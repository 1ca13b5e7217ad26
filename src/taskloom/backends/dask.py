"""Dask as a backend: ``init("dask")``, ``init("dask://host:8786")``, ``init("dask+tls://...")``.

Here a session begins and ends.  The modules ``dask_*`` are what it is made of, and nobody else
imports Dask.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, Final

from taskloom import _current, _ids
from taskloom._config import Config, env_flag
from taskloom.backends._addresses import Address
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_connect import knock, load_extra
from taskloom.backends.cluster_driver import SessionFacts

distributed = load_extra("distributed", "dask")
dask = load_extra("dask", "dask")
# After the lines above, which say what to install.
from taskloom.backends import dask_head  # noqa: E402
from taskloom.backends.dask_driver import DaskDriver  # noqa: E402
from taskloom.backends.dask_processes import OwnCluster  # noqa: E402
from taskloom.backends.dask_waits import is_connected  # noqa: E402

_START_S: Final = 60.0
"""How long worker processes of our own may take to start."""
_JOIN_S: Final = 60.0
"""How long a worker may take to connect to its scheduler."""
_LOGGERS: Final = (
    "distributed",
    "distributed.client",
    "distributed.scheduler",
    "tornado.application",
)
_OF_NO_USE: Final = ("object_store_memory", "include_dashboard")


def start(
    config: Config, address: Address, arguments: Mapping[str, Any], timeout_s: float
) -> ClusterBackend:
    """A session on Dask.

    Args:
        config: of the session.
        address: of the cluster.
        arguments: of ``init``, as they were given.
        timeout_s: how many seconds a running cluster has to answer.

    Raises:
        ConnectionError: it does not, or its versions are others than ours.
    """
    quiet = _Quiet()
    cluster: Any = None
    client: Any = None
    try:
        if address.is_running:
            timeout_s = knock(address, timeout_s)
            client = _connect(address, timeout_s)
        else:
            cluster = _start(config, arguments)
            client = distributed.Client(cluster.address, timeout=_START_S, set_as_default=False)
            client.wait_for_workers(cluster.size, timeout=_START_S)
        return _begin(config, address, client, cluster, quiet)
    except BaseException:
        _close(client, cluster, None)
        quiet.end()
        raise


def _start(config: Config, arguments: Mapping[str, Any]) -> OwnCluster:
    """A cluster of our own."""
    for name in _OF_NO_USE:
        if arguments.get(name):
            warnings.warn(f"init('dask'): {name} has no effect on Dask", UserWarning, stacklevel=5)
    if arguments.get("labels"):
        raise NotImplementedError("init('dask'): labels are not possible on Dask; Ray has them")
    return OwnCluster(
        num_cpus=int(arguments.get("num_cpus") or os.cpu_count() or 1),
        num_gpus=float(arguments.get("num_gpus") or 0),
        resources=arguments.get("resources") or {},
        shows_output=config.log_to_driver,
    )


def join(facts: SessionFacts) -> DaskDriver:
    """The driver of a worker.

    Raises:
        ConnectionError: the worker cannot connect to its scheduler.
    """
    client = distributed.get_client()
    if not is_connected(client, _JOIN_S):  # another thread of the worker has begun to make it
        raise ConnectionError(f"a worker of Dask's has no connection to its scheduler ({client!r})")
    return DaskDriver(facts, client, is_worker=True)


def _begin(
    config: Config, address: Address, client: Any, cluster: Any, quiet: _Quiet
) -> ClusterBackend:
    """A session with a client that is connected."""
    inventory = client.run_on_scheduler(_inventory)
    session = os.urandom(_ids.SESSION_BYTES)
    facts = SessionFacts(
        session_id=session,
        job_id=session.hex()[:8],
        namespace=config.namespace,
        address=address.text,
        module=__name__,
        await_cancels=config.await_cancels,
        cancel_grace=config.cancel_grace,
        ignore_unheard=config.ignore_unhandled_errors,
        batches=env_flag("BATCH_SHORT_CALLS", default=True),
        path=tuple(os.path.abspath(entry) for entry in sys.path),
        preload=config.preload,
        worker_setup=tuple(_current.worker_setup),
        extra={"declared": tuple({name for entry in inventory for name in entry})},
    )
    head = dask_head.Head(session.hex(), {"facts": pickle.dumps(facts, 5)})
    client.register_plugin(head)

    def end() -> None:
        _close(client, cluster, head.name)
        quiet.end()

    driver = DaskDriver(facts, client, is_worker=False, end=end)
    return ClusterBackend(driver, facts)


def _inventory(dask_scheduler: Any = None) -> list[list[str]]:
    """The names of the resources that the workers declare."""
    return [list(worker.resources) for worker in dask_scheduler.workers.values()]


def _connect(address: Address, timeout_s: float) -> Any:
    """Dask's own client, in time, and with versions that fit."""
    ours = dask_head.versions()
    here = f"here: taskloom {ours[0]}, Dask {ours[1]}, Python {ours[2]}"
    where = f"{'tls' if address.scheme == 'dask+tls' else 'tcp'}://{address.place}"
    found = _client_in_time(where, timeout_s)
    if found is None or isinstance(found, BaseException):
        why = f": {found}" if found is not None else ""
        raise ConnectionError(
            f"cannot connect to {address.text!r}: something listens at {address.place}, but it "
            f"has not answered as Dask does within {timeout_s:.1f} s{why} ({here})"
        ) from found
    client: Any = found
    try:
        theirs = client.run_on_scheduler(dask_head.versions)
    except BaseException as error:
        client.close()
        raise ConnectionError(
            f"cannot use {address.text!r}: its scheduler cannot load taskloom, which it and its "
            f"workers need in the same version: {error!r} ({here})"
        ) from error
    if theirs[0] != ours[0] or _minor(theirs[2]) != _minor(ours[2]):
        client.close()
        raise ConnectionError(
            f"cannot use {address.text!r}, which has taskloom {theirs[0]}, Dask {theirs[1]}, "
            f"Python {theirs[2]} ({here})"
        )
    return client


def _client_in_time(where: str, timeout_s: float) -> Any:
    """A client, what it has raised, or None: it is too late.

    In a thread: Dask's own time limit is not one of the whole, and begins anew with each attempt.
    """
    found: list[Any] = []
    limits = {"distributed.comm.timeouts.connect": timeout_s, "distributed.comm.retry.count": 0}

    def connect() -> None:
        with dask.config.set(limits):
            try:
                found.append(distributed.Client(where, timeout=timeout_s, set_as_default=False))
            except BaseException as error:
                found.append(error)

    thread = threading.Thread(target=connect, name="taskloom-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else None


def _minor(version: str) -> str:
    return version.rpartition(".")[0]


def _close(client: Any, cluster: Any, head: str | None) -> None:
    """End what this process has with Dask; a cluster that is gone does not hold us up."""
    try:
        if client is not None:
            if head is not None and client.status == "running" and cluster is None:
                client.unregister_scheduler_plugin(head)
            client.close(timeout=2)
    except (OSError, ValueError, RuntimeError):
        pass  # the scheduler is gone: nothing is left to tell it
    finally:
        if cluster is not None:
            cluster.close()


class _Quiet:
    """Keeps Dask's loggers silent, from now until :meth:`end`.

    They tell of every connection that comes and goes, and of clusters that do not answer, which
    we say ourselves.
    """

    def __init__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def end(self) -> None:
        """Let them speak again."""
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
