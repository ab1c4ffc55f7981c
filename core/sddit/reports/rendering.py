"""Render the templates of reports: pages of HTML, which need no network and run no script, pages of Markdown, and
sentences. Every text is escaped.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sddit.errors import printable
from sddit.formatting import format_count, format_duration, format_number, format_si, join_words

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return the page of a template; one of Markdown is named `*.md.j2`."""
    language = "markdown" if template.endswith(".md.j2") else "html"
    return _environment(language).get_template(template).render(**values)


def sentence(name: str, **values: Any) -> str:
    """Return the text of a macro of `sentences.j2` on one line, which is escaped where a page shows it."""
    module: Any = _environment("text").get_template("sentences.j2").module
    return " ".join(str(getattr(module, name)(**values)).split())


@cache
def _environment(language: str) -> Environment:
    escape = {"html": _escape_html, "markdown": escape_markdown}.get(language)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=escape is not None,
        finalize=escape,
        trim_blocks=escape is not None,
        lstrip_blocks=escape is not None,
        auto_reload=False,
    )
    environment.filters.update(
        count=format_count,
        data_uri=lambda image: "data:image/png;base64," + base64.b64encode(image).decode("ascii"),
        duration=format_duration,
        number=format_number,
        si=format_si,
        verbatim=lambda text: Markup(printable(text)),
        words=join_words,
    )
    environment.globals["sentence"] = sentence
    return environment


def _escape_html(value: Any) -> Any:
    """Return text without control and direction-changing characters; Jinja escapes it afterwards."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def escape_markdown(value: Any) -> Any:
    """Return text in which nothing is a mark of Markdown, HTML or a formula."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup(re.sub(r"[\\`*\[\]<|&$]|(?<!\w)_|_(?!\w)", lambda mark: f"\\{mark[0]}", printable(value)))
