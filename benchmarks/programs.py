"""The functions that the contenders run: small, importable by every kind of worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sized
from itertools import product

Matrix = list[list[int]]
Lap = tuple[int, int, float, float]
"""The number of a task, the pid of its worker, and when it began and ended (monotonic)."""


def noop() -> None:
    """Nothing: what is measured is the way there and back."""


def inc(value: int) -> int:
    return value + 1


def add(left: int, right: int) -> int:
    return left + right


def total(*values: int) -> int:
    return sum(values)


def length(value: Sized) -> int:
    return len(value)


def numbers(count: int) -> list[int]:
    return list(range(count))


def count_up(count: int) -> Iterator[int]:
    yield from range(count)


def where() -> int:
    """The pid of a worker, which is kept busy long enough for the others to get work too."""
    time.sleep(0.02)
    return os.getpid()


def wait_for_file(path: str) -> None:
    """Keep a worker busy until ``path`` exists."""
    while not os.path.exists(path):
        time.sleep(0.001)


def wait_at_gate(path: str) -> None:
    """Keep a worker asleep until a byte for it is in the named pipe."""
    gate = os.open(path, os.O_RDONLY)
    try:
        os.read(gate, 1)
    finally:
        os.close(gate)


def nap(number: int, seconds: float) -> Lap:
    """Sleep; the length is known to nobody before it is over."""
    begun = time.monotonic()
    if seconds:
        time.sleep(seconds)
    return number, os.getpid(), begun, time.monotonic()


def no_nap(number: int) -> Lap:
    return nap(number, 0.0)


def short_nap(number: int) -> Lap:
    return nap(number, 0.001)


def long_nap(number: int) -> Lap:
    return nap(number, 0.05)


def perform_naive_matrix_multiplication(size: int) -> Matrix:
    matrix1 = matrix2 = [[1 for _ in range(size)] for _ in range(size)]

    result = [[0 for _ in range(size)] for _ in range(size)]
    for i, j, k in product(range(size), range(size), range(size)):
        result[i][j] += matrix1[i][k] * matrix2[k][j]

    return result


def compute_matrix_sum(matrix: Matrix) -> int:
    return sum([sum([col for col in row]) for row in matrix])  # noqa: C416  # as it was given


def expensive_computation(size: int) -> int:
    result = perform_naive_matrix_multiplication(size)
    return compute_matrix_sum(result)


class Echo:
    """For actors."""

    def inc(self, value: int) -> int:
        return value + 1


class AsyncEcho:
    """For actors with an event loop."""

    async def inc(self, value: int) -> int:
        return value + 1
