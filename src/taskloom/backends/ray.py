"""Ray as a backend: ``init("ray")``, ``init("ray://host:10001")``, ``init("ray+gcs://host:6379")``.

Here a session begins and ends.  The modules ``ray_*`` are what it is made of, and nobody else
imports Ray.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from taskloom import _current, _ids
from taskloom._config import Config, env_flag
from taskloom._version import __version__
from taskloom.backends._addresses import Address
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_connect import knock, load_extra
from taskloom.backends.cluster_driver import SessionFacts

ray = load_extra("ray", "ray")
# After the line above, which says what to install.
from taskloom.backends.ray_driver import RayDriver  # noqa: E402

_PASSED_ON: Final = (
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard",
    "dashboard_host", "dashboard_port", "_temp_dir", "_system_config", "_memory",
    "_node_ip_address",
)  # fmt: skip
"""Arguments of ``init`` that are Ray's own."""


def start(
    config: Config, address: Address, arguments: Mapping[str, Any], timeout_s: float
) -> ClusterBackend:
    """A session on Ray.

    Args:
        config: of the session.
        address: of the cluster.
        arguments: of ``init``, as they were given.
        timeout_s: how many seconds a running cluster has to answer.

    Raises:
        ConnectionError: it does not, or its versions are others than ours.
        RuntimeError: this process uses Ray already.
    """
    if ray.is_initialized():
        raise RuntimeError(
            "Ray is in use in this process already (ray.init() was called): call ray.shutdown() "
            "before taskloom.init()"
        )
    if address.is_running:
        timeout_s = knock(address, timeout_s)
    _connect(config, address, arguments, timeout_s)
    try:
        facts = SessionFacts(
            session_id=os.urandom(_ids.SESSION_BYTES),
            job_id=ray.get_runtime_context().get_job_id(),
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
        )
        return ClusterBackend(RayDriver(facts, is_worker=False, end=ray.shutdown), facts)
    except BaseException:
        ray.shutdown()
        raise


def join(facts: SessionFacts) -> RayDriver:
    """The driver of a worker."""
    return RayDriver(facts, is_worker=True)


def _connect(
    config: Config, address: Address, arguments: Mapping[str, Any], timeout_s: float
) -> None:
    """Ray's own ``init``, in time."""
    given = {name: arguments[name] for name in _PASSED_ON if arguments.get(name) is not None}
    if address.is_running:
        given = {}
        place = address.place if address.scheme == "ray+gcs" else f"ray://{address.place}"
        given["address"] = place
    given.update(
        namespace=config.namespace,
        log_to_driver=config.log_to_driver,
        logging_level=arguments.get("logging_level") or logging.WARNING,
        configure_logging=bool(arguments.get("configure_logging", True)),
    )
    if address.scheme == "ray" and address.is_running:
        given = {name: given[name] for name in ("address", "namespace", "log_to_driver")}
    if given.get("logging_level") == "info":
        given["logging_level"] = logging.WARNING  # Ray tells of itself in every program's output
    errors: list[BaseException] = []
    # Ray's client cannot be told how long to try; where a cluster was started here, or is to be
    # found, there is nothing to wait for in vain.
    if not address.is_running:
        ray.init(**given)
        return

    def connect() -> None:
        try:
            ray.init(**given)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=connect, name="taskloom-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    ours = f"Ray {ray.__version__}, Python {platform.python_version()}, taskloom {__version__}"
    if thread.is_alive():
        raise ConnectionError(
            f"cannot connect to {address.text!r}: something listens at {address.place}, but it "
            f"has not answered as Ray does within {timeout_s:.1f} s (here: {ours})"
        )
    if errors:
        raise ConnectionError(
            f"cannot connect to {address.text!r}: {errors[0]} (here: {ours})"
        ) from errors[0]
