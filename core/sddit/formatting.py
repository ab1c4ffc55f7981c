"""Format numbers, durations and lists for reading, and tables as Markdown, LaTeX or CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from sddit.errors import printable

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def format_si(number: float | None, unit: str = "") -> str:
    """Return a number with an SI prefix and three digits: `490 k`, `6.8 G`, `84 MB`; `not stated` for None."""
    if number is None:
        return "not stated"
    size, step = float(number), 0
    while size >= 999.5 and step < len(PREFIXES) - 1:
        size, step = size / 1000, step + 1
    return f"{size:.3g} {PREFIXES[step]}{unit}".rstrip()


def format_number(value: float) -> str:
    """Return a number in at most four digits: `1.2e-4` for 0.00012, `12k` for 12000."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3 or size >= 1e12:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+", "e")
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration in two units: `8.5 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes = round(seconds) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {round(seconds) % 60} s"


def join_words(words: Sequence[str]) -> str:
    """Return an enumeration: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def slug(text: str) -> str:
    """Return a text as part of a file name: `mask_ratio-0.1` for `mask_ratio=0.1`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {character: f"\\{character}" for character in "&%$#_{}"}
)
"""Characters with a meaning in LaTeX, and how to print them."""


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's Markdown."""
    lines = (map(escape_markdown, headings), ["---"] * len(headings), *(map(escape_markdown, row) for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(cell: str) -> str:
    """Escape a cell of a Markdown table, so that it holds no code, HTML, link or formula."""
    return re.sub(r"([\\`|<>$])", r"\\\1", printable(cell)).replace("](", r"]\(")


def latex_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a tabular for the package booktabs. The first column is left-aligned, the others right-aligned."""
    head, *body = (" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (headings, *rows))
    begin = r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}"
    return "\n".join((begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"))


def escape_csv(value: Any) -> Any:
    """Prefix a text that a spreadsheet would evaluate as a formula with an apostrophe. Other values are unchanged."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
