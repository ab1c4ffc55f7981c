"""`sddit-run sample`: generate images with a trained run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sddit.cli.options import PathOption, SdditCommand, device_option, non_empty, step_option
from sddit.cli.output import echo, notice
from sddit.errors import error, one_of
from sddit.plugins.host import host

if TYPE_CHECKING:
    from torch import Tensor

    from sddit.recipes.recipe import Recipe

EXAMPLES = """
sddit-run sample runs/quickstart-4f2c91d07a55
sddit-run sample RUN --classes 3,7 --per-class 4 --seeds 0-3
sddit-run sample RUN --steps 40 --sampler euler --guidance 1.5
"""
MAX_NUMBERS = 10_000  # in one list


@click.command("sample", cls=SdditCommand, examples=EXAMPLES)
@click.argument("run", type=PathOption())
@click.option("--classes", metavar="LIST", help="Class numbers or names, such as 0,3,7-9.  [default: all]")
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
    classes: str | None,
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
    """Generate images with a run: a grid (PNG) and an array (npz)."""
    import torch

    from sddit import api
    from sddit.storage.run_folder import ensure_directory
    from sddit.training.environment import choose_device

    host().announce = notice
    choose_device(device)
    model = api.load(run, weights=weights or "", step=step, trust_code=trust_code)
    recipe = model.require_recipe()
    settings = {"sampler.name": sampler, "sampler.steps": steps}
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None]
    if guidance is not None:
        overrides += guidance_overrides(recipe, guidance)
    names = recipe.facts.class_names
    wanted = class_numbers(classes, names)
    chosen = [recipe.seed] if seeds is None else numbers(seeds, "--seeds")
    folder = ensure_directory(out or run / "samples")
    by_seed = [
        api.sample(model, classes=wanted, per_class=per_class, seed=seed, device=device, overrides=overrides)
        for seed in chosen
    ]  # per seed: [classes * per_class, 3, H, W]
    shape = (len(wanted) or 1, per_class, *by_seed[0].shape[1:])
    by_class = torch.cat([images.reshape(shape) for images in by_seed], dim=1)  # [classes, seeds * per_class, 3, H, W]
    for path in write(by_class, wanted, names, folder):
        echo(path)


def guidance_overrides(recipe: Recipe, scale: float) -> list[str]:
    """Return the overrides for a guidance scale: of the recipe's rule, else of the only rule that has a scale."""
    if "scale" in type(recipe.guidance.params).model_fields:
        return [f"guidance.scale={scale}"]
    scaled = [c.qualified for c in host().registries.guidances if "scale" in c.params.model_fields]
    if len(scaled) != 1:
        what = "several guidance rules have a scale" if scaled else "no guidance rule has a scale"
        expect = f"a recipe whose [guidance] is one of {', '.join(scaled)}" if scaled else "a plugin with such a rule"
        raise error("SD-T923", what, where="--guidance", got=str(scale), expect=expect)
    return [f"guidance.name={scaled[0]}", f"guidance.scale={scale}"]


def class_numbers(text: str | None, names: Sequence[str]) -> list[int]:
    """Convert `0,3,7-9` or class names to numbers. Default: all classes."""
    if text is None:
        return list(range(len(names)))
    if not names:
        raise error("SD-T920", "the run has no classes", where="--classes", got=text, fix="remove --classes")
    by_name = {name.casefold(): number for number, name in enumerate(names)}
    chosen: list[int] = []
    for part in text.split(","):
        word = part.strip().casefold()
        chosen += [by_name[word]] if word in by_name else numbers(word, "--classes", names)
    return chosen


def numbers(text: str, flag: str, names: Sequence[str] = ()) -> list[int]:
    """Convert `0,3,7-9` to [0, 3, 7, 8, 9]; with `names`, each must be an index of them."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None:
            expect = "numbers such as 0,3,7-9" + (f", or {one_of(part, names)}" if names else "")
            raise error("SD-T921", f"{part.strip()!r} is not valid here", where=flag, got=text, expect=expect)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            what, fix = f"the range {part.strip()} is reversed", f"{flag} {last}-{first}"
            raise error("SD-T911", what, where=flag, got=text, expect="the lower number first", fix=fix)
        if names and last >= len(names):
            expect = f"0 to {len(names) - 1}, or a name"
            raise error("SD-T904", f"class {last} does not exist", where=flag, got=text, expect=expect)
        if len(found) + last - first >= MAX_NUMBERS:
            expect = f"at most {MAX_NUMBERS:,} numbers"
            raise error("SD-T911", "the list is too long", where=flag, got=text, expect=expect)
        found += range(first, last + 1)
    return found


def write(images: Tensor, classes: Sequence[int], names: Sequence[str], folder: Path) -> list[Path]:
    """Write `drawn-N.png` and `drawn-N.npz` with the next free N, and return their paths."""
    import numpy as np

    from sddit.evaluation.grids import grid, png
    from sddit.storage.atomic import storage_errors

    taken = [int(match[1]) for p in folder.glob("drawn-*") if (match := re.fullmatch(r"drawn-(\d+)", p.stem))]
    name = f"drawn-{max(taken, default=0) + 1}"
    columns = images.shape[1]
    image = png(grid(images.flatten(0, 1), columns, [names[number] for number in classes]))
    pixels = images.flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy()  # [n, H, W, 3] as the ADM evaluator reads it
    labels = np.repeat(np.asarray(classes or [0]), columns)
    with storage_errors(folder):
        (folder / f"{name}.png").write_bytes(image)
        np.savez_compressed(folder / f"{name}.npz", arr_0=pixels, arr_1=labels)
    return [folder / f"{name}.png", folder / f"{name}.npz"]
