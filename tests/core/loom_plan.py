"""What a simulated session is to go through: a program and its misfortunes, made from a seed.

A plan is plain data, so a failing one can be printed, cut down to what it takes to fail, and kept
as a test.  All ``pick`` numbers are taken modulo what there is to pick from at that moment, so a
plan stays a plan whatever is taken out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from taskloom._spec import Pace

Step = tuple[Any, ...]
"""What the body of a call does next: ("work", seconds), ("get", picks, timeout, strict), ..."""
Action = tuple[Any, ...]
"""(when, what, ...): what the driver does, or what happens to it."""

FAULTS = (
    "kill", "stop", "slow start", "bad start", "duplicate", "raise", "die", "cancel", "force",
    "ignore", "hold", "retire", "abandon",
)  # fmt: skip
ACTIONS = (
    "submit", "chain", "fan", "put", "drop", "copy", "cancel", "abandon", "watch", "kill", "stop",
    "retire", "spawn", "group", "close", "cancel group", "release", "take", "drop stream",
)  # fmt: skip
_PLAIN = {"drop", "copy", "watch", "spawn", "group", "close", "cancel group", "release"}
SHORT_S, LONG_S = 0.000_005, 0.050


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """One call: what ``.options(...)`` says of it, its arguments, what its body does."""

    deps: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()
    body: tuple[Step, ...] = ()
    function: str = "f"
    coroutine: bool = False
    cpus: float = 1
    tpu: float = 0
    gpu: float = 0
    priority: int = 0
    retries: int = 0
    returns: int = 1
    timeout_s: float = 0
    again: bool = False
    """Whether it is tried again when its time is over."""
    delay_s: float = 0
    group: int = -1
    """Which of the open groups it belongs to, if it is the driver's; -1: none."""
    stream: int = -1
    """How many items of its stream may wait to be taken, 0 for any number; -1: it is no stream."""

    @property
    def pace(self) -> Pace | None:
        if not (self.timeout_s or self.delay_s):
            return None
        return Pace(
            timeout_s=self.timeout_s or None,
            retries_timeouts=self.again,
            retry_delay_s=self.delay_s or None,
        )

    def __repr__(self) -> str:
        """Only what is not as usual: plans are read by people."""
        usual = ((name, field.default) for name, field in self.__dataclass_fields__.items())
        unusual = ((name, getattr(self, name), default) for name, default in usual)
        texts = [f"{name}={value!r}" for name, value, default in unusual if value != default]
        return f"Call({', '.join(texts)})"

    def may_wait(self) -> bool:
        """Two calls that wait and hold what the others need would stand still, and rightly so."""
        return not (self.tpu or self.gpu)


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    cpus: int = 1
    gpus: int = 0
    extra: int = 0
    """Processes beyond one for each CPU."""
    grace_s: float | None = None
    """How long a call may take to end after it was told to."""
    faults: frozenset[str] = frozenset()
    known: tuple[str, ...] = ()
    """Functions that are known to be short."""
    actions: tuple[Action, ...] = ()


def make_plan(seed: int, size: int = 14) -> Plan:
    """The plan of a seed.  Each has some kinds of fault and is spared the others."""
    rng = Random(seed)
    faults = frozenset(fault for fault in FAULTS if rng.random() < 0.5)
    # Dice of their own: a plan without streams stays as it was before there were any.
    shape = _Shape(rng, Random(seed ^ 0x57EA), faults)
    now, actions = 0.0, []
    for _ in range(rng.randint(3, size)):
        now += rng.choice((0, 0, 0, 0.000_02, 0.001, 0.006, 0.05))
        for action in shape.actions():
            actions.append((now, *action))
            if action[0] == "submit" and "cancel" in faults and rng.random() < 0.3:
                # Some time later, when it runs, and perhaps its children.
                when = now + rng.uniform(0.0, 0.1)
                actions.append((when, "cancel", -1, False, rng.random() < 0.7))
    actions.sort(key=lambda action: action[0])
    return Plan(
        seed,
        cpus=rng.choice((1, 1, 2, 3)),
        gpus=2,
        extra=rng.choice((0, 1, 3, 8)),
        grace_s=rng.choice((None, 0.0, 0.005, 2.0)),
        faults=faults,
        known=tuple(name for name in "fgh" if rng.random() < 0.5),
        actions=tuple(actions),
    )


class _Shape:
    """Draws the parts of a plan."""

    def __init__(self, rng: Random, streams: Random, faults: frozenset[str]) -> None:
        self._rng = rng
        self._faults = faults
        self._coroutines = rng.random() < 0.4
        self._devices = rng.random() < 0.4
        self._times = rng.random() < 0.4
        self._groups = rng.choice(((0, 0, 0, 0), (2, 1, 1, 1)))
        self._streams = streams
        self._has_streams = self._streams.random() < 0.4

    def actions(self) -> Iterator[Action]:
        rng = self._rng
        if self._has_streams and self._streams.random() < 0.3:
            yield from self._stream_actions()
        usual = (8, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, *self._groups)
        (kind,) = rng.choices(ACTIONS[: len(usual)], usual)
        pick = rng.randrange(1 << 16)
        if kind == "submit":
            for _ in range(rng.choice((1, 1, 2, 4))):
                yield "submit", self.call(0) if rng.random() < 0.8 else self.family()
        elif kind == "chain":
            function, retries = rng.choice("fgh"), rng.choice((0, 0, 1, -1))
            for index in range(rng.randint(2, 6)):
                last = (-1,) if index else ()
                body = self.body(Call(), 3) if rng.random() < 0.2 else ()
                yield "submit", Call(last, body=body, function=function, retries=retries)
        elif kind == "fan":
            count = rng.randint(2, 8)
            for _ in range(count):
                yield "submit", Call(function="f", retries=rng.choice((0, 3)))
            yield "submit", Call(tuple(range(-count, 0)))
        elif kind == "put":
            yield "put", self.picks(2)
        elif kind == "cancel":
            if "cancel" in self._faults:
                force = "force" in self._faults and rng.random() < 0.5
                yield "cancel", pick, force, rng.random() < 0.7
        elif kind in (
            "drop",
            "copy",
            "watch",
            "spawn",
            "group",
            "close",
            "cancel group",
            "release",
        ):
            yield kind, pick
        elif kind in self._faults:
            yield kind, pick, rng.choice((0.001, 0.02, 1.0))

    def _stream_actions(self) -> Iterator[Action]:
        """A call that yields, or what its consumer does."""
        rng = self._streams
        if rng.random() < 0.6:
            steps: list[Step] = []
            for _ in range(rng.randint(0, 5)):
                steps.append(("yield", rng.random() < 0.5))
                if rng.random() < 0.5:
                    steps.append(("work", rng.choice((SHORT_S, 0.001, 0.01))))
            for fault, step in (("raise", ("raise", 1, True)), ("die", ("die", 1))):
                if fault in self._faults and rng.random() < 0.4:
                    steps.insert(rng.randint(0, len(steps)), step)
            if "ignore" in self._faults and rng.random() < 0.2:
                steps.insert(0, ("ignore",))
            yield (
                "submit",
                Call(
                    body=tuple(steps),
                    coroutine=rng.random() < 0.4,
                    retries=rng.choice((0, 1, 3, -1)),
                    stream=rng.choice((0, 0, 1, 2)),
                    group=rng.choice((-1, 0)),
                ),
            )
        elif rng.random() < 0.8:
            yield "take", rng.randrange(1 << 16), rng.randint(1, 3)
        else:
            yield "drop stream", rng.randrange(1 << 16)

    def picks(self, most: int) -> tuple[int, ...]:
        rng = self._rng
        return tuple(rng.randrange(1 << 16) for _ in range(rng.randint(0, most)))

    def call(self, depth: int) -> Call:
        rng = self._rng
        devices = self._devices and rng.random() < 0.3
        coroutine = self._coroutines and rng.random() < 0.5
        call = Call(
            deps=self.picks(3) if rng.random() < 0.6 else (),
            nested=self.picks(2) if rng.random() < 0.3 else (),
            function=rng.choice("fgh"),
            coroutine=coroutine,
            cpus=rng.choice((0, 0, 1)) if coroutine else rng.choice((1, 1, 1, 0, 0.5, 2)),
            tpu=rng.choice((0.5, 1)) if devices and rng.random() < 0.5 else 0,
            gpu=rng.choice((0.25, 0.5, 1, 2)) if devices else 0,
            priority=rng.choice((0, 0, 0, 1)),
            retries=rng.choice((0, 0, 1, 3, -1)),
            returns=rng.choice((1, 1, 1, 1, 0, 2)),
            group=rng.choice((-1, 0, 1, 2)),
        )
        if self._times and rng.random() < 0.4:
            call = replace(call, delay_s=rng.choice((0, 0, 0.01, 1.0)))
            if call.retries >= 0:  # or it would run out of time for ever
                limit = rng.choice((0, 0.000_1, 0.01, 0.06, 1.0))
                call = replace(call, timeout_s=limit, again=rng.random() < 0.5)
        return replace(call, body=self.body(call, depth))

    def family(self) -> Call:
        """A call that waits for calls of its own, which take a while and have their own."""
        inner = self.call(2)
        child = replace(inner, body=(("submit", self.call(3)), ("work", LONG_S), *inner.body))
        return Call(body=(("submit", child), ("submit", self.call(2)), ("get", (0,), None, True)))

    def body(self, call: Call, depth: int) -> tuple[Step, ...]:
        rng, faults = self._rng, self._faults
        steps: list[Step] = []
        if "ignore" in faults and rng.random() < 0.2:
            steps.append(("ignore",))
        steps.append(("work", rng.choice((0, SHORT_S, SHORT_S, 0.001, LONG_S))))
        if depth < 3 and rng.random() < 0.5 / (depth + 1):
            for _ in range(rng.randint(1, 3)):
                steps.append(("submit", self.call(depth + 1)))
                steps += self._waits(call)
        if rng.random() < 0.1:
            steps.append(("put", self.picks(2)))
        if "cancel" in faults and rng.random() < 0.1:
            steps.append(("cancel", rng.randrange(99), False, rng.random() < 0.5))
        if rng.random() < 0.1:
            steps.append(("keep", rng.choice((0, 0.01, 1.0))))
        if "raise" in faults and rng.random() < 0.2:
            steps.append(("raise", rng.choice((1, 2, 9)), rng.random() < 0.6))
        if "die" in faults and rng.random() < 0.15:
            steps.append(("die", rng.choice((1, 2, 9))))
        if rng.random() < 0.3:
            steps.append(("work", rng.choice((SHORT_S, 0.001))))
        return tuple(steps)

    def _waits(self, call: Call) -> Iterator[Step]:
        rng = self._rng
        if not call.may_wait() or rng.random() < 0.3:
            return
        picks = (rng.randrange(99), *self.picks(2))
        timeout = rng.choice((None, None, None, 0.0, 0.000_1, 0.01))
        strict = rng.random() < 0.7
        if call.coroutine:
            if rng.random() < 0.3:
                yield "submit", Call(function="g", cpus=1)
                yield "stall", timeout
            else:
                yield "await", picks, strict
        elif rng.random() < 0.2:
            yield "thread", picks, timeout
        elif rng.random() < 0.3:
            yield "wait", picks, rng.randint(1, 2), timeout
        else:
            yield "get", picks, timeout, strict


# -- smaller plans --------------------------------------------------------------------------------


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The smallest plan that is found to fail still, by taking things out one after the other."""
    while True:
        for smaller in _smaller(plan):
            if fails(smaller):
                plan = smaller
                break
        else:
            return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    actions = plan.actions
    size = len(actions) // 2
    while size:
        for start in range(0, len(actions), size):
            yield replace(plan, actions=actions[:start] + actions[start + size :])
        size //= 2
    for fault in sorted(plan.faults):
        yield replace(plan, faults=plan.faults - {fault})
    for index, action in enumerate(actions):
        for other in _simpler_action(action):
            yield replace(plan, actions=(*actions[:index], other, *actions[index + 1 :]))
    if plan.known:
        yield replace(plan, known=())
    if plan.grace_s is not None:
        yield replace(plan, grace_s=None)
    if plan.cpus > 1:
        yield replace(plan, cpus=plan.cpus - 1)


def _simpler_action(action: Action) -> Iterator[Action]:
    if isinstance(action[-1], Call):
        yield from ((*action[:-1], call) for call in _simpler_call(action[-1]))


def _simpler_call(call: Call) -> Iterator[Call]:
    plain = Call()
    for name in Call.__slots__:
        if name != "body" and getattr(call, name) != getattr(plain, name):
            yield replace(call, **{name: getattr(plain, name)})
    body = call.body
    for index, step in enumerate(body):
        yield replace(call, body=body[:index] + body[index + 1 :])
        if isinstance(step[-1], Call):
            for inner in _simpler_call(step[-1]):
                yield replace(call, body=(*body[:index], (step[0], inner), *body[index + 1 :]))
