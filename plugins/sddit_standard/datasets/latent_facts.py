"""State the facts of a latent cache from its index alone. Torch-free."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, get_args

from sddit.data.latents import read_index
from sddit.errors import error
from sddit.interfaces import DataFacts, Split

if TYPE_CHECKING:
    from sddit_standard.datasets.params import LatentsParams


def latents_facts(params: LatentsParams) -> DataFacts:
    """Everything from the index: no shard is opened."""
    cache = read_index(params.path)
    index = cache.index
    train, test = (len(cache.rows_of(split, params.holdout)) for split in get_args(Split))
    if train == 0:
        raise error("SD-D304", "no latent is left to train on", where="dataset.holdout", fix="lower it")
    deviations = zip(index.std, index.spread if params.posterior == "sample" else [0.0] * index.channels, strict=True)
    identity = json.dumps([index.model_dump(mode="json"), params.holdout, params.labels])
    return DataFacts(
        image=(index.channels, index.height, index.width),
        class_names=index.class_names if params.labels else (),
        train_size=train,
        test_size=test,
        fingerprint=sha256(identity.encode()).hexdigest(),
        mean=index.mean,
        std=tuple((std**2 + spread**2) ** 0.5 for std, spread in deviations),
        source=f"{cache.root}: {train:,} + {test:,} latents of {index.encoder}; pictures show three latent channels",
    )
