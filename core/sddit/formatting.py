"""Numbers as people read them: large ones in few letters, and how many there are of what."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from sddit.errors import printable

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
UNKNOWN = "not stated"


def big(number: float | None, unit: str = "") -> str:
    """`490 k`, `6.8 G`, `84 MB`: three digits."""
    if number is None:
        return UNKNOWN
    size, step = float(number), 0
    while size >= 999.5 and step < len(PREFIXES) - 1:
        size, step = size / 1000, step + 1
    return f"{size:.3g} {PREFIXES[step]}{unit}".rstrip()


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def slug(text: str) -> str:
    """A name for a file: `mask_ratio=0.1` is `mask_ratio-0.1`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


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


def short(value: float) -> str:
    """A number in few letters: 0.00012 -> 1.2e-4, 12000 -> 12k."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3 or size >= 1e12:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+", "e")
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


# --------------------------------------------------------------------------------------------------------------------
