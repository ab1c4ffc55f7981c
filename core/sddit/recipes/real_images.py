"""Find the real images that samples are compared with."""

from __future__ import annotations

from dataclasses import replace

from sddit.errors import Problem, SdditError, error
from sddit.interfaces import DatasetParams, Selected
from sddit.plugins.host import registry
from sddit.recipes.recipe import Recipe
from sddit.recipes.remedies import with_new_path
from sddit.recipes.validation import validated

IMAGES = "dataset.images"


def real_images(recipe: Recipe) -> Selected[DatasetParams]:
    """Return the data set of the real images: that of the recipe, or the one its latents were encoded from.

    Raises:
        SdditError: SD-T944 for latents of images that are not known, SD-D354 if the images are not those that were
            encoded, or an error of their data set.
    """
    if not recipe.facts.is_latent:
        return recipe.dataset
    encoded = recipe.dataset.params.encoded_images()
    if encoded is None:
        raise error(
            "SD-T944",
            "the real images of these latents are not known, so nothing can be compared with them",
            where="evaluate.features",
            got=recipe.facts.source,
            expect="a cache from sddit-run encode, which states its images",
            fix="evaluate.features=[]",
        )
    component = registry("datasets").usable(encoded.dataset, where="dataset.path")
    params = validated(component.params, dict(encoded.settings), table="dataset", where="dataset.path")
    assert isinstance(params, DatasetParams)  # the registry has no others
    try:
        facts = params.facts()
    except SdditError as failure:
        raise SdditError(*(_of_images(problem, recipe) for problem in failure.problems)) from failure
    if facts.fingerprint != encoded.fingerprint:
        raise error(
            "SD-D354",
            "these are not the images that were encoded",
            where=IMAGES,
            got=f"fingerprint {facts.fingerprint[:12]} of {facts.source}",
            expect=f"fingerprint {encoded.fingerprint[:12]}",
            fix="restore the images, set dataset.images to their place, or encode them again",
        )
    return Selected(component, params)


def _of_images(problem: Problem, recipe: Recipe) -> Problem:
    """Return a problem of the encoded images, whose place is `dataset.images`: `dataset.path` is that of latents."""
    if problem.where != "dataset.path":
        return problem
    placed = replace(problem, where=IMAGES, fix=f"{IMAGES}=PATH, where the images are now")
    return with_new_path(placed, IMAGES, recipe.path)
