"""Ray on one machine, without its dashboard."""

from __future__ import annotations

import ray

from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    return RayApi(ray, include_dashboard=False)
