"""What a type checker must know about programs that use taskloom.  Never run, only checked.

mypy and pyright both read this file.  ``assert_type`` says which type they must find.  A line
with an ignore comment must be an error: both report comments that ignore nothing.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any, assert_type

import taskloom as tl
from taskloom import ObjectRef, ObjectRefGenerator, RemoteFunction
from taskloom._stream_types import AnyResult
from taskloom.actor import ActorClass, ActorHandle, ActorMethod, ActorProxy

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


async def group() -> None:
    async with tl.TaskGroup() as tg:
        assert_type(tg.remote(inc)(1), ObjectRef[int])
        assert_type(tg.remote(fetch)("/"), ObjectRef[bytes])
        assert_type(tg.remote(str.upper)("x"), ObjectRef[str])
        assert_type(tg.remote(inc.options(num_cpus=2))(1).why(), str)
        tg.release(1)  # type: ignore[arg-type]


# -- a session ------------------------------------------------------------------------------------

with tl.init(num_cpus=2, resources={"db": 1}, preload=["json"]) as session:
    assert_type(session.python_version, str)

tl.init(num_cpus="two")  # type: ignore[arg-type]
assert_type(tl.is_initialized(), bool)
assert_type(tl.cluster_resources(), dict[str, float])
assert_type(tl.get_runtime_context().get_task_id(), str | None)
assert_type(tl.get_actor("x"), ActorHandle[Any])

callback: Callable[[int], ObjectRef[int]] = inc.remote


# -- actors -------------------------------------------------------------------------------------


class Account:
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.total = 0

    @tl.method
    def add(self, amount: int, note: str = "") -> int:
        self.total += amount
        return self.total

    @tl.method(max_task_retries=1)
    async def load(self, path: str) -> bytes:
        return path.encode()

    @tl.method(timeout=1, retry_exceptions=[OSError])
    def close(self) -> None: ...

    @tl.method(num_returns=2)
    def halves(self, at: int) -> tuple[int, int]:
        return at, self.total - at

    @tl.method
    def both(self) -> int:
        assert_type(self.halves(3), tuple[int, int])
        return self.add(1, note="x")  # inside it is a plain method

    def untyped(self, x: int) -> int:
        return x


# mypy takes the type of a class for granted whatever decorates it; a call is understood by all.
AccountActor = tl.remote(Account)
assert_type(AccountActor, ActorClass[Account])
assert_type(AccountActor.options(max_restarts=1), ActorClass[Account])
assert_type(tl.remote(max_restarts=1, name="x")(Account), ActorClass[Account])
account = AccountActor.remote("me")
assert_type(account.add.remote(1, note="x"), AnyResult | ObjectRef[int])
assert_type(account.add.remote(inc.remote(1)), AnyResult | ObjectRef[int])
assert_type(account.load.remote("/"), AnyResult | ObjectRef[bytes])
assert_type(account.add.options(name="x").remote(1), AnyResult | ObjectRef[int])
assert_type(account.close.remote(), AnyResult | ObjectRef[None])
assert_type(account.halves.remote(1), AnyResult | list[ObjectRef[Any]])
assert_type(account.add.options(num_returns=2).remote(1), list[ObjectRef[Any]])
assert_type(account.add.options(num_returns=1).remote(1), AnyResult | ObjectRef[int])
named = account.add.options(timeout=1).options(name="y")
assert_type(named.remote(1), AnyResult | ObjectRef[int])
account.add.remote("1")  # type: ignore[call-overload]
account.add.remote(1, nota="x")  # type: ignore[call-overload]
account.add.remote(text.remote(1))  # type: ignore[arg-type]
account.add.options(num_cpus=1)  # type: ignore[call-overload]
account.nothing.remote()  # type: ignore[union-attr]
tl.method(speed=1)  # type: ignore[call-overload]
tl.method(timeout="long")  # type: ignore[call-overload]
AccountActor.options(max_restart=1)  # type: ignore[call-arg]
AccountActor.options(max_restarts="many")  # type: ignore[arg-type]
AccountActor.options(concurrency_groups={})  # type: ignore[call-arg]
tl.remote(max_concurrency="many")  # type: ignore[call-overload]


def in_a_group(group: tl.TaskGroup, add: ActorMethod[[int], int]) -> None:
    assert_type(add.remote(1), ObjectRef[int])
    assert_type(group.remote(add), Callable[..., ObjectRef[int]])


def with_handle(handle: ActorHandle[Account], proxy: ActorProxy[Account]) -> None:
    assert_type(handle.add.remote("anything"), AnyResult)
    assert_type(proxy.add.remote(2), AnyResult | ObjectRef[int])
    assert_type(handle.untyped.remote(2), AnyResult)
    assert_type(tl.get(handle.add.remote(2)), Any)
    tl.kill(handle)
    tl.kill(proxy, no_restart=False)
    tl.kill(inc.remote(1))  # type: ignore[arg-type]


@tl.remote
def use(account: ActorProxy[Account], by: int) -> None: ...


assert_type(use.remote(account, 1), ObjectRef[None])
use.remote("account", 1)  # type: ignore[call-overload]


async def call_account() -> None:
    total: int = await account.add.remote(1)
    loaded: bytes = await account.load.remote("/")
    print(loaded)
    wrong: bytes = await account.add.remote(1)  # type: ignore[assignment]
    print(total, wrong)


# -- streams --------------------------------------------------------------------------------------


@tl.remote
def lines(path: str, skip: int = 0) -> Iterator[str]:
    yield path


@tl.remote
def pages(n: int) -> Generator[bytes, None, None]:
    yield b""


@tl.remote
async def events(url: str) -> AsyncIterator[int]:
    yield 1


@tl.remote(backpressure=10, num_cpus=0.5)
def limited(n: int) -> Iterator[float]:
    yield 1.0


@tl.remote(num_returns="streaming")
def asked_for(n: int) -> Iterator[int]:
    yield 1


assert_type(lines.remote("/"), ObjectRefGenerator[str])
assert_type(lines.remote(text.remote(1), skip=1), ObjectRefGenerator[str])
assert_type(pages.remote(1), ObjectRefGenerator[bytes])
assert_type(events.remote("/"), ObjectRefGenerator[int])
assert_type(limited.remote(1), ObjectRefGenerator[float])
assert_type(asked_for.remote(1), ObjectRefGenerator[int])
assert_type(lines.options(backpressure=3).remote("/"), ObjectRefGenerator[str])
assert_type(pages.options(num_cpus=2).remote(1), ObjectRefGenerator[bytes])
assert_type(pages.options(num_returns=2).remote(1), list[ObjectRef[Any]])
lines.remote(1)  # type: ignore[call-overload]
lines.remote(inc.remote(1))  # type: ignore[arg-type]
pages.options(backpressure="2")  # type: ignore[call-overload]
for line in lines.remote("/"):
    assert_type(line, ObjectRef[str])
    assert_type(tl.get(line), str)
assert_type(next(pages.remote(1)), ObjectRef[bytes])
assert_type(pages.remote(1).completed(), ObjectRef[None])


async def stream() -> None:
    async for ref in events.remote("/"):
        assert_type(await ref, int)
    assert_type(await anext(lines.remote("/")), ObjectRef[str])
    ready, _ = tl.wait([events.remote("/"), inc.remote(1)])
    print(ready)
    tl.cancel(events.remote("/"))


def plain_items(n: int) -> Iterator[int]:
    yield n


class Feed:
    @tl.method
    def items(self, n: int) -> Iterator[int]:
        yield n

    @tl.method(backpressure=2)
    async def aitems(self, n: int) -> AsyncIterator[str]:
        yield ""

    def untyped(self) -> Any:
        yield 1


with tl.TaskGroup() as tg:
    assert_type(tg.remote(pages)(1), ObjectRefGenerator[bytes])
    assert_type(tg.remote(plain_items)(1), ObjectRefGenerator[int])
    tg.release(tg.remote(events)("/"))

feed = tl.remote(Feed).remote()
assert_type(feed.items.remote(1), AnyResult | ObjectRefGenerator[int])
for item in feed.items.remote(1):
    number: int = tl.get(item)
feed.items.remote("1")  # type: ignore[call-overload]


async def use_feed(handle: ActorHandle[Feed]) -> None:
    async for ref in feed.aitems.remote(1):
        value: str = await ref
        print(value)
    for other in handle.untyped.remote():
        print(await other)
