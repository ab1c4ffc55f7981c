"""Pages of HTML that need no network and run no script: the report of a run, and that of an ablation.

`page.html.j2` is their frame and style, `macros.html.j2` what they share. Every text is escaped.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sddit.errors import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return the page of a template that extends `page.html.j2`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(data_uri=_data_uri, **values)


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _harmless(value: Any) -> Any:
    """Text without control and direction-changing characters; Jinja escapes it afterwards."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
