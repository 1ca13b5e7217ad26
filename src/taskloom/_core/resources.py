"""Resources: what there is, what is asked for, who has what.

All amounts are whole units of 0.0001 (``UNITS_PER_RESOURCE``), so nothing drifts.  CPUs may go
below zero for a while: a task that was blocked in ``get`` goes on at once when its values are
there, even if its CPU has been given to another one (Ray does the same, REM-12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from taskloom._config import Config
from taskloom._options import UNITS_PER_RESOURCE, from_units

Request = tuple[tuple[str, int], ...]
_EMPTY: Final[dict[str, tuple[str, ...]]] = {}


class Allocation:
    """What one task holds: the units, and which devices they are."""

    __slots__ = ("cpus_lent", "devices", "request")

    def __init__(self, request: Request, devices: dict[str, list[tuple[int, int]]] | None) -> None:
        self.request = request
        self.devices = devices  # {"GPU": [(index of the device, units of it)]}
        self.cpus_lent = False  # the CPUs are given back while the task is blocked


class Ledger:
    """The books: ``total`` and ``free`` units by name, and the free units of each GPU."""

    def __init__(self, total: Mapping[str, float], gpu_ids: Sequence[str] = ()) -> None:
        self.total = {name: round(amount * UNITS_PER_RESOURCE) for name, amount in total.items()}
        self.free = dict(self.total)
        self._feasible: set[Request] = {()}
        self._latest: Request | None = None  # found feasible last
        self._gpu_ids = list(gpu_ids)
        self._gpu_free = [UNITS_PER_RESOURCE] * len(gpu_ids)

    def can_ever_fit(self, request: Request) -> bool:
        """False when even an idle session could not satisfy it."""
        if request is self._latest:  # asked for each call, and a program has few shapes
            return True
        if request in self._feasible:
            self._latest = request
            return True
        if any(units > self.total.get(name, 0) for name, units in request):
            return False
        self._feasible.add(request)
        return True

    def fits(self, request: Request) -> bool:
        """True when it can be had now."""
        free = self.free
        for name, units in request:
            if free.get(name, 0) < units:
                return False
            if name == "GPU" and self._pick_gpus(units) is None:
                return False
        return True

    def short_of(self, request: Request) -> list[str]:
        """The names of which there is not enough now."""
        return [name for name, units in request if not self.fits(((name, units),))]

    def take(self, request: Request) -> Allocation | None:
        """:meth:`acquire` where :meth:`fits`, else None."""
        if len(request) == 1:
            # Fast path: a task that asks for CPUs and nothing else.  Plain twin: below.
            ((name, units),) = request
            if name == "CPU":
                left: int = self.free.get(name, 0) - units
                if left < 0:
                    return None
                self.free[name] = left
                return Allocation(request, None)
        return self.acquire(request) if self.fits(request) else None

    def acquire(self, request: Request) -> Allocation:
        """Take what :meth:`fits` has said is there."""
        devices = None
        for name, units in request:
            self.free[name] -= units
            if name == "GPU":
                picked = self._pick_gpus(units)
                assert picked is not None, "fits() was not asked"
                for index, share in picked:
                    self._gpu_free[index] -= share
                devices = {name: picked}
        return Allocation(request, devices)

    def release(self, allocation: Allocation) -> None:
        """Give back all that the allocation holds."""
        for name, units in allocation.request:
            if name == "CPU" and allocation.cpus_lent:
                continue
            self.free[name] += units
        if allocation.devices:
            for index, share in allocation.devices["GPU"]:
                self._gpu_free[index] += share

    def lend_cpus(self, allocation: Allocation) -> None:
        """The task is blocked: its CPUs, and only they, are free for others (REM-12)."""
        if not allocation.cpus_lent:
            allocation.cpus_lent = True
            self.free["CPU"] = self.free.get("CPU", 0) + _cpus(allocation.request)

    def reclaim_cpus(self, allocation: Allocation) -> None:
        """The task goes on, whether its CPUs are free or not."""
        if allocation.cpus_lent:
            allocation.cpus_lent = False
            self.free["CPU"] = self.free.get("CPU", 0) - _cpus(allocation.request)

    def device_ids(self, allocation: Allocation) -> dict[str, tuple[str, ...]]:
        """The ids of the devices an allocation holds, as users see them: {"GPU": ("0",)}."""
        if not allocation.devices:
            return _EMPTY
        return {
            name: tuple(self._gpu_ids[index] for index, _ in shares)
            for name, shares in allocation.devices.items()
        }

    def describe_total(self) -> dict[str, float]:
        return {name: from_units(units) for name, units in self.total.items()}

    def describe_free(self) -> dict[str, float]:
        """What is free now; nothing is left out or below zero by mistake (INIT-13)."""
        return {name: from_units(units) for name, units in self.free.items() if units > 0}

    def _pick_gpus(self, units: int) -> list[tuple[int, int]] | None:
        """Devices for a request: one that has room for a fraction, or whole free ones."""
        if units < UNITS_PER_RESOURCE:
            # The fullest device that still has room: whole ones stay whole for those who need.
            fitting = [i for i, free in enumerate(self._gpu_free) if free >= units]
            if not fitting:
                return None
            return [(min(fitting, key=lambda i: self._gpu_free[i]), units)]
        wanted = units // UNITS_PER_RESOURCE
        whole = [i for i, free in enumerate(self._gpu_free) if free == UNITS_PER_RESOURCE]
        if len(whole) < wanted:
            return None
        return [(i, UNITS_PER_RESOURCE) for i in whole[:wanted]]


def _cpus(request: Request) -> int:
    for name, units in request:
        if name == "CPU":
            return units
    return 0


def describe(request: Request) -> dict[str, float]:
    """A request as users write it: {"CPU": 1.0}."""
    return {name: from_units(units) for name, units in request}


def session_total(config: Config) -> dict[str, float]:
    """All resources of a session by name, the standard ones of Ray among them (INIT-13)."""
    total: dict[str, float] = {"CPU": config.num_cpus}
    if config.num_gpus:
        total["GPU"] = config.num_gpus
    total["memory"] = config.memory
    total["object_store_memory"] = config.object_store_memory
    total["node:127.0.0.1"] = total["node:__internal_head__"] = 1.0
    return {**total, **config.resources}
