"""Write the model card of exported weights from `templates/model_card.md.j2`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sddit import __version__
from sddit.formatting import escape_markdown
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import PROVENANCE, LocatedWeights
from sddit.storage.run_folder import SCORES, read_json, unreadable_error
from sddit.storage.run_result import refuse_other_result

WITHOUT = "restore it from a backup, or move it away: the model card is then written without it"
TEMPLATES = Path(__file__).parent / "templates"


def model_card(recipe: Recipe, source: LocatedWeights, layout: str, parameters: int, note: str = "") -> str:
    """Return README.md in Markdown. It states no licence: the publisher of the weights chooses one."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=escape_markdown, grouped="{:,}".format)
    losses = {f"loss.{label}": chosen for label, chosen in recipe.active_losses.items()}
    return environment.get_template("model_card.md.j2").render(
        recipe=recipe,
        source=source,
        layout=layout,
        parameters=parameters,
        note=note,
        version=__version__,
        components={"noise": recipe.noise_schedule, "views": recipe.pair_sampler, **losses},
        imported=read_section(source.folder / PROVENANCE, origin_of_import),
        scores=scores_section(source.folder) if recipe.facts.gives_images else None,
    )


def scores_section(folder: Path) -> Any:
    """Return the rows of the scores of a run; None if it has none. Raises SD-F704 if they are not what it wrote."""
    rows = read_section(folder / SCORES, score_rows)
    if rows is not None:
        refuse_other_result(folder, SCORES, WITHOUT)
    return rows


def origin_of_import(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of imported weights: only their file."""
    return {key: str(provenance[key]) for key in ("file", "layout", "sha256")}


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row of cells for each metric that has a floor."""
    rows = []
    for label, found in scores.items():
        for key, value in found.items():
            floor = found.get(f"{key}_floor")
            if value is not None and floor is not None:
                title, metric = escape_markdown(str(found.get("title", label))), key.replace("_", " ")
                rows.append([title, metric, f"{float(value):.4g}", f"{float(floor):.4g}", str(found.get("n", ""))])
    return rows


def read_section(path: Path, convert: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Convert a JSON file of the run folder; None if it is missing. Raises SD-F704 if a run did not write it so."""
    if not os.path.lexists(path):
        return None
    try:
        return convert(read_json(path, fix=WITHOUT))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise unreadable_error(path, f"{type(fault).__name__}: {fault}"[:160], WITHOUT) from fault
