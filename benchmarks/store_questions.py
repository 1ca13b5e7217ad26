"""Questions about large values, asked of those that have ``put``."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import time
from statistics import median
from typing import Any

import numpy as np

from benchmarks import programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

Answer = dict[str, float]
MIB = 1 << 20


def put_get(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """A value is put and got again; beside it the same bytes are copied by numpy."""
    source = np.ones(sizes.array_mib * MIB, np.uint8)
    target = np.zeros_like(source)
    put_s, copy_s = [], []
    for number in rounds(most=25, budget_s=4.0):
        started = time.perf_counter()
        ref = contender.put(source)
        value = contender.fetch_one(ref)
        put_s.append(time.perf_counter() - started)
        verify("its ends", (int(value[0]), int(value[-1]), len(value)), (1, 1, len(source)))
        del ref, value
        started = time.perf_counter()
        np.copyto(target, source)
        copy_s.append(time.perf_counter() - started)
        if number < 5:  # pages are new to somebody
            put_s.clear()
            copy_s.clear()
    return {
        "of_memcpy": median(copy_s) / median(put_s),
        "put_get": len(source) / median(put_s) / 1e9,
        "memcpy": len(source) / median(copy_s) / 1e9,
    }


def get_mapped(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """``get`` of a value that is there, small and large."""
    answer = {}
    for name, size in (("p50_1_mib", MIB), ("p50_large", sizes.array_mib * MIB)):
        ref = contender.put(np.ones(size, np.uint8))
        times_s = []
        for _ in range(300):
            started = time.perf_counter()
            value = contender.fetch_one(ref)
            times_s.append(time.perf_counter() - started)
            verify("its size", len(value), size)
        answer[name] = percentile(times_s, 50) * 1e6
    return answer


def broadcast(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """One large value is the argument of many tasks."""
    submit = contender.submitter(programs.length)
    ref = contender.put(np.ones(sizes.array_mib * MIB, np.uint8))
    verify("lengths", contender.fetch([submit(ref)] * 4), [sizes.array_mib * MIB] * 4)
    rates = []
    for _ in rounds(most=15, budget_s=3.0):
        started = time.perf_counter()
        values = contender.fetch([submit(ref) for _ in range(20)])
        rates.append(20 / (time.perf_counter() - started))
        verify("lengths", values, [sizes.array_mib * MIB] * 20)
    return {"rate": median(rates)}


def many_arguments(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.total)
    refs = [contender.put(n) for n in range(sizes.many)]
    started = time.perf_counter()
    value = contender.fetch_one(submit(*refs))
    elapsed_s = time.perf_counter() - started
    verify("sum of the arguments", value, sum(range(sizes.many)))
    return {"seconds": elapsed_s}


def many_returns(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter_of_many(programs.numbers, sizes.returns)
    started = time.perf_counter()
    values = contender.fetch(submit(sizes.returns))
    elapsed_s = time.perf_counter() - started
    verify("returned numbers", values, list(range(sizes.returns)))
    return {"seconds": elapsed_s}


def many_gets(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    refs = [contender.put(n) for n in range(sizes.many)]
    started = time.perf_counter()
    values = contender.fetch(refs)
    elapsed_s = time.perf_counter() - started
    verify("values", values, list(range(sizes.many)))
    return {"seconds": elapsed_s}


def huge(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """One value of gigabytes.

    The peak is that of the driver without the original; the value in the store counts, although
    only its pages that were looked at are part of the process's own count.

    First the same bytes are written to a bare memory file.  A virtual machine gets its memory from
    the host when it first touches it, which takes several times as long as anything that is
    measured here; and it is what a put costs where there is no store at all.
    """
    size = sizes.huge_mib * MIB
    source = np.ones(size, np.uint8)
    bare_s = min(_write_bare(source) for _ in range(2))
    before = _peak_bytes()
    started = time.perf_counter()
    ref = contender.put(source)
    value = contender.fetch_one(ref)
    elapsed_s = time.perf_counter() - started
    verify("its ends", (int(value[0]), int(value[-1]), len(value)), (1, 1, size))
    return {
        "seconds": elapsed_s,
        "of_bare": elapsed_s / bare_s,
        "peak_of_value": 1 + max(0, _peak_bytes() - before) / size,
    }


def _write_bare(source: np.ndarray[Any, Any]) -> float:
    """Seconds to write an array to a new memory file, a MiB at a time."""
    data = memoryview(source)
    file = os.memfd_create("bare")
    try:
        started = time.perf_counter()
        for start in range(0, len(data), MIB):
            os.pwrite(file, data[start : start + MIB], start)
        return time.perf_counter() - started
    finally:
        os.close(file)


def spill(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Four times the store goes in, and comes back with the right checksums."""
    count = 4 * sizes.store_mib // sizes.spill_mib
    generator = np.random.default_rng(1)
    data = generator.integers(0, 255, sizes.spill_mib * MIB, dtype=np.uint8)
    refs: list[Any] = []
    wanted = []
    started = time.perf_counter()
    for number in range(count):
        data[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        wanted.append(hashlib.blake2b(data).digest())
        refs.append(contender.put(data))
    written = time.perf_counter()
    for ref, digest in zip(refs, wanted, strict=True):
        verify("checksum", hashlib.blake2b(contender.fetch_one(ref)).digest(), digest)
    ended = time.perf_counter()
    refs.clear()
    gc.collect()
    return {"seconds": ended - started, "in": written - started, "out": ended - written}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
