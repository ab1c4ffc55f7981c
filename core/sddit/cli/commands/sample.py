"""`sddit-run sample`: generate images with a trained run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sddit.cli.options import PathOption, SdditCommand, device_option, non_empty, step_option
from sddit.cli.output import echo, error_console, notice, show_progress
from sddit.data.class_choice import MAX_NUMBERS, choose_classes
from sddit.errors import error
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.generation import Convert, Sampling
    from sddit.progress import Progress
    from sddit.recipes.recipe import Recipe
    from sddit.storage.sample_parts import SampleParts

EXAMPLES = """
sddit-run sample runs/quickstart-4f2c91d07a55
sddit-run sample RUN --classes 3,7 --per-class 4 --seeds 0-3
sddit-run sample RUN --steps 40 --sampler euler --guidance 1.5
"""
PREVIEWS = "previews"  # images of latents without a decoder, for the grid
MAX_ROWS, MAX_COLUMNS = 64, 40  # of a grid


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
    "--weights",
    type=non_empty,
    metavar="LABEL",
    help="Label of an [ema], student, or a label of sddit-run ema.  [default: as in the recipe]",
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
    from sddit.generation import image_converter
    from sddit.storage.run_folder import ensure_directory
    from sddit.training.environment import choose_device

    host().announce = notice
    place = choose_device(device)
    model = api.load(run, weights=weights or "", step=step, trust_code=trust_code)
    recipe = model.require_recipe()
    names = recipe.facts.class_names
    wanted = [label for text in classes for label in choose_classes(text, names, where="--classes")]
    wanted = wanted or list(range(len(names)))
    chosen = [recipe.seed] if seeds is None else numbers(seeds, "--seeds")
    folder = ensure_directory(out or run / "samples")
    samplings = [
        api.plan_sampling(
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
    with show_progress(error_console()) as progress:
        to_images = image_converter(samplings[0].recipe, model.dataset(), place)
        paths = draw(samplings, to_images, wanted, folder, progress)
    for path in paths:
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


def draw(
    samplings: Sequence[Sampling], to_images: Convert, classes: Sequence[int], folder: Path, progress: Progress
) -> list[Path]:
    """Generate samples, one set per seed, write a grid `drawn-N.png` and the samples, and return their paths.

    Samples are images in `drawn-N.npz`, latents in `drawn-N.safetensors`, or both. N is the next free number, or that
    of the same command that was interrupted: it continues.
    """
    from sddit.evaluation.sample_images import kept_results

    recipe, per_seed = samplings[0].recipe, len(samplings[0].request.ids)
    converts = {PREVIEWS: to_images, **kept_results(recipe, to_images)}
    if recipe.facts.gives_images:
        del converts[PREVIEWS]
    elif recipe.facts.latent_scale is None:
        notice("the scale of these latents is not known: the file holds them as scaled_latents; divide by the scale")
    with claimed_parts(folder, samplings) as parts:
        for index, sampling in enumerate(samplings):
            start = min(max(parts.count - index * per_seed, 0), per_seed)
            for _, results in sampling.parts(converts, progress, start):
                parts.append(results)
        progress.end_stage()
        paths = write_drawn(parts, samplings, converts, classes)
        parts.remove()
    return paths


def write_drawn(
    parts: SampleParts, samplings: Sequence[Sampling], converts: Mapping[str, Convert], classes: Sequence[int]
) -> list[Path]:
    """Write the grid and the samples next to their parts."""
    from sddit.evaluation.sample_images import Numbers, sample_files
    from sddit.generation import IMAGES, LATENTS
    from sddit.storage.atomic import replace_file, write_file

    recipe = samplings[0].recipe
    requests = [sampling.request for sampling in samplings]
    numbers = Numbers(
        [label for request in requests for label in request.labels],
        [number for request in requests for number in request.ids],
        [request.seed for request in requests for _ in request.ids],
    )
    base = parts.folder.with_suffix("")
    files = sample_files(parts, numbers, recipe)
    paths = [base.with_suffix(".png"), *(base.with_suffix({IMAGES: ".npz", LATENTS: ".safetensors"}[n]) for n in files)]
    shown = PREVIEWS if PREVIEWS in converts else IMAGES
    replace_file(paths[0], grid_of(parts, shown, classes, len(samplings), recipe))
    for path, write in zip(paths[1:], files.values(), strict=True):
        write_file(path, write)
    return paths


@contextmanager
def claimed_parts(folder: Path, samplings: Sequence[Sampling]) -> Iterator[SampleParts]:
    """Give the parts of samples, which no other process works on: interrupted ones of the same samples, or new ones."""
    from sddit.storage.atomic import storage_errors
    from sddit.storage.lock import lock_folder
    from sddit.storage.sample_parts import SampleParts, find_parts

    requests = [sampling.request.digest() for sampling in samplings]  # of the same weights and recipe
    identity = {**samplings[0].identity(), "requests": requests}
    interrupted = [path for path in sorted(folder.glob("drawn-*.parts")) if find_parts([path], identity)]
    for path in chain(interrupted, free_paths(folder)):
        with ExitStack() as stack:
            with storage_errors(path):
                try:
                    if path not in interrupted:
                        path.mkdir()
                    free = stack.enter_context(lock_folder(path))
                except (FileExistsError, FileNotFoundError):  # another process took it, or has finished it
                    continue
            if free and (path not in interrupted or find_parts([path], identity)):
                yield SampleParts(path, identity)
                return


def free_paths(folder: Path) -> Iterator[Path]:
    """Yield names for the parts of new samples, with the numbers above those that are taken."""
    taken = [int(match[1]) for p in folder.glob("drawn-*") if (match := re.fullmatch(r"drawn-(\d+)", p.stem))]
    return (folder / f"drawn-{number}.parts" for number in count(max(taken, default=0) + 1))


def grid_of(parts: SampleParts, name: str, classes: Sequence[int], seeds: int, recipe: Recipe) -> bytes:
    """Return a PNG with a row per class, the samples of each seed side by side; of many samples, the first ones."""
    import torch

    from sddit.evaluation.grids import grid, png
    from sddit.generation import caption_of

    numbers = torch.arange(parts.count).reshape(seeds, len(classes) or 1, -1)  # drawn by seed, then class
    rows = numbers.transpose(0, 1).flatten(1)  # by class
    shown = rows[:MAX_ROWS, :MAX_COLUMNS]
    if shown.numel() < rows.numel():
        notice(f"the grid shows {shown.numel():,} of {rows.numel():,} samples")
    names = [recipe.facts.class_names[number] for number in classes][:MAX_ROWS]
    images = parts.rows(name, shown.flatten().tolist())
    return png(grid(images, shown.shape[1], names, caption=caption_of(recipe)))
