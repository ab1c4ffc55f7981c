"""Hold who may import whom, and what never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE, PLUGINS = ROOT / "core", ROOT / "plugins"
PUBLIC_BLOCKS = "sddit_dit"  # the one plugin whose blocks others may use
HEAVY = ("torch", "numpy", "xformers", "PIL", "safetensors")
SOURCE_ROOTS = ("core", "plugins", "recipes", "tools", "tests")


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """Modules that a file imports; with `at_top`, only when it is imported itself (not in functions or for type
    checking).
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in executed(tree) if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import."""
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not guarded and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from executed(child)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def top(module: str) -> str:
    return module.partition(".")[0]


def plugin_folders() -> list[Path]:
    return sorted(path for path in PLUGINS.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))


def breaches(file: Path, owner: str) -> set[str]:
    """Imports of `file` that its layer may not have."""
    found = {top(module) for module in imports(file)}
    plugins = {name for name in found if name.startswith("sddit_")}
    allowed = set() if owner == "sddit" else {owner, PUBLIC_BLOCKS}
    return (plugins - allowed) | (found & set(SOURCE_ROOTS))


@pytest.mark.parametrize("file", files(CORE), ids=lambda file: str(file.relative_to(CORE)))
def test_the_core_imports_no_plugin(file):
    assert breaches(file, "sddit") == set()


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_a_plugin_imports_no_other_plugin(folder):
    assert {file: found for file in files(folder) if (found := breaches(file, folder.name))} == {}


def test_the_rule_sees_a_breach(tmp_path):
    """The negative control."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import sddit_masking.loss\n    from plugins import x\n", encoding="utf-8")
    assert breaches(file, "sddit") == {"sddit_masking", "plugins"}
    assert breaches(file, "sddit_edm") == {"sddit_masking", "plugins"}
    assert breaches(file, "sddit_masking") == {"plugins"}
    assert list(imports(file, at_top=True)) == []


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_the_face_of_a_plugin_is_light(folder):
    """What the entry point imports: settings and registration, no torch."""
    heavy = {module for module in imports(folder / "__init__.py", at_top=True) if top(module) in HEAVY}
    assert heavy == set()


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_every_plugin_folder_has_an_entry_point_and_types(folder):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["sddit"]
    assert folder.name in declared.values(), (
        f'add  {folder.name.removeprefix("sddit_")} = "{folder.name}"  and pip install -e . again'
    )
    assert (folder / "py.typed").is_file()


def test_the_source_roots_are_not_packages():
    """`import core` must fail, or two copies of a registry could exist."""
    assert [root for root in ("core", "plugins", "recipes", "tools") if (ROOT / root / "__init__.py").exists()] == []


LIGHT_MODULES = (
    "sddit",
    "sddit.interfaces",
    "sddit.value_schedules",
    "sddit.errors",
    "sddit.plugins.registry",
    "sddit.plugins.hookspecs",
    "sddit.plugins.host",
    "sddit_standard",
    "sddit.recipes.resolve",
    "sddit.recipes.costs",
    "sddit.recipes.checks",
    "sddit.progress",
    "sddit.cli",
    "sddit.testing",
    "sddit.storage.checkpoints",
)


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('loaded:', *sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {top(module) for module in done.stdout.rpartition("loaded:")[2].split()}


def test_light_modules_import_no_torch():
    assert "torch" not in loaded_by("\n".join(f"import {module}" for module in LIGHT_MODULES))


def test_no_torch_is_imported_to_help_list_show_or_plan():
    commands = [["--help"], ["sample", "--help"], ["plugins"], ["plugins", "--json"], ["show"], ["explain"]]
    commands += [["show", kind] for kind in ("losses", "backbones", "attention", "datasets")]
    if (ROOT / "plugins").is_dir() and len(plugin_folders()) > 5:
        commands += [["show", "losses", "discrimination"], ["-n", "recipes/quickstart.toml"]]
    calls = "\n".join(f"assert call({words!r}) == 0, {words!r}" for words in commands)
    loaded = loaded_by(f"from sddit.cli.app import call\n{calls}")
    assert "torch" not in loaded
    assert "sddit" in loaded


def test_the_probe_sees_torch():
    """The negative control."""
    assert "torch" in loaded_by("import sddit.losses")


def test_no_component_name_of_a_plugin_is_written_in_the_core():
    """No branch or default of the core exists for one method; `sdpa`, `none` and `adamw` are neutral."""
    names = {
        "pf_ode",
        "discrimination",
        "reconstruction",
        "denoising",
        "masked",
        "dit",
        "heun",
        "cfg",
        "mdt",
        "maskdit",
        "xformers",
        "flex",
    }
    found = {
        (str(file.relative_to(ROOT)), node.value)
        for file in files(CORE)
        if "templates" not in file.parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    }
    assert found - {("core/sddit/training/environment.py", "xformers")} == set()  # a package whose version is recorded
