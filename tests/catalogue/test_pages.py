"""The catalogue of errors matches the code that raises them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sddit.cli.commands.explain import EXITS
from sddit.errors import catalogue

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"SD-[RPDCNMFXT]\d{3}")
LETTER_EXITS = {"R": {2}, "P": {3}, "D": {4}, "C": {5}, "N": {6}, "M": {7}, "F": {8}, "X": {9}, "T": {2, 6}}


def used() -> set[str]:
    """Return every code in our source."""
    files = [*(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    return {code for file in files for code in CODE.findall(file.read_text(encoding="utf-8"))}


def test_every_code_in_the_source_has_a_page():
    assert used() - catalogue().keys() == set()


def test_every_page_has_a_code_in_the_source():
    assert catalogue().keys() - used() == set()


def test_pages_are_complete_sorted_and_have_documented_exit_statuses():
    for code, page in catalogue().items():
        assert page.keys() - {"action"} == {"title", "exit", "cause", "remedy"}
        assert all(page[key].strip() for key in ("title", "cause", "remedy"))
        assert page["exit"] in LETTER_EXITS[code[3]] & EXITS.keys(), code
    codes = list(catalogue())
    assert codes == sorted(codes, key=lambda code: ("RPDCNMFXT".index(code[3]), code))


def lacking(source: str) -> Iterator[str]:
    """Yield the calls of `error(...)` and `Problem(...)` without `where`, or with neither `fix` nor `expect`.

    A code whose remedy in the catalogue is a concrete action needs neither: the remedy is its `fix`.
    """
    fields = ("code", "what", "where", "got", "expect", "fix")
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("error", "Problem") and node.args):
            continue
        code = node.args[0]
        if not (isinstance(code, ast.Constant) and CODE.fullmatch(str(code.value))):
            continue
        given = {*fields[: len(node.args)], *(keyword.arg for keyword in node.keywords)}
        remedy = catalogue().get(code.value, {}).get("action", False)
        if "where" not in given or not (remedy or given & {"expect", "fix"}):
            yield f"line {node.lineno}: {code.value}"


@pytest.mark.parametrize("root", ["core", "plugins"])
def test_every_error_states_where_and_what_to_do(root):
    found = {str(file): list(lacking(file.read_text(encoding="utf-8"))) for file in (ROOT / root).rglob("*.py")}
    assert {file: calls for file, calls in found.items() if calls} == {}


def test_error_without_them_is_detected():
    assert list(lacking('error("SD-R102", "x", where="y", fix="z")\nProblem("SD-R102", "x", "y", "", "z")')) == []
    assert list(lacking('error("SD-R102", "x", fix="z")')) == ["line 1: SD-R102"]
    assert list(lacking('Problem("SD-R102", "x", "y", "z")')) == ["line 1: SD-R102"]
