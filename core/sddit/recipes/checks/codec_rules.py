"""Check that the codec of a recipe decodes the latents of its data set."""

from __future__ import annotations

from collections.abc import Iterator

from sddit.errors import Problem, SdditError
from sddit.interfaces import CodecFacts, files_sha256
from sddit.recipes.checks.contracts import conflict
from sddit.recipes.real_images import real_images
from sddit.recipes.recipe import Recipe

MISFIT = "SD-D350"


def check_codec(recipe: Recipe) -> Iterator[Problem]:
    """Check that there are latents to decode, of the codec's shape, and made by the codec if they name theirs."""
    if recipe.codec is None:
        return
    data, given = recipe.facts, recipe.codec.params
    if not data.is_latent:
        what = "a codec decodes latents, and this data set is of images"
        fix = "codec.encode=true to train on its latents of these images; codec=false removes an inherited codec"
        yield conflict(what, "codec.name", data.source, "a data set of latents", fix)
        return
    yield from _check_hash(recipe)
    facts = given.facts(data)
    if facts.channels != data.image[0]:
        what = "the codec has latents of another shape than the data set"
        got = f"{facts.channels} channels, and {data.image[0]} of {data.encoder or data.source}"
        yield Problem(MISFIT, what, "codec.name", got, "the codec that encoded them")
        return
    try:
        facts.image_shape(data.image)
    except SdditError as refused:
        yield from (Problem(MISFIT, p.what, "codec.name", p.got, p.expect) for p in refused.problems)
        return
    if recipe.features and data.gives_images:
        yield from _check_real_images(recipe, facts)


def _check_real_images(recipe: Recipe, codec: CodecFacts) -> Iterator[Problem]:
    """Check that the images to compare with are known, and of the size of decoded ones."""
    try:
        real = real_images(recipe).params.facts()
    except SdditError as refused:
        yield from refused.problems
        return
    decoded = codec.image_shape(recipe.facts.image)
    if decoded[1:] != real.image[1:]:
        what, expect = "decoded images have another size than the real ones", f"{real.image[1:]} of {real.source}"
        yield Problem(MISFIT, what, "codec.name", f"(H, W) = {decoded[1:]}", expect)


def _check_hash(recipe: Recipe) -> Iterator[Problem]:
    """Check the weights against the hash that the recipe states, and against the one that the cache records."""
    assert recipe.codec is not None
    given, made_by = recipe.codec.params, recipe.facts.codec_sha256
    if files := given.weight_files():
        if (found := files_sha256(files)) != given.sha256:
            yield Problem(
                "SD-D352", "the weights of the codec are not the stated ones", "codec.sha256", found, given.sha256
            )
        elif made_by and found != made_by:
            what = "these latents were encoded with other weights"
            expect = f"sha256 {made_by}, of {recipe.facts.codec}"
            yield Problem(MISFIT, what, "codec.name", f"sha256 {found}", expect)
