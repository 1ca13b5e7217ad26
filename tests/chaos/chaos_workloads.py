"""Work whose answers are known: whatever happens to the workers, each answer must be right.

Each workload takes a number that varies what it computes, and returns how many calls it made.
Workers import this module.
"""

from __future__ import annotations

import hashlib
from random import Random

import taskloom as tl

always = tl.remote(max_retries=-1)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# -- numbered reports -----------------------------------------------------------------------------


@always
def report(number: int, salt: int) -> tuple[int, str]:
    return number, digest(number, salt)


def reports(salt: int, count: int = 400) -> int:
    """Each number is reported, once, and in its place."""
    told = tl.get([report.remote(number, salt) for number in range(count)])
    assert told == [(number, digest(number, salt)) for number in range(count)]
    return count


# -- map and reduce -------------------------------------------------------------------------------


@always
def mapped(chunk: bytes) -> dict[str, int]:
    counts: dict[str, int] = {}
    for byte in hashlib.sha256(chunk).digest() * 20:
        counts[f"{byte:02x}"] = counts.get(f"{byte:02x}", 0) + 1
    return counts


@always
def reduced(*parts: dict[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


def map_reduce(salt: int, chunks: int = 64, fan_in: int = 4) -> int:
    """Counts that are put together in a tree are those that one loop counts."""
    data = [f"{salt}/{index}".encode() * 50 for index in range(chunks)]
    level, calls = [mapped.remote(tl.put(chunk)) for chunk in data], chunks
    while len(level) > 1:
        level = [reduced.remote(*level[i : i + fan_in]) for i in range(0, len(level), fan_in)]
        calls += len(level)
    plain_map, plain_reduce = mapped.__wrapped__, reduced.__wrapped__
    expected = plain_reduce(*map(plain_map, data))
    assert digest(sorted(tl.get(level[0]).items())) == digest(sorted(expected.items()))
    return calls


# -- random graphs --------------------------------------------------------------------------------


@always
def combined(own: int, *others: int) -> int:
    return (own + 31 * sum(others)) % 1_000_003


def random_graph(salt: int, size: int = 300) -> int:
    """A graph of calls makes what the same calls make one after the other."""
    rng = Random(salt)
    refs: list[tl.ObjectRef[int]] = []
    values: list[int] = []
    for own in range(size):
        before = rng.sample(range(own), min(own, rng.choice((0, 1, 1, 2, 5))))
        refs.append(combined.remote(own, *(refs[index] for index in before)))
        values.append(combined.__wrapped__(own, *(values[index] for index in before)))
    assert tl.get(refs) == values
    return size


# -- nested ---------------------------------------------------------------------------------------


@always
def leaf(number: int) -> int:
    return number * number


@always
def branch(first: int, width: int) -> int:
    return sum(tl.get([leaf.remote(number) for number in range(first, first + width)]))


@always
def trunk(first: int, branches: int, width: int) -> int:
    starts = range(first, first + branches * width, width)
    return sum(tl.get([branch.remote(start, width) for start in starts]))


@tl.remote(max_retries=-1)
async def abranch(first: int, width: int) -> int:
    refs = [leaf.remote(number) for number in range(first, first + width)]
    total = 0
    for ref in refs:
        total += await ref
    return total


def nested(salt: int, trunks: int = 24, branches: int = 4, width: int = 20) -> int:
    """Sums of sums of sums, by calls that wait for their own calls."""
    size = branches * width
    starts = [salt + index * size for index in range(trunks)]
    refs = [trunk.remote(start, branches, width) for start in starts]
    refs += [abranch.remote(start, width) for start in starts]
    told = tl.get(refs)
    expected = [sum(n * n for n in range(start, start + size)) for start in starts]
    expected += [sum(n * n for n in range(start, start + width)) for start in starts]
    assert told == expected
    return trunks * (1 + branches * (1 + width)) + trunks * (1 + width)


ALL = (reports, map_reduce, random_graph, nested)
