"""Find out what kind of source moments are, and read several as one. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sddit.data.latent_sources import LISTED, PartsRequest, Shard, from_archive, from_folder, unreadable
from sddit.data.latent_statistics import Layout
from sddit.data.latent_stores import LMDB, from_lmdb, from_safetensors


def read_sources(sources: Sequence[Path], request: PartsRequest) -> Iterator[Shard]:
    """Yield moments and labels, one source after another. Raises SD-D317 for a source that cannot be read."""
    for source in sources:
        yield from kind_of(source).read(source, request)


def layout_of(sources: Sequence[Path], stated: Layout | None) -> Layout:
    """Return the layout of all sources: the stated one, or that of their kind.

    Raises SD-D317 if it is not stated and not known, or if a source has another.
    """
    for source in sources:
        known = kind_of(source).layout
        if known is None and stated is None:
            what, expect = "the layout of these moments is not known", "--layout mean+logvar or --layout mean+std"
            raise unreadable(what, source, expect=expect)
        if known is not None and stated is not None and known != stated:
            name = kind_of(source).name
            got, fix = f"layout {stated}", f"omit --layout, or pack the other sources separately ({known} is implied)"
            raise unreadable(f"{name} has another layout", source, got=got, expect=known, fix=fix)
        stated = stated or known
    assert stated is not None  # there is a source
    return stated


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source."""

    name: str
    layout: Layout | None  # None: the user states it
    read: Callable[[Path, PartsRequest], Iterator[Shard]]


def kind_of(source: Path) -> Kind:
    """Return the kind of a source, from its name and what a folder holds."""
    if source.is_dir():
        if (source / LMDB).is_file():
            return Kind("an LMDB of MaskDiT", "mean+logvar", from_lmdb)
        if not (source / LISTED).exists() and any(source.glob("*.safetensors")):
            return Kind("safetensors of LightningDiT", "mean+std", from_safetensors)
        return Kind("a folder of EDM2 or REPA", "mean+std", from_folder)
    if source.suffix == ".safetensors":
        return Kind("safetensors of LightningDiT", "mean+std", from_safetensors)
    return Kind("an .npz file", None, from_archive)
