"""State the facts of a latent cache from its index alone. Torch-free."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Literal, get_args

from sddit.data.latents import read_index
from sddit.errors import error
from sddit.interfaces import DataFacts, EncodedImages, Split


def encoded_images(path: str, images: str) -> EncodedImages | None:
    """Return the images that the cache at `path` was encoded from; `images` is their present path, if it is set."""
    source = read_index(path).index.images
    if source is None:
        return None
    settings = {**source.settings, **({"path": images} if images else {})}
    return EncodedImages(source.dataset, settings, source.fingerprint, source.domain)


def latents_facts(path: str, *, posterior: Literal["sample", "mean"], holdout: float, labels: bool) -> DataFacts:
    """Return the facts of the cache at `path`, all from its index: no shard is opened."""
    cache = read_index(path)
    index = cache.index
    train, test = (len(cache.rows_of(split, holdout)) for split in get_args(Split))
    if train == 0:
        raise error("SD-D304", "no latent is left to train on", where="dataset.holdout", fix="lower it")
    stds = zip(index.std, index.spread if posterior == "sample" else [0.0] * index.channels, strict=True)
    identity = json.dumps([index.identity(), holdout, labels])
    return DataFacts(
        image=(index.channels, index.height, index.width),
        class_names=index.class_names if labels else (),
        train_size=train,
        test_size=test,
        fingerprint=sha256(identity.encode()).hexdigest(),
        mean=index.mean,
        std=tuple((std**2 + spread**2) ** 0.5 for std, spread in stds),
        source=f"{cache.root}: {train:,} + {test:,} latents of {index.encoder}",
        is_latent=True,
        domain=index.images.domain if index.images else "",
        crop=index.images.crop if index.images else "",
        licence=index.images.licence if index.images else "",
        latent_scale=index.scale,
        encoder=index.encoder,
        latent_shift=index.shift,
        codec=index.codec.name if index.codec else "",
        codec_sha256=index.codec.sha256 if index.codec else "",
        colours=index.colours,
    )
