"""Find the real images that samples are compared with."""

from __future__ import annotations

from sddit.errors import error
from sddit.interfaces import DatasetParams, Selected
from sddit.plugins.host import registry
from sddit.recipes.recipe import Recipe
from sddit.recipes.validation import validated


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
    facts = params.facts()
    if facts.fingerprint != encoded.fingerprint:
        raise error(
            "SD-D354",
            "these are not the images that were encoded",
            where="dataset.images",
            got=f"fingerprint {facts.fingerprint[:12]} of {facts.source}",
            expect=f"fingerprint {encoded.fingerprint[:12]}",
            fix="restore the images, set dataset.images to their place, or encode them again",
        )
    return Selected(component, params)
