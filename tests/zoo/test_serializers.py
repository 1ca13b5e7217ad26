"""``util.register_serializer``: in the driver, in all workers, in those that start later."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.gates import Gate

from taskloom import util
from taskloom._wire.custom_serializers import serializers
from taskloom.util import deregister_serializer, register_serializer
from taskloom.util.serialization import register_serializer as the_same

LIMIT_S = 20


class Guarded:
    """Does not pickle by itself."""

    def __init__(self, value: Any, home: int = 0) -> None:
        self.value = value
        self.home = home or os.getpid()
        self._lock = threading.Lock()


class MoreGuarded(Guarded):
    pass


def pull(guarded: Guarded) -> Any:
    return guarded.value, guarded.home


def push(parts: Any) -> Guarded:
    return Guarded(*parts)


@pytest.fixture
def registered() -> Iterator[None]:
    register_serializer(Guarded, serializer=pull, deserializer=push)
    yield
    deregister_serializer(Guarded)
    assert not serializers.active


def value_of(guarded: Guarded) -> Any:
    return guarded.value


def make(value: Any) -> Guarded:
    return Guarded(value)


def test_rays_module_has_the_same_functions():
    assert the_same is util.register_serializer


def test_a_class_with_a_lock_is_argument_result_and_put_STO_8(tl: ModuleType, registered: None):
    f, g = tl.remote(value_of), tl.remote(make)

    assert tl.get(f.remote(Guarded(1)), timeout=LIMIT_S) == 1
    assert tl.get(f.remote(guarded=Guarded(2)), timeout=LIMIT_S) == 2
    made = tl.get(g.remote(3), timeout=LIMIT_S)
    assert type(made) is Guarded
    assert made.home != os.getpid()
    assert tl.get(tl.put([Guarded(4)]))[0].value == 4
    assert tl.get(f.remote(g.remote(5)), timeout=LIMIT_S) == 5
    error = tl.get(tl.remote(lambda: ValueError(Guarded(6))).remote(), timeout=LIMIT_S)
    assert error.args[0].value == 6


def test_it_reaches_a_worker_that_has_run_before_and_all_others_STO_8(fresh: ModuleType, tmp_path):
    fresh.init(num_cpus=2)
    gates = [Gate(tmp_path / "a"), Gate(tmp_path / "b")]
    for path in ("a", "b"):
        (tmp_path / path).mkdir()

    @fresh.remote
    def both(gate: Gate, value: int) -> Any:
        gate.enter()
        return Guarded(value)

    before = [both.remote(gates[0], n) for n in range(2)]
    gates[0].wait_for("task", 2)
    register_serializer(Guarded, serializer=pull, deserializer=push)
    try:
        after = [both.remote(gates[1], n) for n in range(2)]
        gates[0].open()
        gates[1].wait_for("task", 2)
        gates[1].open()
        assert [one.value for one in fresh.get(after, timeout=LIMIT_S)] == [0, 1]
        fresh.wait(before, num_returns=2, timeout=LIMIT_S)

        # One that starts now, for a task that waits, hears of it as well.
        @fresh.remote
        def outer() -> Any:
            import taskloom

            inner = [taskloom.remote(make).remote(n) for n in range(4)]
            return sum(one.value for one in taskloom.get(inner))

        outers = [outer.remote() for _ in range(4)]
        assert fresh.get(outers, timeout=LIMIT_S) == [6] * 4
    finally:
        deregister_serializer(Guarded)


def test_it_reaches_workers_for_coroutines_STO_8(tl: ModuleType, registered: None):
    @tl.remote
    async def f(guarded: Guarded) -> Guarded:
        return Guarded(guarded.value + 1)

    assert tl.get(f.remote(Guarded(1)), timeout=LIMIT_S).value == 2


def test_it_holds_in_the_next_session_as_well_STO_8(fresh: ModuleType, registered: None):
    for _ in range(2):
        fresh.init(num_cpus=1)
        assert fresh.get(fresh.remote(make).remote(1), timeout=LIMIT_S).value == 1
        fresh.shutdown()


def test_it_ends_with_deregister_in_all_processes_STO_8(tl: ModuleType):
    g = tl.remote(make)
    register_serializer(Guarded, serializer=pull, deserializer=push)
    assert tl.get(g.remote(1), timeout=LIMIT_S).value == 1
    deregister_serializer(Guarded)
    deregister_serializer(Guarded)  # a second time nothing happens

    with pytest.raises(TypeError, match="_lock"):
        tl.get(g.remote(1), timeout=LIMIT_S)
    with pytest.raises(TypeError, match="_lock"):
        tl.put(Guarded(1))


def test_the_last_registration_holds_STO_8(tl: ModuleType, registered: None):
    register_serializer(Guarded, serializer=pull, deserializer=lambda parts: ("other", *parts))

    assert tl.get(tl.put(Guarded(1)))[:2] == ("other", 1)
    assert tl.get(tl.remote(make).remote(1), timeout=LIMIT_S)[:2] == ("other", 1)


def test_a_subclass_is_a_class_of_its_own_STO_8(tl: ModuleType, registered: None):
    with pytest.raises(TypeError, match=r"value\._lock"):
        tl.put(MoreGuarded(1))


def test_local_classes_and_closures_travel_STO_8(tl: ModuleType):
    class Local:
        def __init__(self, value: Any) -> None:
            self.value = value
            self.lock = threading.Lock()

    offset = 10
    register_serializer(
        Local, serializer=lambda one: one.value, deserializer=lambda value: Local(value + offset)
    )
    try:
        f = tl.remote(lambda one: Local(one.value))
        assert tl.get(f.remote(Local(1)), timeout=LIMIT_S).value == 21
    finally:
        deregister_serializer(Local)


def test_what_a_task_registers_stays_in_its_worker_STO_8(fresh: ModuleType):
    fresh.init(num_cpus=1)

    @fresh.remote
    def registers() -> Guarded:
        register_serializer(Guarded, serializer=pull, deserializer=push)
        return Guarded(1)

    assert fresh.get(registers.remote(), timeout=LIMIT_S).value == 1
    with pytest.raises(TypeError):
        fresh.put(Guarded(1))


def test_local_mode_uses_it_STO_8(fresh: ModuleType, registered: None):
    fresh.init(local_mode=True)
    assert fresh.get(fresh.remote(make).remote(1)).value == 1


def test_a_serializer_that_raises_is_the_error_of_that_call_STO_8(tl: ModuleType):
    def fails(_: Any) -> Any:
        raise SystemExit("no")

    register_serializer(Guarded, serializer=fails, deserializer=push)
    try:
        with pytest.raises(TypeError, match=r"value is .*SystemExit: no"):
            tl.put(Guarded(1))
        with pytest.raises(TypeError, match="SystemExit: no"):
            tl.get(tl.remote(make).remote(1), timeout=LIMIT_S)
    finally:
        deregister_serializer(Guarded)


def test_a_deserializer_that_raises_is_the_error_of_who_reads_STO_8(tl: ModuleType):
    def fails(_: Any) -> Any:
        raise ZeroDivisionError("no")

    register_serializer(Guarded, serializer=pull, deserializer=fails)
    try:
        ref = tl.put([Guarded(1)])
        with pytest.raises(ZeroDivisionError) as raised:
            tl.get(ref)
        assert "it fails at value[0]" in raised.value.__notes__[0]
        with pytest.raises(ZeroDivisionError, match=r"args\[0\]\[0\] could not be unpickled"):
            tl.get(tl.remote(value_of).remote(ref), timeout=LIMIT_S)
    finally:
        deregister_serializer(Guarded)


@pytest.mark.parametrize("cls", [int, str, list, dict, type, bytearray])
def test_the_pickle_of_a_builtin_class_cannot_be_changed_STO_8(cls: type):
    with pytest.raises(ValueError, match=cls.__name__):
        register_serializer(cls, serializer=pull, deserializer=push)
    with pytest.raises(ValueError, match=cls.__name__):
        deregister_serializer(cls)


def test_wrong_arguments_are_refused_at_the_call_STO_8():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="takes a class"):
        register_serializer(Guarded(1), serializer=pull, deserializer=push)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="deserializer must be callable"):
        register_serializer(Guarded, serializer=pull, deserializer=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"functions\[1\]\.<closure>\.lock is"):
        register_serializer(Guarded, serializer=pull, deserializer=lambda _: lock)  # type: ignore[arg-type, return-value]
    assert not serializers.active


def test_a_registration_that_a_worker_cannot_load_is_told_on_stderr_STO_8(run_driver, tmp_path):
    (tmp_path / "only_here.py").write_text(
        "import threading\n"
        "class Here:\n    pass\n"
        "def to(value): return 1\n"
        "def back(value): return Here()\n"
    )
    done = run_driver(
        f"""
import sys
import taskloom as tl
from taskloom.util import register_serializer

tl.init(num_cpus=1)
tl.get(tl.remote(lambda: 1).remote())
sys.path.append({str(tmp_path)!r})
import only_here
register_serializer(only_here.Here, serializer=only_here.to, deserializer=only_here.back)
print(tl.get(tl.remote(lambda: object).remote()))
print(type(tl.get(tl.put(only_here.Here()))).__name__)
"""
    )
    assert done.stdout.splitlines() == ["<class 'object'>", "Here"]
    assert "a serializer that the driver registered cannot be loaded here" in done.stderr
    assert "only_here" in done.stderr
