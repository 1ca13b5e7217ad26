"""Values that end the process that touches them: their own task pays, and nobody else."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest

LIMIT_S = 20


def test_a_value_that_ends_its_process_is_charged_to_its_own_task(fresh: ModuleType):
    fresh.init(num_cpus=1)

    class Ends:
        def __reduce__(self) -> Any:
            return os._exit, (3,)

    class EndsWhenPickled:
        def __reduce__(self) -> Any:
            os._exit(4)

    f = fresh.remote(max_retries=1)(lambda value: value)
    others = [f.remote(n) for n in range(5)]
    bad = f.remote([Ends()])
    more = [f.remote(n) for n in range(5)]
    assert fresh.get(others + more, timeout=LIMIT_S) == [*range(5), *range(5)]
    with pytest.raises(fresh.exceptions.WorkerCrashedError, match=r"code 3.*attempt 2 of 2"):
        fresh.get(bad, timeout=LIMIT_S)
    worse = fresh.remote(max_retries=0)(lambda: EndsWhenPickled()).remote()
    with pytest.raises(fresh.exceptions.WorkerCrashedError, match="code 4"):
        fresh.get(worse, timeout=LIMIT_S)
