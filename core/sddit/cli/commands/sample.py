"""`sddit-run sample`: generate images with a trained run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sddit.cli.options import PathOption, SdditCommand, device_option, non_empty, step_option
from sddit.cli.output import echo, notice
from sddit.data.class_choice import MAX_NUMBERS, choose_classes
from sddit.errors import error
from sddit.plugins.host import host

if TYPE_CHECKING:
    from torch import Tensor

    from sddit.generation import Drawn
    from sddit.interfaces import Dataset

EXAMPLES = """
sddit-run sample runs/quickstart-4f2c91d07a55
sddit-run sample RUN --classes 3,7 --per-class 4 --seeds 0-3
sddit-run sample RUN --steps 40 --sampler euler --guidance 1.5
"""


@click.command("sample", cls=SdditCommand, examples=EXAMPLES)
@click.argument("run", type=PathOption())
@click.option(
    "--classes",
    metavar="LIST",
    multiple=True,
    help="Class numbers or names, such as 0,cat,7-9. A name with commas in double quotes: '\"tench, Tinca tinca\",3'. "
    "Repeatable.  [default: all]",
)
@click.option("--per-class", metavar="N", type=click.IntRange(1, 10_000), default=8, help="Images per class and seed.")
@click.option("--seeds", metavar="LIST", help="Seeds, such as 0-3.  [default: the seed of the run]")
@click.option("--steps", metavar="N", type=click.IntRange(2), help="Sampler steps.  [default: those of the recipe]")
@click.option("--guidance", type=float, metavar="SCALE", help="Guidance scale.  [default: that of the recipe]")
@click.option("--sampler", metavar="NAME", help="Sampler by name; sddit-run show samplers lists them.")
@click.option(
    "--weights", type=non_empty, metavar="LABEL", help="Label of an [ema], or student.  [default: as in the recipe]"
)
@step_option
@device_option
@click.option("--trust-code", is_flag=True, help="Allow the plugin files of an exported folder to run.")
@click.option("--out", type=PathOption(), metavar="DIR", help="Folder to write to.  [default: RUN/samples]")
def sample(
    run: Path,
    classes: tuple[str, ...],
    per_class: int,
    seeds: str | None,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    weights: str | None,
    step: int | None,
    device: str,
    trust_code: bool,
    out: Path | None,
) -> None:
    """Generate images with a run: a grid (PNG) and an array (npz), or latents (safetensors)."""
    from sddit import api
    from sddit.storage.run_folder import ensure_directory
    from sddit.training.environment import choose_device

    host().announce = notice
    choose_device(device)
    model = api.load(run, weights=weights or "", step=step, trust_code=trust_code)
    recipe = model.require_recipe()
    names = recipe.facts.class_names
    wanted = [label for text in classes for label in choose_classes(text, names, where="--classes")]
    wanted = wanted or list(range(len(names)))
    chosen = [recipe.seed] if seeds is None else numbers(seeds, "--seeds")
    folder = ensure_directory(out or run / "samples")
    drawn = [
        api.draw(
            model,
            classes=wanted or None,
            per_class=per_class,
            seed=seed,
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            device=device,
        )
        for seed in chosen
    ]
    for path in write(drawn, model.dataset(), wanted, folder):
        echo(path)


def numbers(text: str, flag: str) -> list[int]:
    """Convert `0,3,7-9` to [0, 3, 7, 8, 9]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None:
            what = f"{part.strip()!r} is not valid here"
            raise error("SD-T921", what, where=flag, got=text, expect="numbers such as 0,3,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            what, fix = f"the range {part.strip()} is reversed", f"{flag} {last}-{first}"
            raise error("SD-T911", what, where=flag, got=text, expect="the lower number first", fix=fix)
        if len(found) + last - first >= MAX_NUMBERS:
            expect = f"at most {MAX_NUMBERS:,} numbers"
            raise error("SD-T911", "the list is too long", where=flag, got=text, expect=expect)
        found += range(first, last + 1)
    return found


def write(drawn: Sequence[Drawn], dataset: Dataset, classes: Sequence[int], folder: Path) -> list[Path]:
    """Write `drawn-N.png` and the samples, with the next free N, and return their paths.

    Samples are images in `drawn-N.npz`, or latents without a decoder in `drawn-N.safetensors`.
    """
    import torch

    from sddit.evaluation.grids import grid, png
    from sddit.evaluation.sample_images import caption_of
    from sddit.storage.atomic import replace_file

    recipe, count = drawn[0].recipe, len(drawn[0].x)
    rows = torch.arange(len(drawn) * count).reshape(len(drawn), len(classes) or 1, -1)
    rows = rows.transpose(0, 1).flatten()  # by class, then seed; drawn by seed, then class
    images = dataset.to_images(torch.cat([one.x for one in drawn])[rows])  # [n, 3, H, W]
    taken = [int(match[1]) for p in folder.glob("drawn-*") if (match := re.fullmatch(r"drawn-(\d+)", p.stem))]
    name = f"drawn-{max(taken, default=0) + 1}"
    columns, names = len(rows) // (len(classes) or 1), recipe.facts.class_names
    preview = png(grid(images, columns, [names[number] for number in classes], caption=caption_of(recipe)))
    files = {f"{name}.png": preview, **samples_file(name, drawn, rows, images)}
    for file, data in files.items():
        replace_file(folder / file, data)
    return [folder / file for file in files]


def samples_file(name: str, drawn: Sequence[Drawn], rows: Tensor, images: Tensor) -> dict[str, bytes]:
    """Return {file: bytes} of the samples of `rows`."""
    import numpy as np
    import torch

    from sddit.evaluation.sample_images import npz, pack_latents
    from sddit.generation import latents_of

    recipe = drawn[0].recipe
    labels = torch.tensor([label for one in drawn for label in one.request.labels])[rows]
    if recipe.facts.gives_images:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # [n, H, W, 3] as the ADM evaluator reads it
        return {f"{name}.npz": npz(arr_0=pixels, arr_1=np.asarray(labels))}
    if recipe.facts.latent_scale is None:
        notice("the scale of these latents is not known: the file holds them as scaled_latents; divide by the scale")
    latents = latents_of(recipe)(torch.cat([one.x for one in drawn])[rows])
    ids = torch.tensor([number for one in drawn for number in one.request.ids])[rows]
    seeds = torch.tensor([one.request.seed for one in drawn for _ in one.request.ids])[rows]
    numbers = {"labels": labels, "ids": ids, "seeds": seeds}
    return {f"{name}.safetensors": pack_latents(latents, numbers, recipe)}
