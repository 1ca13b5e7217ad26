"""taskloom with Ray underneath: the same lines, ``init("ray")``."""

from __future__ import annotations

import os

import taskloom
from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    """taskloom on a Ray of its own."""
    os.environ["RAY_ADDRESS"] = "local"  # not what else runs on this machine
    return RayApi(taskloom, address="ray", include_dashboard=False, log_to_driver=False)
