"""Context variables in another process: the same variable, the value of the moment."""

from __future__ import annotations

import decimal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextvars import Context, ContextVar, copy_context
from types import ModuleType
from typing import Any

import pytest

from taskloom._wire.context_vars import ContextPacker, unpack_context
from taskloom._wire.serialization import dumps, loads

MODULE_VAR: ContextVar[object] = ContextVar("MODULE_VAR")
_request_id: ContextVar[str] = ContextVar("request_id", default="none")
"""As in the documentation of ``contextvars``: its name is not that of the variable."""


def in_new_context(function: Any) -> Any:
    return Context().run(function)


def carried(blob: bytes | None) -> dict[str, object]:
    """The variables in a packed context, by name."""
    if blob is None:
        return {}
    return {var.name: value for var, value in unpack_context(blob, loads).items()}


@pytest.fixture
def packer() -> ContextPacker:
    return ContextPacker(dumps, loads)


# -- which variable it is ----------------------------------------------------------------------


def test_a_variable_of_a_module_is_found_there() -> None:
    assert loads(dumps(MODULE_VAR)) is MODULE_VAR


def test_a_variable_of_a_module_is_found_under_another_name() -> None:
    assert loads(dumps(_request_id)) is _request_id


OTHER_PROCESS = """
import sys, types
from contextvars import ContextVar
{module}
from taskloom._wire.serialization import loads
var = loads({blob!r})
{check}
print("good")
"""


def in_another_process(blob: bytes, check: str, module: str = "") -> None:
    """Unpickle ``blob`` as ``var`` in a process that knows ``module``, and run ``check``."""
    program = OTHER_PROCESS.format(
        blob=blob, check=textwrap.dedent(check), module=textwrap.dedent(module)
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "good\n", done.stderr


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a stranger, whose variable has a name of its own."""
    module = ModuleType("a_library")
    module.current = ContextVar("a_library.current")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_library", module)
    return module


def test_a_variable_of_a_library_is_that_of_the_library_over_there(library: ModuleType) -> None:
    in_another_process(
        dumps(library.current),
        "assert var is a_library.current, 'a twin that the library does not know'",
        module="""
            a_library = sys.modules["a_library"] = types.ModuleType("a_library")
            a_library.current = ContextVar("a_library.current")
        """,
    )


def test_a_local_variable_is_one_and_the_same_for_each_mention() -> None:
    var: ContextVar[int] = ContextVar("local")
    assert loads(dumps(var)) is var
    in_another_process(
        dumps([var, {"again": var}]),
        "assert var[0] is var[1]['again']; assert var[0].name == 'local'",
    )


def test_a_local_variable_is_the_same_in_two_messages() -> None:
    var: ContextVar[int] = ContextVar("local")
    in_another_process(dumps(var), f"assert loads({dumps(var)!r}) is var")


def test_two_local_variables_of_one_name_stay_two() -> None:
    one: ContextVar[int] = ContextVar("same")
    two: ContextVar[int] = ContextVar("same")
    in_another_process(dumps([one, two]), "assert var[0] is not var[1]")


def test_a_local_variable_keeps_its_default() -> None:
    var = ContextVar("local", default=(1, "x"))
    in_another_process(dumps(var), "assert var.get() == (1, 'x')")


def test_a_local_variable_without_a_default_has_none() -> None:
    check = """
        try:
            var.get()
        except LookupError:
            pass
        else:
            raise AssertionError
    """
    in_another_process(dumps(ContextVar("local")), check)


def test_a_default_of_none_is_a_default() -> None:
    in_another_process(dumps(ContextVar("local", default=None)), "assert var.get() is None")


# -- what is carried ---------------------------------------------------------------------------


def test_nothing_is_carried_where_nothing_is_set(packer: ContextPacker) -> None:
    assert in_new_context(packer.pack) is None


def test_a_variable_is_carried_with_its_value(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        MODULE_VAR.set({"user": 7})
        return packer.pack()

    context = unpack_context(in_new_context(work), loads)
    assert context[MODULE_VAR] == {"user": 7}
    assert MODULE_VAR not in copy_context()


def test_a_variable_that_has_only_its_default_is_not_carried(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        assert _request_id.get() == "none"
        return packer.pack()

    assert in_new_context(work) is None


def test_many_variables_are_carried_together(packer: ContextPacker) -> None:
    variables = [ContextVar(f"v{number}") for number in range(50)]

    def work() -> bytes | None:
        for number, var in enumerate(variables):
            var.set(number)
        return packer.pack()

    assert carried(in_new_context(work)) == {f"v{number}": number for number in range(50)}


def test_variables_that_say_where_the_caller_runs_are_not_carried(packer: ContextPacker) -> None:
    import sniffio

    def work() -> bytes | None:
        sniffio.current_async_library_cvar.set("asyncio")
        return packer.pack()

    assert in_new_context(work) is None


def test_the_context_of_the_decimal_module_does_no_harm(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        decimal.getcontext().prec = 5
        MODULE_VAR.set(1)
        return packer.pack()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert carried(in_new_context(work))["MODULE_VAR"] == 1


# -- what is not -------------------------------------------------------------------------------


def test_what_cannot_be_pickled_is_left_out_with_one_warning(packer: ContextPacker) -> None:
    var: ContextVar[object] = ContextVar("with_lock")

    def work(number: int) -> bytes | None:
        MODULE_VAR.set(number)
        var.set(threading.Lock())
        return packer.pack()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(5):
            blob = Context().run(work, number)
            assert carried(blob) == {"MODULE_VAR": number}
    (warning,) = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert "'with_lock' is not carried into tasks" in str(warning.message)


class ComesBackBroken:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_what_cannot_be_unpickled_is_left_out_too(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        MODULE_VAR.set(ComesBackBroken())
        return packer.pack()

    with pytest.warns(RuntimeWarning, match="'MODULE_VAR' is not carried"):
        assert in_new_context(work) is None


def test_a_variable_whose_default_cannot_be_pickled_is_left_out(packer: ContextPacker) -> None:
    lock = threading.Lock()
    var: ContextVar[object] = ContextVar("odd_default", default=lock)

    def work() -> bytes | None:
        var.set(1)
        return packer.pack()

    with pytest.warns(RuntimeWarning, match="'odd_default' is not carried"):
        assert in_new_context(work) is None


# -- the value of the moment -------------------------------------------------------------------


def test_the_same_context_is_packed_once(packer: ContextPacker) -> None:
    def work() -> tuple[bytes | None, bytes | None]:
        MODULE_VAR.set(1)
        return packer.pack(), packer.pack()

    first, second = in_new_context(work)
    assert first is second


def pack_after(packer: ContextPacker, *values: object) -> object:
    """What is carried after the variable was set to these values, packed after each."""

    def work() -> bytes | None:
        blob = None
        for value in values:
            MODULE_VAR.set(value)
            blob = packer.pack()
        return blob

    return carried(in_new_context(work))["MODULE_VAR"]


def test_a_variable_that_was_set_again_is_packed_again(packer: ContextPacker) -> None:
    assert pack_after(packer, 1, 2) == 2


@pytest.mark.parametrize(("old", "new"), [(1, True), (0, False), (1, 1.0), (0.0, -0.0)])
def test_an_equal_value_of_another_kind_is_packed_again(
    packer: ContextPacker, old: object, new: object
) -> None:
    assert repr(pack_after(packer, old, new)) == repr(new)


class EqualsAll:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return True


def test_values_that_say_they_are_equal_are_packed_again(packer: ContextPacker) -> None:
    assert pack_after(packer, EqualsAll("one"), EqualsAll("two")).name == "two"  # type: ignore[attr-defined]


class CannotBeCompared:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        raise TypeError("no")


def test_values_that_cannot_be_compared_are_packed_again(packer: ContextPacker) -> None:
    seen = pack_after(packer, CannotBeCompared("one"), CannotBeCompared("two"))
    assert seen.name == "two"  # type: ignore[attr-defined]


def test_a_value_that_was_changed_in_place_is_carried_as_it_is_now(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        tags: dict[str, int] = {}
        MODULE_VAR.set(tags)
        packer.pack()
        tags["step"] = 2
        return packer.pack()

    assert carried(in_new_context(work)) == {"MODULE_VAR": {"step": 2}}


def test_a_variable_that_was_reset_is_not_carried(packer: ContextPacker) -> None:
    def work() -> bytes | None:
        token = MODULE_VAR.set(1)
        packer.pack()
        MODULE_VAR.reset(token)
        return packer.pack()

    assert in_new_context(work) is None


def test_threads_do_not_see_one_anothers_contexts(packer: ContextPacker) -> None:
    blobs: dict[int, object] = {}

    def work(number: int) -> None:
        MODULE_VAR.set(number)
        for _ in range(200):
            blobs[number] = carried(packer.pack())["MODULE_VAR"]
            assert blobs[number] == number

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs == {number: number for number in range(4)}
