"""Check the sizes of batches, micro-batches and process groups."""

from __future__ import annotations

from collections.abc import Iterator

from sddit.errors import Problem
from sddit.interfaces.dataset import small_split_error
from sddit.recipes.recipe import Recipe


def check_batch(recipe: Recipe) -> Iterator[Problem]:
    """Check that micro-batches divide the batch, and that the data has a full batch of images."""
    batch, micro = recipe.train.batch, recipe.train.micro_batch or recipe.train.batch
    if batch % micro:
        got, fits = f"batch = {batch}, micro_batch = {micro}", max(n for n in range(1, micro + 1) if batch % n == 0)
        what = "the micro-batch does not divide the batch"
        yield Problem("SD-R108", what, "train.micro_batch", got, fix=f"train.micro_batch = {fits}")
    for label, chosen in recipe.active_losses.items():
        if micro < batch and chosen.params.couples_samples:
            yield Problem(
                "SD-R108",
                f"loss {label!r} needs the entire batch, so it cannot be used with micro-batches",
                where="train.micro_batch",
                got=f"batch = {batch}, micro_batch = {micro}",
                fix=f"train.micro_batch = {batch}, or a smaller batch",
            )
    if batch > recipe.facts.train_size and recipe.dataset.params.holds_images:
        yield from small_split_error(recipe.facts.train_size, batch).problems


def check_processes(recipe: Recipe, count: int) -> Iterator[Problem]:
    """Check that each of `count` processes gets an equal part of every forward pass."""
    key = "train.micro_batch" if recipe.train.micro_batch else "train.batch"
    images = recipe.train.micro_batch or recipe.train.batch
    if images % count:
        fits = max(n for n in range(1, min(images, count) + 1) if images % n == 0)
        yield Problem(
            "SD-C421",
            f"the images of one forward pass are not divisible by {count} processes",
            where=key,
            got=f"{key.removeprefix('train.')} = {images}, {count} processes",
            expect="the same number of images for every process",
            fix=f"{fits} processes, or {key}={-(-images // count) * count}",
        )
