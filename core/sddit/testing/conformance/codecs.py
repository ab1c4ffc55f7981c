"""Check what holds for every codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.interfaces import CodecFacts
from sddit.testing import fixtures
from sddit.testing.case import Case

COUNT = 5
PLACES = 4  # height and width of the latents that are tried, unless the codec takes one size only

Parts = tuple[Tensor, ...]


def examine(case: Case) -> None:
    """Build a codec and check its facts, both directions, and what it refuses.

    One that decodes caches without a codec is given the facts of a cache in `runtime`.
    """
    data = case.runtime.get("facts")
    with case.trying(
        "its params were asked for their facts", fix='check(..., runtime={"facts": ...}) if it needs data'
    ):
        facts = case.params.facts(data)
        case.expect(facts == case.params.facts(data), "facts() differ from call to call")
        if not case.instance(facts, CodecFacts, "facts() returns something else than CodecFacts"):
            return
        codec = case.build(facts=data, device=torch.device("cpu"))
        case.equal(codec.facts, facts, "it has other facts than its params")
        side = facts.size or PLACES * facts.factor
        shape = facts.latent_shape((3, side, side))
        case.equal(facts.image_shape(shape), (3, side, side), "image_shape does not undo latent_shape")
        images = (fixtures.numbers(COUNT, 3, side, side).sigmoid() * 255).to(torch.uint8)
        latents = (fixtures.numbers(COUNT, *shape, key=1) / facts.scale + facts.shift).float()
        if facts.encodes:
            examine_encoding(case, codec, images, shape)
        examine_decoding(case, codec, latents, (3, side, side))


def examine_encoding(case: Case, codec: Any, images: Tensor, shape: tuple[int, ...]) -> None:
    """Check mean and standard deviation of latents, and what is refused."""
    found = examine_function(case, codec.encode, images, "encode(images)")
    if not case.expect(len(found) == 2, "encode does not return a mean and a standard deviation"):
        return
    for name, part in zip(("mean", "standard deviation"), found, strict=True):
        if case.shaped(part, (COUNT, *shape), f"the {name} of encode(images)"):
            case.expect(part.dtype == torch.float32, f"the {name} is not float32", got=part)
            if name == "standard deviation":
                case.expect(bool((part >= 0).all()), "a standard deviation is negative")
    refuses(case, codec.encode, images.float() / 255, "images that are not uint8")
    refuses(case, codec.encode, images[:, :1], "grey images")
    refuses(case, codec.encode, images[..., 1:], "images of a size that the factor does not divide")


def examine_decoding(case: Case, codec: Any, latents: Tensor, shape: tuple[int, ...]) -> None:
    """Check decoded images, and what is refused."""
    (found,) = examine_function(case, codec.decode, latents, "decode(latents)")
    if case.of_shape(found, (COUNT, *shape), "decode(latents)"):
        case.expect(found.dtype == torch.uint8, "decoded images are not uint8", got=found)
        case.expect(
            bool((found != found.flatten()[0]).any()),
            "decoded images do not depend on the latents",
            got="one constant colour",
        )
    refuses(case, codec.decode, latents[:, 1:], "latents with a channel less")
    refuses(case, codec.decode, torch.full_like(latents, torch.nan), "latents that are NaN")


def examine_function(case: Case, function: Callable[[Tensor], Any], given: Tensor, what: str) -> Parts:
    """Return what a function returns, after checks of repeatability, of its input, and of other batches."""
    before = given.clone()
    with case.no_global_randomness(what):
        found = parts_of(function(given))
    case.expect(torch.equal(given, before), f"{what} changes its input", fix="compute on a copy")
    if not case.expect(all(isinstance(part, Tensor) for part in found), f"{what} returns no tensors"):
        return found
    case.expect(not any(part.requires_grad for part in found), f"{what} carries a gradient", fix="torch.no_grad()")
    case.expect(all(part.device.type == "cpu" for part in found), f"{what} is not on the CPU", fix="return x.cpu()")
    again = parts_of(function(given.clone()))
    case.expect(same(again, found), f"{what} differs from call to call", fix="eval() mode; no random numbers")
    fix = "eval() mode; run the network on chunks of one fixed number of images, padded"
    for rows in (slice(1, 3), slice(COUNT - 1, COUNT)):
        some = parts_of(function(given[rows]))
        rest = tuple(part[rows] for part in found)
        case.expect(same(some, rest), f"{what} of an image depends on the batch around it", fix=fix)
    none = parts_of(function(given[:0]))
    case.expect(all(len(part) == 0 for part in none), f"{what} of an empty batch is not empty")
    return found


def parts_of(returned: Any) -> Parts:
    """Return the tensors of encode or decode as a tuple."""
    return tuple(returned) if isinstance(returned, tuple | list) else (returned,)


def same(one: Parts, other: Parts) -> bool:
    """Return whether all tensors are equal, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def refuses(case: Case, function: Callable[[Tensor], Any], given: Tensor, what: str) -> None:
    """Note a function that accepts what it cannot process."""
    try:
        function(given)
    except SdditError as refusal:
        codes = {problem.code for problem in refusal.problems}
        case.expect(codes == {"SD-D353"}, f"it refuses {what} with another code", got=codes, expect="SD-D353")
    else:
        case.add(f"it accepts {what}", fix="call sddit.data.codecs.check_images or check_latents first")
