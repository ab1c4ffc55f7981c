"""Hold the structure of the core: layers, cycles, sizes, and names that mean one thing."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "sddit"
PLUGINS = ROOT / "plugins"

LAYERS = (
    ("errors", "value_schedules"),
    ("formatting",),
    ("progress",),
    ("interfaces",),
    ("storage",),
    ("distributed",),
    ("plugins", "diffusion"),
    ("losses", "backbones", "data"),
    ("recipes",),
    ("training",),
    ("generation",),
    ("encoding",),
    ("exchange",),
    ("api",),
    ("evaluation",),
    ("testing",),
    ("verify",),
    ("ablations",),
    ("reports",),
    ("runs",),
    ("cli",),
)
"""Folders and files of `core/sddit`, lowest first. Each imports only from the layers below its own, and from itself."""

MAX_LOOSE_FILES = 10
MAX_ENTRIES = 29
MAX_LINES_PER_FILE = 400
MAX_LINES_PER_FUNCTION = 60
LONG_FILES: dict[str, str] = {}
"""Files over the maximum, each with its reason."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions over the maximum, each with its reason."""
REPEATED_NAMES = ("cli/commands", "interfaces", "testing/conformance")
"""Folders whose files are named after a command or a kind of component, and so may repeat a name from elsewhere."""


def modules(*roots: Path) -> dict[str, Path]:
    """{dotted name: file} of every module below the source roots `roots`."""
    found = {}
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_modules(source: str, known: set[str]) -> set[str]:
    """The modules among `known` that a source imports: at the top, in functions, and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """{module: modules it imports}, without the package `sddit` itself, whose public names are loaded lazily."""
    known = set(files) - {"sddit"}
    return {name: imported_modules(file.read_text(encoding="utf-8"), known) for name, file in files.items()}


def layer_of(module: str) -> int | None:
    """The layer of a module of the core; None for the package itself and `__main__`."""
    top = module.split(".")[1] if "." in module else ""
    return next((number for number, layer in enumerate(LAYERS) if top in layer), None)


def upward_imports(graph: dict[str, set[str]]) -> list[str]:
    """Imports that do not go to a lower layer, as `module -> module`."""
    found = []
    for module, targets in graph.items():
        own = layer_of(module)
        for target in sorted(targets):
            other = layer_of(target)
            same = module.split(".")[:2] == target.split(".")[:2]
            if own is not None and other is not None and not same and other >= own:
                found.append(f"{module} -> {target}")
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def functions(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function of a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(file: str, function: str) -> list[str]:
    """The names of a function's parameters."""
    tree = ast.parse((CORE / file).read_text(encoding="utf-8"))
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


CORE_MODULES = modules(CORE.parent)
ALL_MODULES = modules(CORE.parent, PLUGINS)


def test_every_folder_and_file_of_the_core_has_a_layer() -> None:
    entries = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__", "__main__"} == {name for layer in LAYERS for name in layer}


def test_imports_go_to_lower_layers_only() -> None:
    assert upward_imports(import_graph(CORE_MODULES)) == []


def test_no_modules_import_each_other() -> None:
    assert cycles(import_graph(ALL_MODULES)) == []


def test_an_upward_import_and_a_cycle_are_noticed() -> None:
    """The negative control, with imports inside a function and under TYPE_CHECKING."""
    known = {"sddit.storage.atomic", "sddit.training.loop", "sddit.recipes", "sddit.recipes.merge"}
    source = (
        "def f():\n    from sddit.training import loop\nif TYPE_CHECKING:\n    from sddit.recipes.merge import load\n"
    )
    found = imported_modules(source, known)
    assert found == {"sddit.training.loop", "sddit.recipes.merge"}
    assert upward_imports({"sddit.storage.atomic": found, "sddit.training.loop": {"sddit.storage.atomic"}}) == [
        "sddit.storage.atomic -> sddit.recipes.merge",
        "sddit.storage.atomic -> sddit.training.loop",
    ]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_the_top_of_the_core_is_short() -> None:
    entries = [path.name for path in CORE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES
    assert len([name for name in entries if name.endswith(".py")]) <= MAX_LOOSE_FILES


@pytest.mark.parametrize("root", [CORE, PLUGINS], ids=["core", "plugins"])
def test_files_and_functions_are_short(root: Path) -> None:
    sources = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    long_files = {name for name, source in sources.items() if source.count("\n") > MAX_LINES_PER_FILE}
    assert long_files == {name for name in LONG_FILES if name in sources}
    long_functions = {
        f"{name}:{function}"
        for name, source in sources.items()
        for function, lines in functions(source)
        if lines > MAX_LINES_PER_FUNCTION
    }
    assert long_functions == {name for name in LONG_FUNCTIONS if name.partition(":")[0] in sources}


@pytest.mark.parametrize("function", ["take_step", "forward"])
def test_the_training_step_takes_few_arguments(function: str) -> None:
    assert len(parameters("training/loop.py", function)) < 6


def test_no_two_modules_share_a_name() -> None:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for file in CORE.rglob("*.py"):
        folder = file.parent.relative_to(CORE).as_posix()
        if file.name in ("__init__.py", "__main__.py") or folder in REPEATED_NAMES:
            continue
        names[file.stem].append(str(file.relative_to(CORE)))
    for folder in (path.parent for path in CORE.rglob("__init__.py")):
        names[folder.name].append(f"{folder.relative_to(CORE)}/")
    repeated = {name: places for name, places in names.items() if len(places) > 1}
    allowed = {
        "ablation",
        "plugins",
    }  # a folder of reports and the folder it reports on; see REPEATED_NAMES for commands
    assert {name for name in repeated if name not in allowed} == set(), repeated


def test_no_two_public_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for file in CORE.rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert sorted(name for name, count in names.items() if count > 1) == []
