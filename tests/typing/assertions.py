"""What a type checker must know about programs that use taskloom.  Never run, only checked.

mypy and pyright both read this file.  ``assert_type`` says which type they must find.  A line
with an ignore comment must be an error: both report comments that ignore nothing.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_type

import taskloom as tl
from taskloom import ObjectRef, RemoteFunction

# -- remote functions keep their signature ------------------------------------------------------


@tl.remote
def inc(x: int) -> int:
    return x + 1


@tl.remote
def text(x: int, y: str = "a", *, loud: bool = False) -> str:
    return f"{x}{y}{loud}"


@tl.remote
async def fetch(url: str, retries: int = 3) -> bytes:
    return b""


@tl.remote
def total(*numbers: int) -> float:
    return sum(numbers)


@tl.remote
def show(thing: object) -> None: ...


@tl.remote
def six(a: int, b: str, c: bytes, d: float, e: list[int], f: dict[str, int]) -> int:
    return 0


@tl.remote
def first(items: Sequence[str]) -> str:
    return items[0]


@tl.remote
def names() -> list[str]:
    return []


assert_type(inc.remote(1), ObjectRef[int])
assert_type(inc.remote(x=1), ObjectRef[int])
assert_type(text.remote(1), ObjectRef[str])
assert_type(text.remote(1, "b", loud=True), ObjectRef[str])
assert_type(text.remote(x=1, y="b"), ObjectRef[str])
assert_type(fetch.remote("/"), ObjectRef[bytes])
assert_type(fetch.remote("/", retries=1), ObjectRef[bytes])
assert_type(total.remote(), ObjectRef[float])
assert_type(total.remote(1, 2, 3), ObjectRef[float])
assert_type(show.remote(object()), ObjectRef[None])
assert_type(inc.func(1), Any)

inc.remote("a")  # type: ignore[call-overload]
inc.remote()  # type: ignore[call-overload]
inc.remote(1, 2)  # type: ignore[call-overload]
inc.remote(y=1)  # type: ignore[call-overload]
text.remote(1, 2)  # type: ignore[call-overload]
text.remote(1, loud="yes")  # type: ignore[call-overload]
text.remote(1, "b", True)  # type: ignore[call-overload]
fetch.remote(1)  # type: ignore[call-overload]
total.remote(1, "b")  # type: ignore[call-overload]
inc.func("a")  # type: ignore[arg-type]

# -- a ref goes where its value goes ------------------------------------------------------------

assert_type(inc.remote(inc.remote(1)), ObjectRef[int])
assert_type(text.remote(inc.remote(1)), ObjectRef[str])
assert_type(text.remote(inc.remote(1), "b"), ObjectRef[str])
assert_type(text.remote(inc.remote(1), y="b", loud=True), ObjectRef[str])
assert_type(text.remote(1, text.remote(1)), ObjectRef[str])
assert_type(text.remote(inc.remote(1), text.remote(1), loud=True), ObjectRef[str])
assert_type(fetch.remote(text.remote(1), inc.remote(1)), ObjectRef[bytes])
assert_type(first.remote(names.remote()), ObjectRef[str])
assert_type(show.remote(inc.remote(1)), ObjectRef[None])
assert_type(total.remote(inc.remote(1), inc.remote(2)), ObjectRef[float])
assert_type(inc.remote(tl.put(1)), ObjectRef[int])


def five_refs_and_a_value(
    i: ObjectRef[int], s: ObjectRef[str], b: ObjectRef[bytes], n: ObjectRef[list[int]]
) -> None:
    assert_type(six.remote(i, s, b, i, n, {}), ObjectRef[int])
    assert_type(six.remote(1, s, b"", i, n, {}), ObjectRef[int])
    six.remote(i, s, b, i, n)  # type: ignore[call-overload]
    six.remote(i, i, b, i, n, {})  # type: ignore[arg-type]


inc.remote(text.remote(1))  # type: ignore[arg-type]
text.remote(inc.remote(1), inc.remote(1))  # type: ignore[arg-type]
text.remote(inc.remote(1), y=2)  # type: ignore[call-overload]
text.remote(inc.remote(1), colour="red")  # type: ignore[call-overload]
first.remote(inc.remote(1))  # type: ignore[arg-type]

# -- forms of the decorator, and options ----------------------------------------------------------


@tl.remote()
def empty_parentheses(x: int) -> int:
    return x


@tl.remote(num_cpus=2, max_retries=0)
def with_options(x: int, *, y: int = 0) -> str:
    return ""


@tl.remote(num_cpus=0.5, retry_exceptions=[KeyError])
async def coroutine_with_options(x: int) -> str:
    return ""


def plain(x: int) -> float:
    return x


assert_type(empty_parentheses.remote(1), ObjectRef[int])
assert_type(with_options.remote(1, y=2), ObjectRef[str])
assert_type(coroutine_with_options.remote(inc.remote(1)), ObjectRef[str])
assert_type(tl.remote(plain).remote(1), ObjectRef[float])
assert_type(tl.remote(num_cpus=2)(plain).remote(1), ObjectRef[float])
assert_type(inc.options(num_cpus=2, name="i").remote(1), ObjectRef[int])
assert_type(inc.options(num_returns=1).remote(inc.remote(1)), ObjectRef[int])
assert_type(inc.options(num_cpus=2).options(priority=1).remote(x=1), ObjectRef[int])
assert_type(inc.options(num_returns=2).remote(1), list[ObjectRef[Any]])
assert_type(tl.remote(num_returns=2)(plain).remote(1), list[ObjectRef[Any]])

with_options.remote("a")  # type: ignore[call-overload]
inc.options(num_cpus=2).remote("a")  # type: ignore[call-overload]
inc.options(num_cpu=2)  # type: ignore[call-overload]
inc.options(num_cpus="two")  # type: ignore[call-overload]
tl.remote(num_cpu=2)  # type: ignore[call-overload]


def takes_one(f: RemoteFunction[[int], int]) -> ObjectRef[int]:
    return f.remote(1)


def maps(f: RemoteFunction[..., str], items: list[int]) -> list[ObjectRef[str]]:
    return [f.remote(item) for item in items]


maps(text, [1])
maps(inc, [1])  # type: ignore[arg-type]

# -- get, put, wait, await ------------------------------------------------------------------------

assert_type(tl.get(inc.remote(1)), int)
assert_type(tl.get(fetch.remote("/")), bytes)
assert_type(tl.get(inc.remote(1), timeout=1.5), int)
assert_type(tl.get([inc.remote(i) for i in range(3)]), list[int])
assert_type(tl.get((inc.remote(1),)), tuple[int])
assert_type(tl.get((inc.remote(1), text.remote(1))), tuple[int, str])
assert_type(tl.get((inc.remote(1), text.remote(1), show.remote(1))), tuple[int, str, None])
assert_type(tl.put("a"), ObjectRef[str])
assert_type(tl.get(tl.put([1])), list[int])
assert_type(tl.wait([inc.remote(1)]), tuple[list[ObjectRef[int]], list[ObjectRef[int]]])

tl.get(1)  # type: ignore[call-overload]
tl.get([1])  # type: ignore[arg-type]
tl.get(inc.remote(1), 5)  # type: ignore[call-overload]
tl.get(inc.remote(1), timeout="5")  # type: ignore[call-overload]
tl.wait(inc.remote(1))  # type: ignore[arg-type]
tl.cancel(inc)  # type: ignore[arg-type]


def many(refs: tuple[ObjectRef[int], ...], sequence: Sequence[ObjectRef[str]]) -> None:
    assert_type(tl.get(refs), tuple[int, ...])
    assert_type(tl.get(sequence), list[str])


async def program(ref: ObjectRef[int]) -> None:
    x: int = await inc.remote(1)
    assert_type(x, int)
    assert_type(await fetch.remote("/"), bytes)
    assert_type(await asyncio.gather(ref, text.remote(1)), tuple[int, str])
    assert_type(await asyncio.wait_for(ref, 1), int)
    y: str = await inc.remote(1)  # type: ignore[assignment]
    print(y)
    async with tl.init(num_cpus=1) as context:
        assert_type(context.address_info, dict[str, Any])


def futures(ref: ObjectRef[int]) -> None:
    awaitable: Awaitable[int] = ref
    wider: ObjectRef[float] = ref
    narrower: ObjectRef[bool] = ref  # type: ignore[assignment]
    assert_type(ref.future().result(), int)
    assert_type(ref.result(), int)
    print(awaitable, wider, narrower)


# -- a session ------------------------------------------------------------------------------------

with tl.init(num_cpus=2, resources={"db": 1}, preload=["json"]) as session:
    assert_type(session.python_version, str)

tl.init(num_cpus="two")  # type: ignore[arg-type]
assert_type(tl.is_initialized(), bool)
assert_type(tl.cluster_resources(), dict[str, float])
assert_type(tl.get_runtime_context().get_task_id(), str | None)
tl.get_actor("x")  # type: ignore[attr-defined]

callback: Callable[[int], ObjectRef[int]] = inc.remote
