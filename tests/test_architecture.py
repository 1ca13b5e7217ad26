"""The house has floors, and imports go downward only.

The rules are read from the source with ``ast``: nothing is imported.  What stands under
``if TYPE_CHECKING:`` never runs and does not count.  The tests at the end feed the checker with
small sources that break each rule, so that it is known to be able to fail.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).resolve().parent.parent / "src" / "taskloom"

# A name stands for the module and all that is below it; the longest one that fits is taken.
FLOORS: Final[tuple[frozenset[str], ...]] = (
    frozenset(
        {"exceptions", "_task_error", "_exception_parts", "_ids", "_config", "_machine", "_caller"}
        | {"_memory_settings", "_options", "_actor_options", "_current", "_version"}
        | {"_interruptible", "_bell", "backends._addresses"}
    ),  # 0 words
    frozenset({"ref", "generator", "_waiting", "_awaiting", "_spec", "_memory"})
    | {"backends.base"},  # 1 nouns
    frozenset({"_core"}),  # 2 the loom
    frozenset({"_wire", "_store"}),  # 3 bytes
    frozenset({"_worker", "_pool"}),  # 4 processes
    frozenset({"_engine"}),  # 5
    frozenset({"observability", "dashboard"}),  # 6 windows
    frozenset(
        {"backends", "_actor_facts"}
    ),  # 7: who makes an actor knows its methods, who hosts it, too
    frozenset(  # 8 the door; "" is the package itself
        {
            "remote_function",
            "_callee",
            "actor",
            "_actor_handle",
            "_actor_warnings",
            "_stream_types",
            "groups",
        }
        | {"_arrivals", "_blocking", "_mapping", "executor"}
        | {"task_group", "runtime_context", "_context", "api", ""}
    ),
    frozenset({"__main__", "cli", "util", "dag", "compat", "testing"}),  # 9 side doors
)

# {module: why it may be imported inside a function, anywhere}
LAZY: Final[Mapping[str, str]] = {
    "anyio": "60 ms, and only scopes, limits and bridges need it",
    "asyncio": "40 ms; a program that only calls get() never needs it, and no worker does",
    "cloudpickle": "40 ms; builtin values travel without it",
    "concurrent.futures": "brings logging along; only futures need it",
    "hashlib": "brings OpenSSL along; needed when the first function is pickled",
    "html": "only notebooks show HTML",
    "inspect": "brings ast and dis along; only unusual signatures need it",
    "logging": "only who logs pays for it",
    "multiprocessing": "only its API and its reducers need it",
    "ctypes": "only who reads a value where it lies in shared memory needs it",
    "shutil": "brings compressors along; only a session that has spilled needs it",
    "pickletools": "large; only a value that does not unpickle needs it",
    "subprocess": "brings selectors along; only what starts a process needs it",
    "tempfile": "brings random and shutil along; one directory per session needs it",
    "traceback": "brings linecache and tokenize along; only errors need it",
    "uvloop": "its loop is wanted where one runs, and may be missing",
}

# {(module, what it imports inside a function): why}
LAZY_HERE: Final[Mapping[tuple[str, str], str]] = {
    ("taskloom", "taskloom.api"): "the rooms behind the door open when somebody comes",
    ("taskloom._callee", "taskloom._wire.serialization"): (
        "to import a module of remote functions should not cost a pickler"
    ),
    ("taskloom._actor_facts", "taskloom._wire.serialization"): (
        "to import a module of actor classes should not cost a pickler"
    ),
    (
        "taskloom._arrivals",
        "taskloom._waiting",
    ): "brings asyncio along; only a loop's consumer needs it",
    ("taskloom._worker.actor_host", "taskloom._worker.actor_loop"): (
        "brings asyncio along; only the process of an async actor needs it"
    ),
    ("taskloom._worker.actor_host", "taskloom._worker.actor_threads"): (
        "brings queue along; only the process of a concurrent actor needs it"
    ),
    ("taskloom._worker.main", "taskloom._worker.loop_executor"): (
        "brings asyncio along; only a worker that runs coroutines needs it"
    ),
    ("taskloom.util.check_serialize", "taskloom._wire.serialization"): (
        "to import taskloom.util should not cost a pickler"
    ),
    ("taskloom.util.serialization", "taskloom._wire.serialization"): (
        "to import taskloom.util should not cost a pickler"
    ),
    ("taskloom.backends.local_start", "taskloom.backends.local"): (
        "the engine is loaded while the first process of the session starts"
    ),
    ("taskloom.ref", "taskloom._awaiting"): "brings asyncio along; get() does not need it",
    ("taskloom.ref", "taskloom._waiting"): "brings asyncio along; get() does not need it",
}

_RAY: Final = frozenset(
    f"taskloom.backends.ray{part}"
    for part in ("", "_driver", "_actors", "_cancel", "_hosts", "_worker", "_streams", "_errors")
)
_DASK: Final = frozenset(
    f"taskloom.backends.dask{part}"
    for part in (
        *("", "_actors", "_arrivals", "_cancel", "_driver", "_errors", "_handles"),
        *("_head", "_hosts", "_processes", "_program", "_streams", "_waits", "_worker"),
    )
)

# {third-party package: the only modules that may import it}
ONE_DOOR: Final[Mapping[str, frozenset[str]]] = {
    "cloudpickle": frozenset({"taskloom._wire.serialization", "taskloom._wire.unpicklable"}),
    "uvloop": frozenset({"taskloom._engine.portal", "taskloom._worker.loop_executor"}),
    "ray": _RAY,
    "dask": _DASK,
    "distributed": _DASK,
}


@dataclass(frozen=True, slots=True)
class Import:
    """One import that really happens, of a module by its full name."""

    importer: str
    target: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


# -- reading --------------------------------------------------------------------------------------


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, is_package: bool, modules: Iterable[str]) -> None:
        self.module = module
        self.package = module if is_package else module.rpartition(".")[0]
        self.modules = frozenset(modules)
        self.depth = 0
        self.found: list[Import] = []

    def _add(self, target: str, line: int) -> None:
        self.found.append(Import(self.module, target, line, self.depth > 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute("." * node.level + (node.module or ""))
        for alias in node.names:
            name = f"{base}.{alias.name}"
            # `from taskloom import _ids` is an import of taskloom._ids, not of what is in the door.
            self._add(name if name in self.modules else base, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        name = node.func.id if isinstance(node.func, ast.Name) else name
        if name in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str(target)):
                    self._add(self._absolute(target), node.lineno)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not _is_type_checking(node.test):
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node)

    def _visit_function(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def _absolute(self, name: str) -> str:
        bare = name.lstrip(".")
        level = len(name) - len(bare)
        if not level:
            return name
        base = self.package.rsplit(".", level - 1)[0] if level > 1 else self.package
        return f"{base}.{bare}" if bare else base


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False


def read_imports(sources: Mapping[str, str]) -> list[Import]:
    """The imports in ``sources``: {full name of the module: text}.

    A name that ends in ``.__init__`` is a package.
    """
    modules = {name.removesuffix(".__init__") for name in sources}
    found = []
    for name, text in sources.items():
        module = name.removesuffix(".__init__")
        reader = _Reader(module, module != name, modules)
        reader.visit(ast.parse(text, filename=name))
        found += reader.found
    return found


def read_sources() -> dict[str, str]:
    """The text of every module of the package."""
    return {
        ".".join(("taskloom", *path.relative_to(SOURCE).with_suffix("").parts)): path.read_text()
        for path in sorted(SOURCE.rglob("*.py"))
    }


# -- judging --------------------------------------------------------------------------------------


def floor_of(module: str) -> int | None:
    """The floor on which ``module`` lives; None when the table does not say."""
    name = module.removeprefix("taskloom").removeprefix(".")
    while True:
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
        if "." not in name:
            return None
        name = name.rpartition(".")[0]


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def unknown_modules(sources: Mapping[str, str]) -> Iterator[str]:
    for name in sources:
        module = name.removesuffix(".__init__")
        if floor_of(module) is None:
            yield f"{module} has no floor: add it to FLOORS in {Path(__file__).name}"


def upward_imports(imports: Iterable[Import]) -> Iterator[str]:
    for found in imports:
        if not is_below(found.target, "taskloom"):
            continue
        here, there = floor_of(found.importer), floor_of(found.target)
        if here is not None and there is not None and here < there:
            yield f"{found}: up from floor {here} to floor {there}"


def circles(imports: Iterable[Import]) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for found in imports:
        if is_below(found.target, "taskloom") and found.target != found.importer:
            graph.setdefault(found.importer, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "a circle: " + " <- ".join(error.args[1])


def imports_in_functions(imports: Iterable[Import]) -> Iterator[str]:
    for found in imports:
        if not found.in_function or (found.importer, found.target) in LAZY_HERE:
            continue
        if not any(is_below(found.target, name) for name in LAZY):
            yield f"{found} inside a function: put it at the top, or say why in LAZY_HERE"


def imports_through_walls(imports: Iterable[Import]) -> Iterator[str]:
    for found in imports:
        for one, other in (("_worker", "_pool"), ("_pool", "_worker")):
            inside = is_below(found.importer, f"taskloom.{one}")
            if inside and is_below(found.target, f"taskloom.{other}"):
                yield f"{found}: {one} and {other} only meet on the wire"
        for package, doors in ONE_DOOR.items():
            if is_below(found.target, package) and found.importer not in doors:
                yield f"{found}: only {' and '.join(sorted(doors))} may"
        if is_below(found.importer, "taskloom._core") and is_below(found.target, "anyio"):
            yield f"{found}: the loom is pure"


def violations(sources: Mapping[str, str]) -> list[str]:
    """All that is wrong with ``sources``, one line each."""
    imports = read_imports(sources)
    return [
        *unknown_modules(sources),
        *upward_imports(imports),
        *circles(imports),
        *imports_in_functions(imports),
        *imports_through_walls(imports),
    ]


# -- the house ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    found = read_sources()
    assert "taskloom._core.graph" in found, f"{SOURCE} is not where the package is"
    return found


def test_every_module_has_a_floor(sources):
    assert list(unknown_modules(sources)) == []


def test_no_module_imports_from_a_floor_above_it(sources):
    assert list(upward_imports(read_imports(sources))) == []


def test_there_is_no_import_circle(sources):
    assert list(circles(read_imports(sources))) == []


def test_imports_inside_functions_are_on_the_list(sources):
    assert list(imports_in_functions(read_imports(sources))) == []


def test_the_list_of_imports_inside_functions_names_nothing_that_is_gone(sources):
    lazy = {(i.importer, i.target) for i in read_imports(sources) if i.in_function}
    assert sorted(LAZY_HERE.keys() - lazy) == []


def test_workers_and_pool_never_meet_and_each_dependency_has_one_door(sources):
    assert list(imports_through_walls(read_imports(sources))) == []


# -- the checker can fail -------------------------------------------------------------------------


def judge(**modules: str) -> str:
    """The violations of modules of taskloom, named with ``__`` for a dot."""
    names = {f"taskloom.{name.replace('__', '.')}": text for name, text in modules.items()}
    return "\n".join(violations(names))


def test_a_downward_import_is_fine():
    assert judge(api="from taskloom.ref import ObjectRef", ref="from . import _ids", _ids="") == ""


@pytest.mark.parametrize(
    "text",
    [
        "from taskloom.api import get",
        "import taskloom.api",
        "from taskloom import api",
        "from .api import get",
        "from . import api",
        "class C:\n    from taskloom.api import get",
        "try:\n    import taskloom.api\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('taskloom.api')",
        "def f():\n    from taskloom.api import get",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import taskloom.api",
    ],
)
def test_an_upward_import_is_reported(text):
    assert "taskloom.ref:" in judge(ref=text, api="")
    assert "up from floor 1 to floor 8" in judge(ref=text, api="")


def test_an_import_of_the_door_itself_is_reported():
    assert "up from floor 1 to floor 8" in judge(ref="from taskloom import get")


def test_an_import_from_a_package_below_the_importer_is_resolved_from_there():
    text = "from ..api import get\nfrom . import graph"
    reported = judge(_core__reactor=text, _core__graph="", api="")
    assert reported.splitlines() == [
        "taskloom._core.reactor:1 imports taskloom.api: up from floor 2 to floor 8"
    ]


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_types_only_does_not_count(test):
    assert judge(ref=f"if {test}:\n    from taskloom.api import get\n    import uvloop") == ""


def test_a_circle_is_reported():
    assert "a circle" in judge(api="import taskloom.actor", actor="import taskloom.api")


def test_a_circle_through_a_function_is_reported():
    hidden = "def f():\n    import taskloom.actor"
    assert "a circle" in judge(api=hidden, actor="import taskloom.api")


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import taskloom._ids",
        "async def f():\n    import json",
        "f = lambda: import_module('json')",
        "class C:\n    def f(self):\n        from json import loads",
        "def f():\n    return __import__('json')",
    ],
)
def test_an_import_inside_a_function_is_reported(text):
    assert "inside a function" in judge(api=text, _ids="")


def test_heavy_modules_may_be_imported_inside_a_function():
    assert judge(api="def f():\n    import asyncio.events") == ""


def test_a_name_that_is_not_literal_is_nobody_s_import():
    assert judge(api="def f(name):\n    return import_module(name)") == ""


@pytest.mark.parametrize(("one", "other"), [("_worker", "_pool"), ("_pool", "_worker")])
def test_an_import_between_workers_and_pool_is_reported(one, other):
    modules = {f"{one}__main": f"import taskloom.{other}.thing", f"{other}__thing": ""}
    assert "only meet on the wire" in judge(**modules)


@pytest.mark.parametrize("package", ["cloudpickle", "uvloop", "ray", "dask"])
def test_an_import_beside_a_dependency_s_one_door_is_reported(package):
    assert "may" in judge(_engine__engine=f"import {package}")
    assert "may" in judge(_engine__engine=f"def f():\n    from {package} import x")


def test_taskloom_s_own_backend_of_that_name_is_not_the_dependency():
    assert judge(api="from taskloom.backends import ray", backends__ray="import ray") == ""


def test_anyio_in_the_loom_is_reported():
    assert "the loom is pure" in judge(_core__graph="import anyio")


def test_a_module_without_a_floor_is_reported():
    assert "taskloom.helpers has no floor" in judge(helpers="")


def test_no_two_test_files_have_the_same_name():
    # pytest imports them by their names alone.
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
