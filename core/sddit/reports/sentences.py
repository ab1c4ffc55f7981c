"""Render sentences of reports from `templates/sentences.j2` as plain text, which HTML and Markdown escape."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sddit.formatting import format_count, format_si, join_words

TEMPLATES = Path(__file__).parent / "templates"


def sentence(name: str, **numbers: Any) -> str:
    """Return the text of a macro of `sentences.j2` on one line."""
    return " ".join(str(getattr(_macros(), name)(**numbers)).split())


@cache
def _macros() -> Any:
    # Plain text is escaped where it is shown: by autoescape in HTML, by `plain` in Markdown.
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False)
    environment.filters.update(si=format_si, count=format_count, words=join_words)
    return environment.get_template("sentences.j2").module
