"""A table as text that is pasted elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sddit.errors import printable

LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
"""What LaTeX reads as other than itself."""


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = (map(harmless, headings), ["---"] * len(headings), *(map(harmless, row) for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def harmless(cell: str) -> str:
    """A cell of Markdown that stays one cell of text: no code, no HTML, no link, no formula."""
    return re.sub(r"([\\`|<>$])", r"\\\1", printable(cell)).replace("](", r"]\(")


def latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A tabular with the rules of booktabs: the first column to the left, the others to the right."""
    head, *body = (" & ".join(map(escaped, line)) + r" \\" for line in (headings, *rows))
    begin = r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}"
    return "\n".join((begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"))


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(LATEX.get(character, character) for character in text)


def no_formula(value: Any) -> Any:
    """A cell of CSV that a spreadsheet shows and does not compute: a text that begins like a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
