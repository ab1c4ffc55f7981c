"""A table as text that is pasted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

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
    lines = (headings, ["---"] * len(headings), *([cell.replace("|", r"\|") for cell in row] for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A tabular with the rules of booktabs: the first column to the left, the others to the right."""
    head, *body = (" & ".join(map(escaped, line)) + r" \\" for line in (headings, *rows))
    begin = r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}"
    return "\n".join((begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"))


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(LATEX.get(character, character) for character in text)
