"""The page that goes with exported weights: what they are, what made them, how to load them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit import __version__
from sddit.errors import printable
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import PROVENANCE, Found
from sddit.storage.run_folder import SCORES, read_json, unreadable

HEADER = """---
{library}tags:
- diffusion
- diffusion-transformer
- {task}
---
"""


def model_card(recipe: Recipe, source: Found, layout: str, parameters: int, note: str = "") -> str:
    """README.md in Markdown. It states no licence: that is for whoever publishes the weights to choose."""
    task = "class-conditional" if recipe.facts.num_classes else "unconditional"
    library = "library_name: sddit\n" if layout == "ours" else ""
    sections = [
        f"# {recipe.name}",
        about(recipe, source, parameters),
        "## Load",
        how_to_load(recipe, layout),
        *([note] if note else []),
        "## Training",
        told(source.folder / PROVENANCE, imported) or training(recipe),
        *(["## Scores", table] if (table := told(source.folder / SCORES, scores)) else []),
        "## Licence",
        "None is stated here. Whoever publishes these weights chooses one, with regard to the data they were trained on "
        "and to the licence of the weights they began from, if any; write it as `license:` at the top of this file.",
    ]
    return HEADER.format(library=library, task=task) + "\n" + "\n\n".join(sections) + "\n"


def about(recipe: Recipe, source: Found, parameters: int) -> str:
    channels, height, width = recipe.facts.image
    classes = f"{recipe.facts.num_classes:,} classes" if recipe.facts.num_classes else "no classes"
    kind = "a moving average" if source.label != "student" else "the trained weights"
    return (
        f"{recipe.backbone.component.summary} {parameters:,} parameters, for inputs of {channels}x{height}x{width} and "
        f"{classes}. These are {kind} (`{source.label}`) after {source.step:,} steps. "
        f"Written by sddit {__version__}."
    )


def how_to_load(recipe: Recipe, layout: str) -> str:
    if layout == "ours":
        some = "classes=[0], per_class=8" if recipe.facts.num_classes else "per_class=8"
        more = ", trust_code=True" if recipe.plugin_files else ""
        lines = f'import sddit\n\nmodel = sddit.load("this/folder"{more})\nimages = sddit.sample(model, {some})   # uint8 [8, 3, H, W]'
        plugins = ", ".join(recipe.plugin_files)
        note = f" It runs the code of {plugins}, which lies beside the weights." if plugins else ""
        return f"```python\n{lines}\n```\n\nThe recipe is in `config.json`; no data is needed.{note}"
    return (
        f"The tensors have the names of the layout `{layout}`, and the config holds the arguments of its own "
        f"implementation. Here: `sddit-run import WEIGHTS --layout {layout} --config CONFIG`."
    )


def training(recipe: Recipe) -> str:
    """What the recipe says, without any path of the machine that ran it."""
    facts = recipe.facts
    images = f"{facts.train_size:,} images" if facts.train_size else "an unknown number of images"
    rows = {
        "data": f"`{recipe.dataset.component.name}`, {images}, fingerprint `{facts.fingerprint[:12]}`",
        "noise": f"`{recipe.noise_schedule.component.name}`: {recipe.noise_schedule.component.summary}",
        "views": f"`{recipe.pair_sampler.component.name}`: {recipe.pair_sampler.component.summary}",
        **{f"loss.{label}": f"`{c.component.name}`: {c.component.summary}" for label, c in recipe.terms.items()},
        "planned": f"{recipe.train.steps:,} steps of {recipe.train.batch:,} images, {recipe.train.precision}",
        "sampler": f"`{recipe.sampler.component.name}`, {recipe.sampler.params.steps} levels",
        "guidance": f"`{recipe.guidance.component.name}`",
        **({"begun from": f"weights with sha256 `{recipe.start.sha256[:12]}`"} if recipe.start else {}),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in rows.items())])


def imported(provenance: Mapping[str, Any]) -> str:
    """Weights that were trained elsewhere: all that is known here is the file."""
    return (
        f"Trained elsewhere, and brought in from `{cell(provenance['file'])}` (layout `{provenance['layout']}`, sha256 "
        f"`{provenance['sha256']}`). Whoever made that file knows the data and the terms."
    )


def scores(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of a finished run as a table; empty: it has none."""
    rows = [row for label, one in found.items() for row in score_rows(label, one)]
    if not rows:
        return ""
    note = "The floor is what held-out images get in the samples' place. A Frechet distance (fd) here is not FID."
    return "\n".join(["| by | figure | samples | floor | n |", "|---|---|---|---|---|", *rows, "", note])


def score_rows(label: str, one: Mapping[str, Any]) -> Iterator[str]:
    """A row for each figure that has a floor."""
    for key, value in one.items():
        floor = one.get(f"{key}_floor")
        if value is not None and floor is not None:
            title, figure = cell(str(one.get("title", label))), key.replace("_", " ")
            yield f"| {title} | {figure} | {float(value):.4g} | {float(floor):.4g} | {one.get('n', '')} |"


def told(path: Path, words: Callable[[Mapping[str, Any]], str]) -> str:
    """A JSON file of the run folder in words; empty where there is none. SD-F704 for one that is not what a run writes."""
    if not os.path.lexists(path):
        return ""
    fix = "put a copy back, or move it away: the card then leaves it out"
    try:
        return words(read_json(path, fix=fix))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise unreadable(path, f"{type(fault).__name__}: {fault}"[:160], fix) from fault


def cell(text: str) -> str:
    """Text inside a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")
