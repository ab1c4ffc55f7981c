"""Write the model card of exported weights: network, training, scores, how to load them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit import __version__
from sddit.errors import printable
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import PROVENANCE, LocatedWeights
from sddit.storage.run_folder import SCORES, read_json, unreadable_error

HEADER = """---
{library}tags:
- diffusion
- diffusion-transformer
- {task}
---
"""


def model_card(recipe: Recipe, source: LocatedWeights, layout: str, parameters: int, note: str = "") -> str:
    """Return README.md in Markdown. It states no licence: the publisher of the weights chooses one."""
    task = "class-conditional" if recipe.facts.num_classes else "unconditional"
    library = "library_name: sddit\n" if layout == "ours" else ""
    sections = [
        f"# {recipe.name}",
        network_section(recipe, source, parameters),
        "## Load",
        load_section(recipe, layout),
        *([note] if note else []),
        "## Training",
        read_section(source.folder / PROVENANCE, import_section) or training_table(recipe),
        *(["## Scores", scores] if (scores := read_section(source.folder / SCORES, score_table)) else []),
        "## Licence",
        "Not stated yet. Before you publish these weights, choose a licence that respects the training data and the "
        "licence of the weights that training started from, if any. Write it as `license:` at the top of this file.",
    ]
    return HEADER.format(library=library, task=task) + "\n" + "\n\n".join(sections) + "\n"


def network_section(recipe: Recipe, source: LocatedWeights, parameters: int) -> str:
    channels, height, width = recipe.facts.image
    classes = f"{recipe.facts.num_classes:,} classes" if recipe.facts.num_classes else "no classes"
    kind = "an EMA of the weights" if source.label != "student" else "the trained weights"
    return (
        f"{recipe.backbone.component.summary} {parameters:,} parameters, for inputs of {channels}x{height}x{width} and "
        f"{classes}. The file holds {kind} (`{source.label}`) after {source.step:,} steps. "
        f"Written by sddit {__version__}."
    )


def load_section(recipe: Recipe, layout: str) -> str:
    if layout == "ours":
        some = "classes=[0], per_class=8" if recipe.facts.num_classes else "per_class=8"
        more = ", trust_code=True" if recipe.plugin_files else ""
        sample = f"images = sddit.sample(model, {some})   # uint8 [8, 3, H, W]"
        lines = f'import sddit\n\nmodel = sddit.load("this/folder"{more})\n{sample}'
        plugins = ", ".join(recipe.plugin_files)
        note = f" Loading runs the code in {plugins}, which is next to the weights." if plugins else ""
        return (
            f"```python\n{lines}\n```\n\nThe recipe is stored in `config.json`; the training data is not needed.{note}"
        )
    return (
        f"The tensors have the names of the layout `{layout}`, and the config holds the constructor arguments of its "
        f"own implementation. To load it with sddit: `sddit-run import WEIGHTS --layout {layout} --config CONFIG`."
    )


def training_table(recipe: Recipe) -> str:
    """Describe the training of the recipe as a table, without paths of the machine that ran it."""
    facts = recipe.facts
    images = f"{facts.train_size:,} images" if facts.train_size else "an unknown number of images"
    rows = {
        "data": f"`{recipe.dataset.component.name}`, {images}, fingerprint `{facts.fingerprint[:12]}`",
        "noise": f"`{recipe.noise_schedule.component.name}`: {recipe.noise_schedule.component.summary}",
        "views": f"`{recipe.pair_sampler.component.name}`: {recipe.pair_sampler.component.summary}",
        **{
            f"loss.{label}": f"`{c.component.name}`: {c.component.summary}" for label, c in recipe.active_losses.items()
        },
        "planned": f"{recipe.train.steps:,} steps of {recipe.train.batch:,} images, {recipe.train.precision}",
        "sampler": f"`{recipe.sampler.component.name}`, {recipe.sampler.params.steps} levels",
        "guidance": f"`{recipe.guidance.component.name}`",
        **({"started from": f"weights with sha256 `{recipe.start.sha256[:12]}`"} if recipe.start else {}),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in rows.items())])


def import_section(provenance: Mapping[str, Any]) -> str:
    """Describe imported weights: nothing but their file is known."""
    return (
        f"Imported from `{cell(provenance['file'])}` (layout `{provenance['layout']}`, sha256 "
        f"`{provenance['sha256']}`), trained elsewhere. Ask the author of that file for the data and the licence."
    )


def score_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores of a finished run as a table; empty if it has none."""
    rows = [row for label, one in found.items() for row in score_rows(label, one)]
    if not rows:
        return ""
    note = "The floor is the score of held-out real images. The Frechet distance (fd) here is not FID."
    return "\n".join(["| extractor | metric | samples | floor | n |", "|---|---|---|---|---|", *rows, "", note])


def score_rows(label: str, one: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row per metric that has a floor."""
    for key, value in one.items():
        floor = one.get(f"{key}_floor")
        if value is not None and floor is not None:
            title, metric = cell(str(one.get("title", label))), key.replace("_", " ")
            yield f"| {title} | {metric} | {float(value):.4g} | {float(floor):.4g} | {one.get('n', '')} |"


def read_section(path: Path, render: Callable[[Mapping[str, Any]], str]) -> str:
    """Render a JSON file of the run folder; empty if it is missing. Raises SD-F704 if a run did not write it so."""
    if not os.path.lexists(path):
        return ""
    fix = "restore it from a backup, or move it away: the model card is then written without it"
    try:
        return render(read_json(path, fix=fix))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise unreadable_error(path, f"{type(fault).__name__}: {fault}"[:160], fix) from fault


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")
