"""Let a recipe of images with `codec.encode = true` train on their latents, from a cache that is made at its first use.

The cache is in the user's cache folder, under a name that depends on everything it is made of. Nothing here makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from sddit.data.codec_record import record_of
from sddit.data.facts_cache import cache_folder
from sddit.data.latents import INDEX, pair_of
from sddit.errors import Problem, SdditError, error
from sddit.interfaces import CodecParams, DataFacts, DatasetParams, Selected
from sddit.plugins.host import Host, host
from sddit.recipes.merge import Merged
from sddit.recipes.selection import Selector

LATENTS = "sddit/latents"
KEPT = ("label_drop", "balanced", "normalize")  # keys of the images that mean the same for latents


@dataclass(frozen=True, slots=True)
class EncodedData:
    """The latents that a recipe trains on, of images."""

    dataset: Selected[DatasetParams]
    codec: Selected[CodecParams]
    facts: DataFacts  # of the images

    @property
    def flip(self) -> Literal["none", "both"]:
        """Which mirror images are encoded: latents cannot be mirrored later."""
        return "both" if self.dataset.params.flip else "none"

    @property
    def path(self) -> Path:
        """The folder of the cache. Raises SD-D347 without a user's cache folder."""
        root = cache_folder()
        if root is None:
            what, fix = "there is no folder for the latents", "set XDG_CACHE_HOME, or use sddit-run encode"
            raise error("SD-D347", what, where="codec.encode", got="no home folder", fix=fix)
        made_of = [1, self.facts.fingerprint, record_of(self.codec).model_dump(mode="json"), self.flip]
        digest = sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
        names = f"{self.dataset.component.name}-{self.codec.component.name}"
        return root.parent / "latents" / f"{names}-{digest}"

    @property
    def is_made(self) -> bool:
        """Return whether the cache is complete."""
        return (self.path / INDEX).exists()

    def planned_facts(self) -> DataFacts:
        """Return the facts of a cache before it is made. Its scale is meant to give a standard deviation near 1.

        The fingerprint, and so the run id, will be others.
        """
        codec = self.codec.params.facts()
        shape = codec.latent_shape((3, *self.facts.image[1:]))
        pair = pair_of(self.flip)
        return replace(
            self.facts,
            image=shape,
            train_size=self.facts.train_size * pair,
            test_size=self.facts.test_size * pair,
            fingerprint=sha256(self.path.name.encode()).hexdigest(),
            mean=(0.0,) * shape[0],
            std=(1.0,) * shape[0],
            source=f"{self.facts.source}, to be encoded by {self.codec.component.qualified}",
            is_latent=True,
            latent_scale=codec.scale,
            latent_shift=codec.shift,
            encoder=self.codec.component.qualified,
            codec=self.codec.component.qualified,
        )

    def table(self) -> dict[str, Any]:
        """Return the table `[dataset]` of the latents; without a cache, with its shape only."""
        kept = {key: getattr(self.dataset.params, key) for key in KEPT}
        table = {"name": LATENTS, "path": str(self.path), **kept}
        if self.is_made:
            return table
        facts = self.planned_facts()
        known = {"image": list(facts.image), "mean": list(facts.mean), "std": list(facts.std)}
        return {**table, "declared": {**known, "classes": facts.num_classes, "images": facts.train_size}}


def encoded_data(slots: Mapping[str, Selected[Any]]) -> EncodedData | None:
    """Return what a recipe with these slots encodes; None if it does not. Raises the errors of data set and codec."""
    codec, dataset = slots.get("codec"), slots.get("dataset")
    if codec is None or dataset is None or not codec.params.encode:
        return None
    facts = dataset.params.facts()
    if facts.is_latent:
        return None
    plain = replace(codec, params=codec.params.model_copy(update={"encode": False}))
    return EncodedData(dataset, plain, facts)


def encoded_data_of(merged: Merged, chosen: Host | None = None) -> EncodedData | None:
    """Return what a recipe encodes; None if it does not, or if it cannot be resolved, which resolving it reports."""
    try:
        return encoded_data(Selector(merged, chosen or host()).slots())
    except SdditError:
        return None


def with_latents(selector: Selector, slots: dict[str, Any]) -> tuple[dict[str, Any], DataFacts | None]:
    """Return the slots of a recipe, with latents in place of the images that it encodes; and the facts of latents that
    are not made yet, if only a plan is asked for.

    Adds the problem SD-D347 for such latents otherwise.
    """
    try:
        found = encoded_data(slots)
        if found is None:
            return slots, None
        table, planned = found.table(), None if found.is_made else found.planned_facts()
    except SdditError as failure:
        selector.add(replace(problem, where=problem.where or "codec.encode") for problem in failure.problems)
        return slots, None
    if planned is not None and not selector.merged.planned:
        where, got = selector.merged.place("codec.encode"), f"nothing at {found.path}"
        fix = f"{selector.merged.command} makes them, and then trains"
        what = "the images of this recipe are not encoded yet"
        selector.add([Problem("SD-D347", what, where, got, fix=fix)])
        return slots, None
    latents = selector.choose("dataset", table, "datasets")
    return {**slots, "codec": found.codec, **({"dataset": latents} if latents else {})}, planned
