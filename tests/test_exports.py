"""What `import taskloom` gives, and what it does not cost."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import taskloom


def documented() -> list[str]:
    """The public names that are functions, classes or modules, not constants."""
    return [
        name
        for name in taskloom.__all__
        if callable(value := getattr(taskloom, name, None)) or isinstance(value, ModuleType)
    ]


def test_every_name_in_all_is_there():
    missing = [name for name in taskloom.__all__ if not hasattr(taskloom, name)]
    assert missing == []


def test_all_names_nothing_twice_and_nothing_private():
    assert len(set(taskloom.__all__)) == len(taskloom.__all__)
    private = [n for n in taskloom.__all__ if n.startswith("_") and not n.endswith("__")]
    assert private == []


def test_dir_lists_every_public_name():
    assert set(taskloom.__all__) <= set(dir(taskloom))


def test_a_star_import_gives_every_public_name():
    names: dict[str, object] = {}
    exec("from taskloom import *", names)
    assert set(taskloom.__all__) <= names.keys()


def test_every_public_name_has_a_docstring():
    undocumented = [n for n in documented() if not inspect.getdoc(getattr(taskloom, n))]
    assert undocumented == []


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = taskloom.no_such_name


def test_rays_modules_can_be_imported_under_their_own_names():
    from taskloom.exceptions import GetTimeoutError, RayTaskError

    assert issubclass(RayTaskError, Exception)
    assert issubclass(GetTimeoutError, TimeoutError)


@pytest.mark.parametrize(
    "heavy",
    ["anyio", "asyncio", "cloudpickle", "concurrent.futures", "logging", "numpy", "uvloop"],
)
def test_importing_taskloom_does_not_import(heavy, modules_after_import):
    assert heavy not in modules_after_import


def test_importing_taskloom_starts_no_thread_and_no_process(modules_after_import):
    assert "subprocess" not in modules_after_import
    assert "multiprocessing" not in modules_after_import


@pytest.fixture(scope="module")
def modules_after_import() -> set[str]:
    """What a fresh interpreter has loaded after `import taskloom`, and had not before."""
    script = (
        "import sys; before = set(sys.modules); import taskloom; print(*set(sys.modules) - before)"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert "taskloom" in loaded
    return loaded
