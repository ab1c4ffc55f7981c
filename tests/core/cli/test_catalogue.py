"""The catalogue of errors and the code that raises them say the same."""

from __future__ import annotations

import re
from pathlib import Path

from sddit.cli.explain import EXITS
from sddit.errors import catalogue

ROOT = Path(__file__).parents[3]
CODE = re.compile(r"SD-[RPDCNMFXT]\d{3}")
LETTER_EXITS = {"R": {2}, "P": {3}, "D": {4}, "C": {5}, "N": {6}, "M": {7}, "F": {8}, "X": {9}, "T": {2, 6}}


def used() -> set[str]:
    """Every code that stands in our source."""
    files = [*(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    return {code for file in files for code in CODE.findall(file.read_text(encoding="utf-8"))}


def test_every_code_in_the_source_has_a_page():
    assert used() - catalogue().keys() == set()


def test_every_page_is_of_a_code_in_the_source():
    assert catalogue().keys() - used() == set()


def test_pages_are_whole_and_sorted_and_exit_as_documented():
    for code, page in catalogue().items():
        assert page.keys() == {"title", "exit", "cause", "remedy"}
        assert all(page[key].strip() for key in ("title", "cause", "remedy"))
        assert page["exit"] in LETTER_EXITS[code[3]] & EXITS.keys(), code
    codes = list(catalogue())
    assert codes == sorted(codes, key=lambda code: ("RPDCNMFXT".index(code[3]), code))
